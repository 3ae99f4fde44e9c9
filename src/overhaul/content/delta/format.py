"""The delta file: where everything in it lies, which bytes it writes, and by which digests it is known.

A delta writes the new image in two ways: *copies* move runs of bytes over from the old image, and *units* compute
at most 2 MiB of new bytes each from a *window* of at most 4 MiB of the old image and from bytes in the delta. The
bytes of many units are compressed together in a *segment*, because small changes resemble one another. Bytes of
the new image that nothing writes are zero. Layout, little-endian:

    magic 8 bytes "OVHDLT02"
    size of the packed body u32, size of the unpacked body u32
    body, packed as a raw LZMA2 stream with a dictionary of 4 MiB
    segments, one behind the other, up to the end of the file

The release record signs the bytes up to the end of the body, and the body holds the SHA-256 of every segment, so
nothing is decoded before its digest has been checked. The unpacked body holds varints and digests:

    grain, source size / grain, target size / grain
    number of coder names, then for each: length, ASCII name
    number of copies, then the columns: gaps from the end of the one before in the target, sizes,
        signed distances in the source from the end of the one before; all in grains
    number of segments, then for each:
        SHA-256 of its bytes in the file, SHA-256 of the bytes its units write in their order
        number of streams, then for each: number of its coder's name, its size in the file, its decoded size
        number of units, then for each:
            number of its coder's name
            number of output runs, then for each: signed distance from the end of the one before, size, in grains
            number of window runs, then for each: the same, in the source
            for each stream of the segment: bytes of it that belong to this unit
    number of groups, then for each what `groups` draws: files that are packed again on the device

The streams of a segment lie behind one another; each is decoded on its own, and the units take their parts in
order until nothing is left. Every number is checked here once: runs lie inside their image, nothing is written
twice, and no step needs more memory than the limits below. What the bytes of a unit mean is the business of
`coders`; an unknown name is refused by whoever applies, so that later coders need no new layout.
"""

import lzma
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import gcd
from typing import NamedTuple

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.groups import Group, GroupReader, append_groups
from overhaul.content.delta.segments import (
    DIGEST_SIZE,
    LZMA2_DICTIONARY,
    PACKING_SLACK,
    Bounds,
    Run,
    RunBudget,
    Segment,
    append_segment,
    join_runs,
    parse_segment,
    unpack_lzma2,
)
from overhaul.content.delta.varints import VarintReader, append_signed, append_varint

MAGIC = b"OVHDLT02"
_PREFIX = struct.Struct("<8sII")
#: Bytes that say how long the header is; see `header_size_of`.
PREFIX_SIZE = _PREFIX.size

#: No system reads or writes at an offset behind this.
MAX_IMAGE_SIZE = (1 << 63) - 1
MAX_HEADER_DECODED = 4 * 1024 * 1024
_BODY_FILTERS = ({"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": LZMA2_DICTIONARY},)


class CopyRun(NamedTuple):
    """Bytes of the new image that are also in the old one."""

    target: int
    source: int
    size: int


@dataclass(frozen=True)
class DeltaHeader:
    """Everything about a delta but the bytes of its segments."""

    source_size: int
    target_size: int
    #: Ascending in the target.
    copies: Sequence[CopyRun]
    #: In file order, without gaps.
    segments: Sequence[Segment]
    #: Their segments follow in the file, then those that stand instead of each.
    groups: Sequence[Group] = ()

    @property
    def all_segments(self) -> Sequence[Segment]:
        """Every segment of the file, in its order."""
        of_groups = [segment for group in self.groups for segment in group.segments]
        return [*self.segments, *of_groups, *(segment for group in self.groups for segment in group.instead)]

    @property
    def coders(self) -> tuple[str, ...]:
        """Names of all coders a device must have, sorted; what only groups take is not among them."""
        plain = (*self.segments, *(segment for group in self.groups for segment in group.instead))
        return tuple(sorted({name for segment in plain for name in segment.coders}))

    @cached_property
    def written(self) -> Sequence[Run]:
        """Runs of the new image that copies, units and groups write, ascending, neighbours joined."""
        return join_runs(sorted(_writes(self.copies, self.segments, self.groups)))

    @property
    def computed_size(self) -> int:
        """Bytes of the new image that units and groups write."""
        return sum(segment.output_size for segment in self.segments) + sum(group.written_size for group in self.groups)

    @property
    def zeros(self) -> Iterator[Run]:
        """Runs of the new image that nothing writes, ascending: they hold zeros."""
        position = 0
        for run in self.written:
            if run.offset > position:
                yield Run(position, run.offset - position)
            position = run.end
        if position < self.target_size:
            yield Run(position, self.target_size - position)


def _writes(
    copies: Iterable[CopyRun], segments: Iterable[Segment], groups: Iterable[Group]
) -> Iterator[tuple[int, int]]:
    yield from ((copy.target, copy.size) for copy in copies)
    yield from chain.from_iterable(segment.output_runs for segment in segments)
    yield from chain.from_iterable(group.output_runs for group in groups)


def write_header(header: DeltaHeader) -> bytes:
    """Return the bytes of `header`; the file offsets of its segments are not written, they follow from the order."""
    numbers = [header.source_size, header.target_size]
    for copy in header.copies:
        numbers.extend(copy)
    for segment in header.segments:
        for unit in segment.units:
            for run in (*unit.output, *unit.window):
                numbers.extend(run)
    grain = gcd(*numbers) or 1
    names = sorted({*header.coders, *(name for group in header.groups for name in group.names)})
    number_of = {name: number for number, name in enumerate(names)}
    body = bytearray()
    for value in (grain, header.source_size // grain, header.target_size // grain, len(names)):
        append_varint(body, value)
    for name in names:
        append_varint(body, len(name))
        body += name.encode("ascii")
    _append_copies(body, header.copies, grain)
    append_varint(body, len(header.segments))
    for segment in header.segments:
        append_segment(body, segment, grain=grain, number_of=number_of)
    append_groups(body, header.groups, number_of=number_of)
    packed = lzma.compress(body, lzma.FORMAT_RAW, filters=_BODY_FILTERS)
    return _PREFIX.pack(MAGIC, len(packed), len(body)) + packed


def _append_copies(body: bytearray, copies: Sequence[CopyRun], grain: int) -> None:
    append_varint(body, len(copies))
    position = 0
    for copy in copies:
        append_varint(body, (copy.target - position) // grain)
        position = copy.target + copy.size
    for copy in copies:
        append_varint(body, copy.size // grain)
    position = 0
    for copy in copies:
        append_signed(body, (copy.source - position) // grain)
        position = copy.source + copy.size


def header_size_of(prefix: bytes) -> int:
    """Return how long the header is that begins with the `PREFIX_SIZE` bytes `prefix`.

    Raises:
        MalformedDeltaError: It is no delta, or its header is bigger than any real one.
    """
    if len(prefix) < PREFIX_SIZE:
        raise MalformedDeltaError(f"{len(prefix)} bytes are not even the beginning of a delta")
    magic, packed_size, body_size = _PREFIX.unpack_from(prefix)
    if magic != MAGIC:
        raise MalformedDeltaError("it does not begin like a delta of this format")
    if body_size > MAX_HEADER_DECODED or packed_size > body_size + PACKING_SLACK:
        raise MalformedDeltaError(f"its header states the sizes {packed_size} and {body_size}")
    return PREFIX_SIZE + int(packed_size)


def read_header(data: bytes) -> DeltaHeader:
    """Return the header held in `data`, which must end where the header ends.

    Raises:
        MalformedDeltaError: The bytes are no header, or one that asks for something impossible or too much.
    """
    if len(data) != header_size_of(data):
        raise MalformedDeltaError(f"its header is not {len(data)} bytes long")
    return _parse_body(unpack_lzma2(data[PREFIX_SIZE:], _PREFIX.unpack_from(data)[2]), len(data))


def _parse_body(body: bytes, file_offset: int) -> DeltaHeader:
    reader = VarintReader(body)
    grain, source_grains, target_grains = (reader.number() for _ in range(3))
    if grain == 0:
        raise MalformedDeltaError("its grain is zero")
    if grain * max(source_grains, target_grains) > MAX_IMAGE_SIZE:
        raise MalformedDeltaError(f"it states images of {source_grains} and {target_grains} times {grain} bytes")
    budget = RunBudget()
    source_size, target_size = grain * source_grains, grain * target_grains
    bounds = Bounds(reader, budget, grain=grain, source_size=source_size, target_size=target_size)
    names = tuple(_parse_name(reader) for _ in range(reader.count()))
    copies = _parse_copies(bounds)
    segments: list[Segment] = []
    for _ in range(reader.count(item_bytes=2 * DIGEST_SIZE)):
        segments.append(parse_segment(bounds, names, file_offset))
        file_offset = segments[-1].end
    groups = GroupReader(reader, budget, names, source_size, target_size).groups(file_offset)
    if reader.remaining:
        raise MalformedDeltaError("its header goes on behind its last entry")
    position = 0
    for offset, size in sorted(_writes(copies, segments, groups)):
        if offset < position:
            raise MalformedDeltaError(f"it writes the byte at {offset} twice")
        position = offset + size
    return DeltaHeader(
        source_size=source_size, target_size=target_size, copies=copies, segments=segments, groups=groups
    )


def _parse_name(reader: VarintReader) -> str:
    try:
        return reader.take(reader.count()).decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedDeltaError("the name of a coder is not ASCII") from error


def _parse_copies(bounds: Bounds) -> list[CopyRun]:
    reader = bounds.reader
    count = reader.count(item_bytes=3)
    gaps = [reader.number() for _ in range(count)]
    sizes = [reader.number() for _ in range(count)]
    copies: list[CopyRun] = []
    target = source = 0
    for gap, size in zip(gaps, sizes, strict=True):
        target += gap
        source += reader.signed()
        written = bounds.run(target, size, image="target")
        copies.append(CopyRun(written.offset, bounds.run(source, size, image="source").offset, written.size))
        target += size
        source += size
    return copies
