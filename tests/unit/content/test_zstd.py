"""Frames are decoded within stated bounds or not at all."""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content import zstd
from overhaul.content.zstd import (
    MalformedFrameError,
    compress_frame,
    compress_with_prefix,
    decompress_frame,
    decompress_with_prefix,
)


def _text(size: int, seed: int = 1) -> bytes:
    """Return bytes that compress, but not to nothing."""
    words = [random.Random(seed).randbytes(7) for _ in range(50)]
    chosen = random.Random(seed + 1).choices(words, k=size // 7 + 1)
    return b"".join(chosen)[:size]


def _frame_of_unknown_size(data: bytes, window_log: int) -> bytes:
    """Return a frame as a stream encoder writes it that does not know how much will come."""
    compressor = zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.window_log: window_log,
            zstd.CompressionParameter.content_size_flag: 0,
        }
    )
    return compressor.compress(data) + compressor.flush()


@given(st.binary(max_size=3000), st.integers(1, 5))
def test_a_frame_decodes_to_what_was_encoded(data: bytes, level: int) -> None:
    assert data == decompress_frame(compress_frame(data, level=level), size=len(data))


@given(st.binary(max_size=3000), st.binary(max_size=3000))
def test_a_prefix_frame_decodes_with_the_same_prefix(data: bytes, prefix: bytes) -> None:
    frame = compress_with_prefix(data, prefix, level=3)

    assert data == decompress_with_prefix(frame, prefix, size=len(data))


def test_a_prefix_spares_the_bytes_it_already_has() -> None:
    old = random.Random(5).randbytes(300_000)

    assert len(compress_with_prefix(old[1000:] + b"new", old, level=3)) < 300


def test_a_frame_does_not_depend_on_what_was_encoded_before() -> None:
    data = _text(100_000)
    first = compress_frame(data, level=3)
    compress_frame(random.Random(7).randbytes(200_000), level=3)
    compress_frame(bytes(50_000), level=3)

    assert first == compress_frame(data, level=3)


def test_threads_encode_at_the_same_time_without_mixing() -> None:
    inputs = [_text(30_000, seed) for seed in range(40)]
    expected = [compress_frame(data, level=3) for data in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda data: compress_frame(data, level=3), inputs))

    assert expected == found


def test_a_frame_states_the_size_of_its_content() -> None:
    assert zstd.get_frame_info(compress_frame(_text(70_000), level=3)).decompressed_size == 70_000


@pytest.mark.parametrize("size", [0, 1, 999, 1001, 1 << 20])
def test_a_frame_of_another_size_is_refused(size: int) -> None:
    frame = compress_frame(_text(1000), level=3)

    with pytest.raises(MalformedFrameError, match="states 1000 bytes"):
        decompress_frame(frame, size=size)


@pytest.mark.parametrize("size", [0, 1, 99_999])
def test_a_frame_that_hides_its_size_and_decodes_to_more_is_refused(size: int) -> None:
    with pytest.raises(MalformedFrameError, match="more than"):
        decompress_frame(_frame_of_unknown_size(_text(100_000), 17), size=size, window_size=1 << 17)


def test_a_frame_that_hides_its_size_and_decodes_to_less_is_refused() -> None:
    with pytest.raises(MalformedFrameError, match="to 100000 bytes instead of 100001"):
        decompress_frame(_frame_of_unknown_size(_text(100_000), 17), size=100_001)


def test_a_window_beyond_the_bound_is_refused() -> None:
    data = _text(100_000)
    frame = _frame_of_unknown_size(data, 23)

    assert data == decompress_frame(frame, size=len(data), window_size=1 << 23)
    with pytest.raises(MalformedFrameError, match="window"):
        decompress_frame(frame, size=len(data))


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    bomb = _frame_of_unknown_size(bytes(64 << 20), 17)

    with pytest.raises(MalformedFrameError, match="more than 1000 bytes"):
        decompress_frame(bomb, size=1000, window_size=1 << 17)


@pytest.mark.parametrize("tail", [b"\0", b"garbage", compress_frame(b"", level=3), b"\x50\x2a\x4d\x18\0\0\0\0"])
def test_bytes_behind_the_frame_are_refused(tail: bytes) -> None:
    with pytest.raises(MalformedFrameError, match="follow it"):
        decompress_frame(compress_frame(_text(1000), level=3) + tail, size=1000)


def test_a_skippable_frame_is_refused() -> None:
    with pytest.raises(MalformedFrameError, match="begin"):
        decompress_frame(b"\x50\x2a\x4d\x18\4\0\0\0abcd", size=0)


def test_a_frame_truncated_anywhere_is_refused() -> None:
    data = _text(2000)
    frame = compress_frame(data, level=3)
    for length in range(len(frame)):
        with pytest.raises(MalformedFrameError):
            decompress_frame(frame[:length], size=len(data))


def test_a_flipped_bit_is_refused_or_decodes_to_other_bytes_of_the_stated_size() -> None:
    data = _text(2000)
    frame = compress_frame(data, level=3)
    refused = 0
    for position in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[position // 8] ^= 1 << position % 8
        try:
            assert len(decompress_frame(damaged, size=len(data))) == len(data)
        except MalformedFrameError:
            refused += 1

    assert refused > len(frame)


def test_a_prefix_frame_truncated_anywhere_is_refused() -> None:
    prefix = _text(3000, 3)
    frame = compress_with_prefix(prefix[:1500] + _text(500), prefix, level=3)
    for length in range(len(frame)):
        with pytest.raises(MalformedFrameError):
            decompress_with_prefix(frame[:length], prefix, size=2000)


def test_a_prefix_frame_with_another_prefix_never_yields_the_data() -> None:
    prefix = random.Random(5).randbytes(5000)
    data = prefix[100:4000]
    frame = compress_with_prefix(data, prefix, level=3)
    try:
        found = decompress_with_prefix(frame, prefix[::-1], size=len(data))
    except MalformedFrameError:
        return

    assert found != data
