"""Deltas that carry right digests, as whoever holds the keys could make them.

Headers are spoilt below their packing, payloads below their compression, and every digest is made to fit.
"""

import hashlib
import lzma
import random
import struct
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.delta.apply import apply_copies, apply_segment, segment_is_done
from overhaul.content.delta.covers import Cover, decode_covers, encode_covers
from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.format import MAGIC, PREFIX_SIZE, CopyRun, DeltaHeader, read_header, write_header
from overhaul.content.delta.segments import (
    MAX_RUNS,
    MAX_SEGMENT_DECODED,
    MAX_SEGMENT_SIZE,
    MAX_UNIT_OUTPUT,
    MAX_UNIT_WINDOW,
    Run,
    Segment,
    Stream,
    Unit,
)
from overhaul.content.delta.varints import append_varint
from overhaul.content.zstd import MalformedFrameError, compress_with_prefix
from overhaul.progress import Silence
from tests.fuzz.mutations import fuzzing, judged, mutated, outside_bytes

_SIZE = 64 * 1024
_chance = random.Random(8)
_OLD = _chance.randbytes(_SIZE // 2) + bytes(_SIZE // 2)
_COVERED = _OLD[100:3000] + b"new bytes" + bytes(byte ^ (place % 40 == 0) for place, byte in enumerate(_OLD[5000:6000]))
_WINDOW = _OLD[:8192]
_COVER_PARTS = encode_covers(_COVERED, _WINDOW, [Cover(0, 100, 2900), Cover(2909, 5000, 1000)])
_PREFIXED = _OLD[8192:12000] + b"and more"
_FRAME = compress_with_prefix(_PREFIXED, _OLD[8192:16384], level=3)

_UNITS = (
    Unit(
        "covers",
        (Run(20_000, 2000), Run(0, len(_COVERED) - 2000)),
        (Run(0, 8192),),
        (*(len(part) for part in _COVER_PARTS), 0),
    ),
    Unit("zstd-prefix", (Run(30_000, len(_PREFIXED)),), (Run(8192, 4096), Run(12288, 4096)), (0, 0, 0, len(_FRAME))),
)
_PARTS = (*_COVER_PARTS, _FRAME)


def _packed(data: bytes, *, dictionary: int = 4 << 20) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": dictionary}])


def _segment(parts: Iterable[bytes], units: tuple[Unit, ...] = _UNITS) -> tuple[Segment, bytes]:
    """Return a segment with right digests, and its payload."""
    streams, payload = [], b""
    for number, data in enumerate(parts):
        coder, packed = ("lzma2", _packed(data)) if number % 2 == 0 else ("stored", data)
        streams.append(Stream(coder, len(packed), len(data)))
        payload += packed
    return Segment(0, len(payload), hashlib.sha256(payload).digest(), bytes(32), tuple(streams), units), payload


_SEGMENT, _PAYLOAD = _segment(_PARTS)
_COPIES = (CopyRun(40_000, 100, 5000), CopyRun(50_000, 0, 10_000))


def _header(segment: Segment = _SEGMENT) -> bytes:
    return write_header(DeltaHeader(source_size=_SIZE, target_size=_SIZE, copies=_COPIES, segments=[segment]))


def _body(header: bytes) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4 << 20}])
    return decoder.decompress(header[PREFIX_SIZE:])


def _around(body: bytes) -> bytes:
    packed = _packed(body)
    return struct.pack("<8sII", MAGIC, len(packed), len(body)) + packed


def _numbers(values: Iterable[int | bytes]) -> bytes:
    body = bytearray()
    for value in values:
        if isinstance(value, bytes):
            body += value
        else:
            append_varint(body, value)
    return bytes(body)


_COARSE = write_header(
    DeltaHeader(
        source_size=1 << 30,
        target_size=1 << 30,
        copies=[CopyRun(4096 * number, 8192 * number, 4096) for number in range(1, 40, 2)],
        segments=[],
    )
)
_invented = st.lists(
    st.integers(0, 6) | st.sampled_from([127, 128, 1 << 20, (1 << 40), (1 << 62), (1 << 63) - 1]) | st.just(bytes(32)),
    max_size=60,
).map(_numbers)
#: Valid up to the segments, so that these are looked at.
_later = st.lists(st.integers(0, 5) | st.sampled_from([1 << 17, 1 << 40]) | st.just(bytes(32)), max_size=60).map(
    lambda rest: _numbers([4096, 9, 9, 1, 6, b"covers", 0, 1, *rest])
)


class _Image:
    """An image in memory; reading beyond its end gives zeros, as a slot does."""

    def __init__(self, data: bytes, writable: Iterable[Run] = ()) -> None:
        self.data = bytearray(data)
        self.writable = set().union(*(range(run.offset, run.end) for run in writable))
        self.written_bytes = 0

    def read(self, offset: int, size: int, /) -> bytes:
        """Return bytes, as many as asked for."""
        assert offset >= 0
        assert 0 <= size <= MAX_UNIT_WINDOW
        return bytes(self.data[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes, /) -> None:
        """Put bytes where it is allowed, and nowhere twice."""
        places = set(range(offset, offset + len(data)))
        assert places <= self.writable
        self.writable -= places
        self.written_bytes += len(data)
        self.data[offset : offset + len(data)] = data


@fuzzing(300)
@given(
    st.one_of(
        outside_bytes(_header(), _COARSE),
        mutated(_body(_header())).map(_around),
        mutated(_body(_COARSE)).map(_around),
        _invented.map(_around),
        _later.map(_around),
    )
)
def test_a_header_is_read_or_refused_and_keeps_its_limits(data: bytes) -> None:
    header = judged(lambda: read_header(data), refusal=MalformedDeltaError)
    if header is None:
        return
    # What is read at an offset must be an offset for the system.
    assert max(header.source_size, header.target_size) < 1 << 63
    position = 0
    for run in header.written:
        assert position <= run.offset < run.end <= header.target_size
        position = run.end
    sources = [Run(copy.source, copy.size) for copy in header.copies]
    for segment in header.segments:
        assert segment.offset >= len(data)
        assert segment.size <= MAX_SEGMENT_SIZE
        assert segment.decoded_size <= MAX_SEGMENT_DECODED
        for unit in segment.units:
            assert 0 < unit.output_size <= MAX_UNIT_OUTPUT
            assert unit.window_size <= MAX_UNIT_WINDOW
            sources.extend(unit.window)
    assert all(0 <= run.offset < run.end <= header.source_size for run in sources)
    assert len(sources) <= MAX_RUNS
    assert sum(run.size for run in (*header.written, *header.zeros)) == header.target_size


def test_an_image_bigger_than_any_offset_is_refused() -> None:
    # A copy from there was an OverflowError of the system call.
    body = _numbers([1 << 62, 4, 2, 0, 1, 0, 1, 6, 0])
    with pytest.raises(MalformedDeltaError, match="images of 4 and 2 times"):
        read_header(_around(body))


@fuzzing(180)
@given(st.one_of(mutated(_body(_header())), mutated(_body(_header()), places=range(12, 40))).map(_around))
def test_copies_are_written_where_the_header_says_and_nowhere_else(data: bytes) -> None:
    header = judged(lambda: read_header(data), refusal=MalformedDeltaError)
    if header is None or header.target_size > 1 << 20:
        return
    target = _Image(bytes(header.target_size), [Run(copy.target, copy.size) for copy in header.copies])
    apply_copies(header, _Image(_OLD), target, Silence())
    assert not target.writable


def _apply(segment: Segment, payload: bytes, source: _Image) -> None:
    target = _Image(bytes(_SIZE), segment.output_runs)
    refusal = (MalformedDeltaError, MalformedFrameError)
    is_right = judged(lambda: apply_segment(segment, payload, source, target), refusal=refusal)
    if is_right is not None:
        assert not target.writable
        assert target.written_bytes == segment.output_size
        assert is_right == segment_is_done(segment, target)


def test_the_segment_that_is_spoilt_here_is_a_good_one() -> None:
    target = _Image(bytes(_SIZE), _SEGMENT.output_runs)
    digest = hashlib.sha256(_COVERED + _PREFIXED).digest()
    assert apply_segment(replace(_SEGMENT, output_sha256=digest), _PAYLOAD, _Image(_OLD), target)
    assert bytes(target.data[30_000 : 30_000 + len(_PREFIXED)]) == _PREFIXED
    assert read_header(_header()).segments[0].units == _UNITS


@fuzzing(120)
@given(st.integers(0, 3).flatmap(lambda number: st.tuples(st.just(number), mutated(_PARTS[number]))))
def test_what_a_payload_decodes_to_is_applied_inside_its_runs_or_refused(change: tuple[int, bytes]) -> None:
    number, data = change
    parts = [*_PARTS]
    parts[number] = data
    unit = _UNITS[number == 3]
    shares = [*unit.parts]
    shares[number] = len(data)
    units = tuple(replace(old, parts=tuple(shares)) if old is unit else old for old in _UNITS)
    _apply(*_segment(parts, units), _Image(_OLD))


@fuzzing(180)
@given(mutated(_PAYLOAD))
def test_a_payload_with_the_right_digest_is_applied_inside_its_runs_or_refused(payload: bytes) -> None:
    digest = hashlib.sha256(payload).digest()
    _apply(replace(_SEGMENT, size=len(payload), sha256=digest), payload, _Image(_OLD))


@fuzzing(60)
@given(mutated(_OLD, places=range(16384)))
def test_a_damaged_source_is_no_error_of_a_delta(source: bytes) -> None:
    _apply(_SEGMENT, _PAYLOAD, _Image(source))


@fuzzing(90)
@given(mutated(_body(_header()), places=range(12, 150)).map(_around))
def test_segments_of_a_spoilt_header_are_applied_inside_its_runs_or_refused(data: bytes) -> None:
    header = judged(lambda: read_header(data), refusal=MalformedDeltaError)
    for segment in () if header is None or header.target_size > 1 << 20 else header.segments:
        payload = _PAYLOAD[: segment.size].ljust(segment.size, b"\0")
        _apply(replace(segment, sha256=hashlib.sha256(payload).digest()), payload, _Image(_OLD))


@fuzzing(150)
@given(
    mutated(_COVER_PARTS.control, places=range(8)),
    st.just(_COVER_PARTS.difference) | st.binary(max_size=80),
    st.just(_COVER_PARTS.extra) | st.binary(max_size=20),
    st.just(_WINDOW) | st.binary(max_size=9000),
    st.just(len(_COVERED)) | st.integers(1, 10_000),
)
def test_covers_make_the_size_wanted_or_are_refused(
    control: bytes, difference: bytes, extra: bytes, window: bytes, size: int
) -> None:
    made = judged(lambda: decode_covers((control, difference, extra), window, size), refusal=MalformedDeltaError)
    assert made is None or len(made) == size
