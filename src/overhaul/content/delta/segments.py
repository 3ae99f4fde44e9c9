"""The parts every delta is made of: runs of bytes, units that compute some, and the segments that carry units.

How a segment stands in the header is drawn in `format`. The same layout serves for segments that write an image and
for those that write a work area (`groups`): `Bounds` says how big the two places are that its numbers lead to.
"""

import lzma
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.varints import VarintReader, append_signed, append_varint

DIGEST_SIZE = 32
#: Compressing never adds more than this to what does not compress.
PACKING_SLACK = 64 * 1024
#: Copies, moves, output runs and window runs of a delta, all together.
MAX_RUNS = 1 << 17
MAX_SEGMENT_DECODED = 4 * 1024 * 1024
MAX_SEGMENT_SIZE = MAX_SEGMENT_DECODED + PACKING_SLACK
MAX_UNIT_OUTPUT = 2 * 1024 * 1024
MAX_UNIT_WINDOW = 4 * 1024 * 1024
_MAX_STREAMS = 16
#: Dictionary of every LZMA2 stream in a delta, and so the memory its decoder takes.
LZMA2_DICTIONARY = 4 * 1024 * 1024
_DECODER_FILTERS = ({"id": lzma.FILTER_LZMA2, "dict_size": LZMA2_DICTIONARY},)


class Run(NamedTuple):
    """Bytes that lie together in an image."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        """The offset of the first byte behind the run."""
        return self.offset + self.size


def join_runs(runs: Iterable[tuple[int, int]]) -> list[Run]:
    """Return ascending (offset, size) runs with neighbours joined."""
    joined: list[Run] = []
    for offset, size in runs:
        if joined and joined[-1].end == offset:
            joined[-1] = Run(joined[-1].offset, joined[-1].size + size)
        else:
            joined.append(Run(offset, size))
    return joined


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


def append_segment(body: bytearray, segment: Segment, *, grain: int, number_of: Mapping[str, int]) -> None:
    """Append what the header says of `segment`; `number_of` gives the numbers of coder names."""
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


class RunBudget:
    """Counts the runs of a header as they are read, so that their number is bounded over all of its parts."""

    def __init__(self) -> None:
        self._left = MAX_RUNS

    def take(self) -> None:
        """Take one."""
        self._left -= 1
        if self._left < 0:
            raise MalformedDeltaError(f"it has more than {MAX_RUNS} runs")


class Bounds:
    """Keeps each run that is read inside the place it leads to."""

    def __init__(
        self, reader: VarintReader, budget: RunBudget, *, grain: int, source_size: int, target_size: int
    ) -> None:
        self.reader = reader
        self.budget = budget
        self.grain = grain
        self.sizes = {"source": source_size, "target": target_size}

    def run(self, offset: int, size: int, *, image: str) -> Run:
        """Return the run at `offset`, both in grains, of `image`: `source` or `target`."""
        self.budget.take()
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


def parse_segment(bounds: Bounds, names: tuple[str, ...], file_offset: int) -> Segment:
    """Return the next segment; its bytes lie at `file_offset` of the delta file.

    Raises:
        MalformedDeltaError: It asks for something impossible or too much.
    """
    reader = bounds.reader
    sha256, output_sha256 = reader.take(DIGEST_SIZE), reader.take(DIGEST_SIZE)
    count = reader.count(item_bytes=3)
    if count > _MAX_STREAMS:
        raise MalformedDeltaError(f"a segment has {count} streams")
    streams = tuple(Stream(name_at(reader, names), reader.number(), reader.number()) for _ in range(count))
    size = sum(stream.size for stream in streams)
    decoded_size = sum(stream.decoded_size for stream in streams)
    if size > MAX_SEGMENT_SIZE or decoded_size > MAX_SEGMENT_DECODED:
        raise MalformedDeltaError(f"a segment states the sizes {size} and {decoded_size}")
    units: list[Unit] = []
    written = seen = 0
    for _ in range(reader.count(item_bytes=5)):
        coder = name_at(reader, names)
        output, written = bounds.runs(written, image="target", limit=MAX_UNIT_OUTPUT)
        if not output:
            raise MalformedDeltaError("a unit writes nothing")
        window, seen = bounds.runs(seen, image="source", limit=MAX_UNIT_WINDOW)
        units.append(Unit(coder, output, window, tuple(reader.number() for _ in streams)))
    for number, stream in enumerate(streams):
        if sum(unit.parts[number] for unit in units) != stream.decoded_size:
            raise MalformedDeltaError("the units of a segment do not use up its bytes")
    return Segment(file_offset, size, sha256, output_sha256, streams, tuple(units))


def name_at(reader: VarintReader, names: tuple[str, ...]) -> str:
    """Return the coder name whose number comes next."""
    number = reader.number()
    if number >= len(names):
        raise MalformedDeltaError(f"it uses coder number {number} of {len(names)}")
    return names[number]
