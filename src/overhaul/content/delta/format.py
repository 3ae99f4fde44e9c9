"""The delta file: where everything in it lies, which bytes it writes, and by which digests it is known.

A delta writes the new image in two ways: *copies* move runs of bytes over from the old image, and *units* compute
at most 2 MiB of new bytes each from a *window* of at most 4 MiB of the old image and from bytes in the delta. The
bytes of many units are compressed together in a *segment*, because small changes resemble one another. Bytes of
the new image that nothing writes are zero. Layout, little-endian:

    magic 8 bytes "OVHDLT01"
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
from math import gcd
from typing import NamedTuple

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.varints import VarintReader, append_signed, append_varint

MAGIC = b"OVHDLT01"
_PREFIX = struct.Struct("<8sII")
#: Bytes that say how long the header is; see `header_size_of`.
PREFIX_SIZE = _PREFIX.size
_DIGEST_SIZE = 32

#: No system reads or writes at an offset behind this.
MAX_IMAGE_SIZE = (1 << 63) - 1
MAX_HEADER_DECODED = 4 * 1024 * 1024
#: Compressing never adds more than this to what does not compress.
_PACKING_SLACK = 64 * 1024
#: Copies, output runs and window runs of a delta, all together.
MAX_RUNS = 1 << 17
MAX_SEGMENT_DECODED = 4 * 1024 * 1024
MAX_SEGMENT_SIZE = MAX_SEGMENT_DECODED + _PACKING_SLACK
MAX_UNIT_OUTPUT = 2 * 1024 * 1024
MAX_UNIT_WINDOW = 4 * 1024 * 1024
_MAX_STREAMS = 16
#: Dictionary of every LZMA2 stream in a delta, and so the memory its decoder takes.
LZMA2_DICTIONARY = 4 * 1024 * 1024
_DECODER_FILTERS = ({"id": lzma.FILTER_LZMA2, "dict_size": LZMA2_DICTIONARY},)
_BODY_FILTERS = ({"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": LZMA2_DICTIONARY},)


class Run(NamedTuple):
    """Bytes that lie together in an image."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset of the first byte behind the run."""
        return self.offset + self.size


class CopyRun(NamedTuple):
    """Bytes of the new image that are also in the old one."""

    target: int
    source: int
    size: int


@dataclass(frozen=True, slots=True)
class Stream:
    """One compressed stream of a segment."""

    coder: str
    size: int
    decoded_size: int


@dataclass(frozen=True, slots=True)
class Unit:
    """A small independent job: computes the bytes of `output` from `window` and its parts of the streams."""

    coder: str
    #: In the order in which the computed bytes are laid out.
    output: tuple[Run, ...]
    window: tuple[Run, ...]
    #: How many bytes of each of the segment's streams are this unit's.
    parts: tuple[int, ...]

    @property
    def output_size(self) -> int:
        """Bytes the unit writes."""
        return sum(run.size for run in self.output)

    @property
    def window_size(self) -> int:
        """Bytes of the old image the unit looks at."""
        return sum(run.size for run in self.window)


@dataclass(frozen=True, slots=True)
class Segment:
    """What is fetched, checked and decoded as one piece."""

    #: Where it lies in the delta file.
    offset: int
    size: int
    #: Of its bytes in the file; checked before anything is decoded.
    sha256: bytes
    #: Of all bytes its units write, in their order.
    output_sha256: bytes
    streams: tuple[Stream, ...]
    units: tuple[Unit, ...]

    @property
    def end(self) -> int:
        """The offset in the file of the first byte behind the segment."""
        return self.offset + self.size

    @property
    def decoded_size(self) -> int:
        """Bytes of its streams once decoded."""
        return sum(stream.decoded_size for stream in self.streams)

    @property
    def output_size(self) -> int:
        """Bytes its units write."""
        return sum(unit.output_size for unit in self.units)

    @property
    def output_runs(self) -> Iterator[Run]:
        """Runs of the new image it writes, in the order `output_sha256` is taken over them."""
        return (run for unit in self.units for run in unit.output)

    @property
    def coders(self) -> frozenset[str]:
        """Names of the coders it takes to decode it."""
        return frozenset(stream.coder for stream in self.streams) | frozenset(unit.coder for unit in self.units)


@dataclass(frozen=True)
class DeltaHeader:
    """Everything about a delta but the bytes of its segments."""

    source_size: int
    target_size: int
    #: Ascending in the target.
    copies: Sequence[CopyRun]
    #: In file order, without gaps.
    segments: Sequence[Segment]

    @property
    def coders(self) -> tuple[str, ...]:
        """Names of all coders a device must have, sorted."""
        return tuple(sorted({name for segment in self.segments for name in segment.coders}))

    @cached_property
    def written(self) -> Sequence[Run]:
        """Runs of the new image that copies and units write, ascending, neighbours joined."""
        runs: list[Run] = []
        for offset, size in sorted(_writes(self.copies, self.segments)):
            if runs and runs[-1].end == offset:
                runs[-1] = Run(runs[-1].offset, runs[-1].size + size)
            else:
                runs.append(Run(offset, size))
        return runs

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


def _writes(copies: Iterable[CopyRun], segments: Iterable[Segment]) -> Iterator[tuple[int, int]]:
    yield from ((copy.target, copy.size) for copy in copies)
    for segment in segments:
        yield from segment.output_runs


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
    names = header.coders
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
        _append_segment(body, segment, grain, number_of)
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


def _append_segment(body: bytearray, segment: Segment, grain: int, number_of: dict[str, int]) -> None:
    body += segment.sha256 + segment.output_sha256
    append_varint(body, len(segment.streams))
    for stream in segment.streams:
        append_varint(body, number_of[stream.coder])
        append_varint(body, stream.size)
        append_varint(body, stream.decoded_size)
    append_varint(body, len(segment.units))
    position = {"output": 0, "window": 0}
    for unit in segment.units:
        append_varint(body, number_of[unit.coder])
        for kind, runs in (("output", unit.output), ("window", unit.window)):
            append_varint(body, len(runs))
            for run in runs:
                append_signed(body, (run.offset - position[kind]) // grain)
                append_varint(body, run.size // grain)
                position[kind] = run.end
        for part in unit.parts:
            append_varint(body, part)


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
    if body_size > MAX_HEADER_DECODED or packed_size > body_size + _PACKING_SLACK:
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


def unpack_lzma2(packed: bytes, size: int) -> bytes:
    """Return the `size` bytes that the raw LZMA2 stream `packed` holds.

    Raises:
        MalformedDeltaError: The bytes are not exactly one stream of that size.
    """
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_DECODER_FILTERS)
    try:
        # One byte more than stated is asked for, so that a longer stream shows.
        data = decoder.decompress(packed, max_length=size + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise MalformedDeltaError("an LZMA2 stream is damaged") from error
    if len(data) != size or not decoder.eof or decoder.unused_data:
        raise MalformedDeltaError(f"an LZMA2 stream does not hold the {size} bytes it states")
    return data


class _Bounds:
    """Counts runs as they are read and keeps each of them inside its image."""

    def __init__(self, reader: VarintReader, *, grain: int, source_size: int, target_size: int) -> None:
        self.reader = reader
        self.grain = grain
        self.sizes = {"source": source_size, "target": target_size}
        self.runs_left = MAX_RUNS

    def run(self, offset: int, size: int, *, image: str) -> Run:
        self.runs_left -= 1
        if self.runs_left < 0:
            raise MalformedDeltaError(f"it has more than {MAX_RUNS} runs")
        run = Run(offset * self.grain, size * self.grain)
        if size <= 0 or offset < 0 or run.end > self.sizes[image]:
            raise MalformedDeltaError(f"a run of {run.size} bytes at {run.offset} is not inside its {image}")
        return run

    def runs(self, position: int, *, image: str, limit: int) -> tuple[tuple[Run, ...], int]:
        """Read runs of at most `limit` bytes; return them and, in grains, where the last one ends."""
        runs: list[Run] = []
        total = 0
        for _ in range(self.reader.count(item_bytes=2)):
            position += self.reader.signed()
            size = self.reader.number()
            runs.append(self.run(position, size, image=image))
            position += size
            total += size * self.grain
            if total > limit:
                raise MalformedDeltaError(f"a unit needs more than {limit} bytes of its {image}")
        return tuple(runs), position


def _parse_body(body: bytes, file_offset: int) -> DeltaHeader:
    reader = VarintReader(body)
    grain, source_grains, target_grains = (reader.number() for _ in range(3))
    if grain == 0:
        raise MalformedDeltaError("its grain is zero")
    if grain * max(source_grains, target_grains) > MAX_IMAGE_SIZE:
        raise MalformedDeltaError(f"it states images of {source_grains} and {target_grains} times {grain} bytes")
    bounds = _Bounds(reader, grain=grain, source_size=grain * source_grains, target_size=grain * target_grains)
    names = tuple(_parse_name(reader) for _ in range(reader.count()))
    copies = _parse_copies(bounds)
    segments: list[Segment] = []
    for _ in range(reader.count(item_bytes=2 * _DIGEST_SIZE)):
        segments.append(_parse_segment(bounds, names, file_offset))
        file_offset = segments[-1].end
    if reader.remaining:
        raise MalformedDeltaError("its header goes on behind its last entry")
    position = 0
    for offset, size in sorted(_writes(copies, segments)):
        if offset < position:
            raise MalformedDeltaError(f"it writes the byte at {offset} twice")
        position = offset + size
    return DeltaHeader(
        source_size=bounds.sizes["source"], target_size=bounds.sizes["target"], copies=copies, segments=segments
    )


def _parse_name(reader: VarintReader) -> str:
    try:
        return reader.take(reader.count()).decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedDeltaError("the name of a coder is not ASCII") from error


def _parse_copies(bounds: _Bounds) -> list[CopyRun]:
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


def _parse_segment(bounds: _Bounds, names: tuple[str, ...], file_offset: int) -> Segment:
    reader = bounds.reader
    sha256, output_sha256 = reader.take(_DIGEST_SIZE), reader.take(_DIGEST_SIZE)
    count = reader.count(item_bytes=3)
    if count > _MAX_STREAMS:
        raise MalformedDeltaError(f"a segment has {count} streams")
    streams = tuple(Stream(_name_at(reader, names), reader.number(), reader.number()) for _ in range(count))
    size = sum(stream.size for stream in streams)
    decoded_size = sum(stream.decoded_size for stream in streams)
    if size > MAX_SEGMENT_SIZE or decoded_size > MAX_SEGMENT_DECODED:
        raise MalformedDeltaError(f"a segment states the sizes {size} and {decoded_size}")
    units: list[Unit] = []
    written = seen = 0
    for _ in range(reader.count(item_bytes=5)):
        coder = _name_at(reader, names)
        output, written = bounds.runs(written, image="target", limit=MAX_UNIT_OUTPUT)
        if not output:
            raise MalformedDeltaError("a unit writes nothing")
        window, seen = bounds.runs(seen, image="source", limit=MAX_UNIT_WINDOW)
        units.append(Unit(coder, output, window, tuple(reader.number() for _ in streams)))
    for number, stream in enumerate(streams):
        if sum(unit.parts[number] for unit in units) != stream.decoded_size:
            raise MalformedDeltaError("the units of a segment do not use up its bytes")
    return Segment(file_offset, size, sha256, output_sha256, streams, tuple(units))


def _name_at(reader: VarintReader, names: tuple[str, ...]) -> str:
    number = reader.number()
    if number >= len(names):
        raise MalformedDeltaError(f"it uses coder number {number} of {len(names)}")
    return names[number]
