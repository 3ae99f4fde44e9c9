"""Indexes, frame tables and zstd frames."""

import random

from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.frames import Frame, MalformedFrameTableError, read_frames, write_frames
from overhaul.content.index import Chunk, Index, MalformedIndexError, chunk_id, read_index, write_index
from overhaul.content.zstd import (
    MalformedFrameError,
    compress_frame,
    compress_with_prefix,
    decompress_frame,
    decompress_with_prefix,
)
from tests.fuzz.mutations import fuzzing, judged, mutated, outside_bytes

_CHUNKS = [Chunk(0, 70_000, chunk_id(b"a")), Chunk(70_000, 1, chunk_id(b"b")), Chunk(70_001, 262_144, chunk_id(b"c"))]
_INDEX = write_index(Index(_CHUNKS))
_TABLE = write_frames([Frame(chunk.id, bytes(32), 0, 100, min(chunk.size, 262_144)) for chunk in _CHUNKS])
_CONTENT = (b"some words that come again " * 60, random.Random(4).randbytes(2000), b"x", bytes(200_000), b"")
_FRAMES = tuple(compress_frame(content, level=level) for content in _CONTENT for level in (1, 19))
_PREFIX = b"some words and others " * 40
_DIFFERENCES = tuple(compress_with_prefix(content, _PREFIX, level=3) for content in _CONTENT)
_sizes = st.sampled_from([len(content) for content in _CONTENT]) | st.integers(0, 300_000)


@fuzzing(240)
@given(outside_bytes(_INDEX, write_index(Index([]))))
def test_an_index_is_read_or_refused(data: bytes) -> None:
    index = judged(lambda: read_index(data), refusal=MalformedIndexError)
    if index is None:
        return
    position = 0
    for chunk in index:
        assert chunk.offset == position
        assert 0 < chunk.size <= 128 << 20
        assert len(chunk.id) == 32
        position = chunk.end
    assert index.size == position


@fuzzing(240)
@given(outside_bytes(_TABLE, write_frames([])))
def test_a_frame_table_is_read_or_refused(data: bytes) -> None:
    frames = judged(lambda: read_frames(data), refusal=MalformedFrameTableError)
    position = 0
    for frame in frames or ():
        assert frame.offset == position
        assert frame.size > 0
        assert 0 < frame.chunk_size <= 256 << 10
        position = frame.end


@fuzzing(210)
@given(outside_bytes(*_FRAMES, *_DIFFERENCES), _sizes, st.none() | _sizes)
def test_a_zstd_frame_holds_the_size_wanted_or_is_refused(data: bytes, size: int, window: int | None) -> None:
    content = judged(lambda: decompress_frame(data, size=size, window_size=window), refusal=MalformedFrameError)
    assert content is None or len(content) == size


@fuzzing(150)
@given(outside_bytes(*_FRAMES, *_DIFFERENCES), st.just(_PREFIX) | mutated(_PREFIX) | st.binary(max_size=12), _sizes)
def test_a_frame_on_a_prefix_holds_the_size_wanted_or_is_refused(data: bytes, prefix: bytes, size: int) -> None:
    content = judged(lambda: decompress_with_prefix(data, prefix, size=size), refusal=MalformedFrameError)
    assert content is None or len(content) == size
