"""Groups: files that are compressed inside the image, told by their unpacked bytes and packed again on the device.

A group has a *work area*, a scratch file on the device that begins as zeros, and is carried out in this order:

    unpackings    compressed bytes of the old image, unpacked into the work area
    moves         bytes of the old image, of the work area, or of the new image, brought into the work area
    segments      as everywhere, but their units write the work area
    packings      bytes of the work area packed again, beside them, by a recoder that must make exactly these sizes
    writes        bytes of the work area written to the new image

The windows of its units and the sources of its moves lie in one *joined space*: the old image, the work area, the
new image, one behind the other. A group that takes something of the new image comes after all copies and segments
that write the image and after the groups before it, so that it is there. The SHA-256 of all it writes is compared
before the first byte is. A device that lacks one of its recoders, or the room, takes the segments *instead*, which
write the same runs from the old image in the ordinary way. In the header a group is:

    size of the work area
    number of unpackings, then for each: number of the form's name, number of runs, then for each: signed distance
        from the end of the one before, size; offset and size in the work area
    number of moves, then for each: gap from the end of the one before in the work area, signed distance from the end
        of the one before in the joined space, size
    number of segments, then each
    number of packings, then for each: number of the recoder's name, offset and size of the plain bytes, offset and
        size of the packed ones
    number of writes, then for each: signed distance from the end of the one before in the new image, signed distance
        in the work area, size
    SHA-256 of the bytes written

All numbers count bytes. The segments that stand instead follow behind all groups, for each their number and they.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.segments import (
    DIGEST_SIZE,
    Bounds,
    Run,
    RunBudget,
    Segment,
    append_segment,
    join_runs,
    name_at,
    parse_segment,
)
from overhaul.content.delta.varints import VarintReader, append_signed, append_varint

#: No device is asked for more scratch space than this.
MAX_WORK_SIZE = 1 << 30


@dataclass(frozen=True, slots=True)
class Unpacking:
    """Compressed bytes of the old image that are unpacked into the work area."""

    #: `gzip`, `lz4`, `zstd`, `xz`, `ext4-inodes`: see `unpacking`.
    form: str
    packed: tuple[Run, ...]
    plain: Run


class Move(NamedTuple):
    """Bytes brought into the work area."""

    offset: int
    #: In the joined space.
    source: int
    size: int


@dataclass(frozen=True, slots=True)
class Packing:
    """Bytes of the work area packed again."""

    #: Name of the recoder, with its fingerprint.
    coder: str
    plain: Run
    packed: Run


class Write(NamedTuple):
    """Bytes of the work area that belong into the new image."""

    target: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Group:
    """Files that are packed again together."""

    work_size: int
    unpackings: tuple[Unpacking, ...]
    moves: tuple[Move, ...]
    #: Their units write the work area, from windows in the joined space.
    segments: tuple[Segment, ...]
    packings: tuple[Packing, ...]
    writes: tuple[Write, ...]
    #: Of the bytes written, in the order of `writes`.
    sha256: bytes
    #: What writes the same runs of the new image where the group cannot be carried out.
    instead: tuple[Segment, ...] = ()

    @property
    def recoders(self) -> frozenset[str]:
        """Names of the recoders it takes."""
        return frozenset(packing.coder for packing in self.packings)

    @property
    def names(self) -> frozenset[str]:
        """All names of coders and forms in it."""
        segments = (*self.segments, *self.instead)
        forms = frozenset(unpacking.form for unpacking in self.unpackings)
        return self.recoders.union(forms, *(segment.coders for segment in segments))

    @property
    def output_runs(self) -> Iterator[Run]:
        """Runs of the new image it writes, in the order `sha256` is taken over them."""
        return (Run(write.target, write.size) for write in self.writes)

    @property
    def looked_at(self) -> Iterator[Run]:
        """Runs of the joined space it takes bytes of, besides what it unpacks."""
        yield from (Run(move.source, move.size) for move in self.moves)
        yield from (run for segment in self.segments for unit in segment.units for run in unit.window)

    @property
    def written_size(self) -> int:
        """Bytes of the new image it writes."""
        return sum(write.size for write in self.writes)

    @property
    def size(self) -> int:
        """Bytes of its segments in the delta file."""
        return sum(segment.size for segment in self.segments)

    @property
    def instead_size(self) -> int:
        """Bytes in the delta file of the segments that stand instead."""
        return sum(segment.size for segment in self.instead)


def append_groups(body: bytearray, groups: Sequence[Group], *, number_of: Mapping[str, int]) -> None:
    """Append `groups` to a header; `number_of` gives the numbers of names."""
    append_varint(body, len(groups))
    for group in groups:
        _append_group(body, group, number_of)
    for group in groups:
        _append_segments(body, group.instead, number_of)


def _append_group(body: bytearray, group: Group, number_of: Mapping[str, int]) -> None:
    append_varint(body, group.work_size)
    append_varint(body, len(group.unpackings))
    position = 0
    for unpacking in group.unpackings:
        append_varint(body, number_of[unpacking.form])
        append_varint(body, len(unpacking.packed))
        for run in unpacking.packed:
            append_signed(body, run.offset - position)
            append_varint(body, run.size)
            position = run.end
        append_varint(body, unpacking.plain.offset)
        append_varint(body, unpacking.plain.size)
    append_varint(body, len(group.moves))
    offset = position = 0
    for move in group.moves:
        append_varint(body, move.offset - offset)
        append_signed(body, move.source - position)
        append_varint(body, move.size)
        offset, position = move.offset + move.size, move.source + move.size
    _append_segments(body, group.segments, number_of)
    append_varint(body, len(group.packings))
    for packing in group.packings:
        for number in (number_of[packing.coder], *packing.plain, *packing.packed):
            append_varint(body, number)
    append_varint(body, len(group.writes))
    target = position = 0
    for write in group.writes:
        append_signed(body, write.target - target)
        append_signed(body, write.offset - position)
        append_varint(body, write.size)
        target, position = write.target + write.size, write.offset + write.size
    body += group.sha256


def _append_segments(body: bytearray, segments: Sequence[Segment], number_of: Mapping[str, int]) -> None:
    append_varint(body, len(segments))
    for segment in segments:
        append_segment(body, segment, grain=1, number_of=number_of)


@dataclass(frozen=True, slots=True)
class GroupReader:
    """Reads groups out of a header that nobody vouches for."""

    reader: VarintReader
    budget: RunBudget
    names: tuple[str, ...]
    source_size: int
    target_size: int

    def groups(self, file_offset: int) -> tuple[Group, ...]:
        """Return the groups that come next; their first segment lies at `file_offset` of the delta file.

        Raises:
            MalformedDeltaError: They ask for something impossible or too much.
        """
        groups: list[Group] = []
        for _ in range(self.reader.count(item_bytes=DIGEST_SIZE)):
            groups.append(self._group(file_offset))
            file_offset += groups[-1].size
        bounds = self._bounds(source_size=self.source_size, target_size=self.target_size)
        whole: list[Group] = []
        for group in groups:
            instead = self._segments(bounds, file_offset)
            file_offset += sum(segment.size for segment in instead)
            told = sorted(run for segment in instead for run in segment.output_runs)
            if join_runs(told) != join_runs(sorted(group.output_runs)):
                raise MalformedDeltaError("what stands instead of a group does not write the same runs")
            whole.append(replace(group, instead=instead))
        return tuple(whole)

    def _group(self, file_offset: int) -> Group:
        work_size = self.reader.number()
        if work_size > MAX_WORK_SIZE:
            raise MalformedDeltaError(f"a group wants a work area of {work_size} bytes")
        joined = self._bounds(source_size=self.source_size + work_size + self.target_size, target_size=work_size)
        return Group(
            work_size=work_size,
            unpackings=tuple(self._unpackings(work_size)),
            moves=tuple(self._moves(joined)),
            segments=self._segments(joined, file_offset),
            packings=tuple(
                Packing(name_at(self.reader, self.names), self._area(joined), self._area(joined))
                for _ in range(self.reader.count(item_bytes=5))
            ),
            writes=tuple(self._writes(work_size)),
            sha256=self.reader.take(DIGEST_SIZE),
        )

    def _unpackings(self, work_size: int) -> Iterator[Unpacking]:
        bounds = self._bounds(source_size=self.source_size, target_size=work_size)
        position = 0
        for _ in range(self.reader.count(item_bytes=4)):
            form = name_at(self.reader, self.names)
            packed, position = bounds.runs(position, image="source", limit=self.source_size)
            yield Unpacking(form, packed, self._area(bounds))

    def _moves(self, bounds: Bounds) -> Iterator[Move]:
        offset = position = 0
        for _ in range(self.reader.count(item_bytes=3)):
            offset += self.reader.number()
            position += self.reader.signed()
            size = self.reader.number()
            into, source = bounds.run(offset, size, image="target"), bounds.run(position, size, image="source")
            yield Move(into.offset, source.offset, size)
            offset, position = into.end, source.end

    def _writes(self, work_size: int) -> Iterator[Write]:
        bounds = self._bounds(source_size=work_size, target_size=self.target_size)
        target = position = 0
        for _ in range(self.reader.count(item_bytes=3)):
            target += self.reader.signed()
            position += self.reader.signed()
            size = self.reader.number()
            into, source = bounds.run(target, size, image="target"), bounds.run(position, size, image="source")
            yield Write(into.offset, source.offset, size)
            target, position = into.end, source.end

    def _segments(self, bounds: Bounds, file_offset: int) -> tuple[Segment, ...]:
        segments: list[Segment] = []
        for _ in range(self.reader.count(item_bytes=2 * DIGEST_SIZE)):
            segments.append(parse_segment(bounds, self.names, file_offset))
            file_offset = segments[-1].end
        return tuple(segments)

    def _area(self, bounds: Bounds) -> Run:
        """Return the run of the work area that comes next."""
        return bounds.run(self.reader.number(), self.reader.number(), image="target")

    def _bounds(self, *, source_size: int, target_size: int) -> Bounds:
        return Bounds(self.reader, self.budget, grain=1, source_size=source_size, target_size=target_size)
