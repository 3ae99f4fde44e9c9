import contextlib
import lzma
import os

import pytest

from overhaul.content.delta.coders import KNOWN_CODERS, compute_unit, decode_streams
from overhaul.content.delta.covers import encode_covers
from overhaul.content.delta.errors import MalformedDeltaError, UnknownCoderError
from overhaul.content.delta.segments import LZMA2_DICTIONARY, Run, Stream, Unit
from overhaul.content.zstd import compress_with_prefix
from overhaul.errors import TrustError


def _pack(data: bytes, *, dictionary: int = LZMA2_DICTIONARY) -> bytes:
    return lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": dictionary}])


def test_streams_are_decoded_from_where_they_lie() -> None:
    first, second = _pack(b"control" * 500), b"stored bytes"
    streams = (Stream("lzma2", len(first), 3500), Stream("stored", len(second), len(second)), Stream("stored", 0, 0))
    assert decode_streams(streams, first + second) == [b"control" * 500, second, b""]


@pytest.mark.parametrize("stated", [0, 99, 101, 1_000_000])
def test_a_stream_of_another_size_than_stated_is_refused(stated: int) -> None:
    packed = _pack(b"x" * 100)
    with pytest.raises(MalformedDeltaError, match="it states"):
        decode_streams((Stream("lzma2", len(packed), stated),), packed)
    with pytest.raises(MalformedDeltaError):
        decode_streams((Stream("stored", 100, stated),), b"x" * 100)


def test_a_stream_that_unpacks_without_end_stops_at_its_stated_size() -> None:
    bomb = _pack(bytes(20_000_000))
    with pytest.raises(MalformedDeltaError):
        decode_streams((Stream("lzma2", len(bomb), 1000),), bomb)


def test_a_stream_cut_or_damaged_anywhere_is_refused_or_keeps_its_size() -> None:
    data = os.urandom(50) + b"abc" * 100
    packed = _pack(data)
    for length in range(len(packed)):
        with pytest.raises(MalformedDeltaError):
            decode_streams((Stream("lzma2", length, len(data)),), packed[:length])
    for place in range(len(packed)):
        changed = bytearray(packed)
        changed[place] ^= 0x10
        with contextlib.suppress(MalformedDeltaError):
            assert len(decode_streams((Stream("lzma2", len(packed), len(data)),), bytes(changed))[0]) == len(data)


def test_unknown_names_are_refused_by_name() -> None:
    assert {"covers", "zstd-prefix", "lzma2", "stored"} == KNOWN_CODERS
    with pytest.raises(UnknownCoderError, match="'brotli'"):
        decode_streams((Stream("brotli", 1, 1),), b"x")
    with pytest.raises(UnknownCoderError, match="'rebuild-gzip'"):
        compute_unit(Unit("rebuild-gzip", (Run(0, 1),), (), (0, 0, 0, 0)), b"", (b"",) * 4)


def test_units_of_both_coders_give_their_bytes() -> None:
    window = os.urandom(5000)
    new = window[1000:4000] + b"!"
    covers = Unit("covers", (Run(0, len(new)),), (Run(0, 5000),), (0, 0, 0, 0))
    assert compute_unit(covers, window, (*encode_covers(new, window, []), b"")) == new
    frame = compress_with_prefix(new, window, level=3)
    assert len(frame) < 100
    prefix = Unit("zstd-prefix", (Run(0, len(new)),), (Run(0, 5000),), (0, 0, 0, len(frame)))
    assert compute_unit(prefix, window, (b"", b"", b"", frame)) == new
    with pytest.raises(TrustError):
        compute_unit(Unit("zstd-prefix", (Run(0, 10),), (), (0, 0, 0, 0)), window, (b"", b"", b"", frame))


@pytest.mark.parametrize("coder", ["covers", "zstd-prefix"])
def test_a_unit_without_all_of_its_parts_is_refused(coder: str) -> None:
    with pytest.raises(MalformedDeltaError):
        compute_unit(Unit(coder, (Run(0, 1),), (), ()), b"", ())
