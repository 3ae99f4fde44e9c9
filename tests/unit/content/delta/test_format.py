import contextlib
import lzma
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.format import CopyRun, DeltaHeader, header_size_of, read_header, write_header
from overhaul.content.delta.segments import (
    MAX_SEGMENT_DECODED,
    MAX_UNIT_OUTPUT,
    MAX_UNIT_WINDOW,
    Run,
    Segment,
    Stream,
    Unit,
)

_IMAGE_SIZE = 16 * 1024 * 1024


def _segment(
    *,
    output: tuple[Run, ...] = (Run(0, 4096),),
    window: tuple[Run, ...] = (Run(4096, 4096),),
    size: int = 10,
    decoded_size: int = 20,
    parts: tuple[int, ...] | None = None,
    coder: str = "covers",
) -> Segment:
    unit = Unit(coder, output, window, (decoded_size,) if parts is None else parts)
    return Segment(0, size, b"s" * 32, b"o" * 32, (Stream("lzma2", size, decoded_size),), (unit,))


def _header(*segments: Segment, copies: tuple[CopyRun, ...] = ()) -> DeltaHeader:
    return DeltaHeader(source_size=_IMAGE_SIZE, target_size=_IMAGE_SIZE, copies=copies, segments=segments)


@st.composite
def headers(draw: st.DrawFn) -> DeltaHeader:
    """Return headers whose writes share out the target at random."""
    grain = draw(st.sampled_from([1, 512, 4096]))
    chance = draw(st.randoms(use_true_random=False))
    source_size, target_size = grain * chance.randrange(200, 400), grain * chance.randrange(200, 400)
    free = [Run(grain * n, grain) for n in range(target_size // grain)]
    copies = []
    units: list[list[Unit]] = [[] for _ in range(draw(st.integers(0, 3)))]
    while free:
        run = free.pop(0)
        way = chance.randrange(3)
        if way == 0:
            copies.append(CopyRun(run.offset, grain * chance.randrange(source_size // grain), grain))
        elif way == 1 and units:
            size = chance.randrange(1, 5)
            window = tuple(Run(grain * chance.randrange(100), grain * size) for _ in range(chance.randrange(3)))
            coder = chance.choice(["covers", "later-coder"])
            chance.choice(units).append(Unit(coder, (run,), window, (chance.randrange(99), chance.randrange(9))))
    segments = []
    for mine in units:
        first, second = (sum(unit.parts[number] for unit in mine) for number in range(2))
        streams = (Stream("lzma2", chance.randrange(1000), first), Stream("stored", second, second))
        size = sum(stream.size for stream in streams)
        segments.append(Segment(0, size, chance.randbytes(32), chance.randbytes(32), streams, tuple(mine)))
    return DeltaHeader(source_size=source_size, target_size=target_size, copies=copies, segments=segments)


@settings(max_examples=50)
@given(headers())
def test_a_header_comes_back_as_it_was_written(header: DeltaHeader) -> None:
    data = write_header(header)
    back = read_header(data)
    assert header_size_of(data[:16]) == len(data)
    assert (back.source_size, back.target_size, back.copies) == (header.source_size, header.target_size, header.copies)
    offset = len(data)
    for ours, theirs in zip(header.segments, back.segments, strict=True):
        assert theirs.offset == offset
        assert (theirs.streams, theirs.units) == (ours.streams, ours.units)
        assert (theirs.sha256, theirs.output_sha256) == (ours.sha256, ours.output_sha256)
        offset = theirs.end


@settings(max_examples=30)
@given(headers())
def test_zeros_and_writes_share_out_the_target(header: DeltaHeader) -> None:
    position = 0
    for run in sorted([*header.written, *header.zeros]):
        assert run.offset == position
        position = run.end
    assert position == header.target_size
    assert sum(run.size for run in header.written) == sum(copy.size for copy in header.copies) + sum(
        segment.output_size for segment in header.segments
    )


def test_a_header_cut_at_any_length_is_refused() -> None:
    data = write_header(_header(_segment(), copies=(CopyRun(8192, 0, 4096),)))
    for length in range(len(data)):
        with pytest.raises(MalformedDeltaError):
            read_header(data[:length])
    with pytest.raises(MalformedDeltaError):
        read_header(data + b"x")


def test_a_header_with_any_byte_of_it_changed_is_refused_or_read_within_bounds() -> None:
    data = write_header(_header(_segment(), copies=(CopyRun(8192, 0, 4096), CopyRun(65536, 8192, 4096))))
    for place in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            try:
                header = read_header(bytes(changed))
            except MalformedDeltaError:
                continue
            assert all(run.end <= header.target_size for run in header.written)
            assert all(copy.source + copy.size <= header.source_size for copy in header.copies)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (_header(_segment(), copies=(CopyRun(0, 8192, 4096),)), "writes the byte at 0 twice"),
        (_header(_segment(), _segment()), "writes the byte at 0 twice"),
        (_header(copies=(CopyRun(_IMAGE_SIZE, 0, 4096),)), "not inside its target"),
        (_header(copies=(CopyRun(0, _IMAGE_SIZE - 4096, 8192),)), "not inside its source"),
        (_header(copies=(CopyRun(0, 0, 0),)), "not inside its target"),
        (_header(_segment(output=(Run(_IMAGE_SIZE - 4096, 8192),))), "not inside its target"),
        (_header(_segment(output=())), "writes nothing"),
        (_header(_segment(output=(Run(0, MAX_UNIT_OUTPUT + 4096),))), "bytes of its target"),
        (_header(_segment(window=(Run(0, MAX_UNIT_WINDOW), Run(0, 4096)))), "bytes of its source"),
        (_header(_segment(decoded_size=MAX_SEGMENT_DECODED + 1)), "states the sizes"),
        (_header(_segment(size=MAX_SEGMENT_DECODED * 2)), "states the sizes"),
        (_header(_segment(parts=(19,))), "do not use up"),
        (_header(_segment(parts=(21,))), "do not use up"),
    ],
)
def test_a_header_that_asks_for_the_impossible_is_refused(header: DeltaHeader, reason: str) -> None:
    with pytest.raises(MalformedDeltaError, match=reason):
        read_header(write_header(header))


def test_sizes_that_are_not_granted_are_refused_before_unpacking() -> None:
    packed = lzma.compress(bytes(8_000_000), lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4 << 20}])
    with pytest.raises(MalformedDeltaError, match="states the sizes"):
        read_header(struct.pack("<8sII", b"OVHDLT02", len(packed), 8_000_000) + packed)
    with pytest.raises(MalformedDeltaError, match="does not hold the 1000000 bytes"):
        read_header(struct.pack("<8sII", b"OVHDLT02", len(packed), 1_000_000) + packed)


def test_another_magic_is_refused() -> None:
    data = write_header(_header(_segment()))
    with pytest.raises(MalformedDeltaError, match="begin like a delta"):
        read_header(b"OVHDLT03" + data[8:])


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_any_body_is_refused_or_read(body: bytes) -> None:
    packed = lzma.compress(body, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4 << 20}])
    with contextlib.suppress(MalformedDeltaError):
        read_header(struct.pack("<8sII", b"OVHDLT02", len(packed), len(body)) + packed)


def test_the_order_of_segments_decides_their_place_in_the_file() -> None:
    chance = random.Random(4)
    segments = [_segment(output=(Run(4096 * n, 4096),), size=chance.randrange(1, 99)) for n in range(5)]
    data = write_header(_header(*segments))
    assert [s.offset for s in read_header(data).segments] == [
        len(data) + sum(s.size for s in segments[:n]) for n in range(5)
    ]
