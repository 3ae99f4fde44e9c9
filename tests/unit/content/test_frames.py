"""A frame table is read back as it was written, and never from damaged bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.frames import Frame, MalformedFrameTableError, read_frames, write_frames
from overhaul.content.index import CHUNK_SIZE_MAX

_DIGESTS = st.binary(min_size=32, max_size=32)
_SIZES = st.integers(1, (1 << 32) - 1)
_ENTRIES = st.lists(st.tuples(_DIGESTS, _DIGESTS, _SIZES, st.integers(1, CHUNK_SIZE_MAX)), max_size=20)

GOLDEN = (
    b"OVHFRM01"
    + b"\x11" * 32 + b"\x22" * 32 + b"\x05\x00\x00\x00" + b"\x00\x40\x00\x00"
    + b"\x33" * 32 + b"\x44" * 32 + b"\x07\x01\x00\x00" + b"\x00\x00\x04\x00"
)  # fmt: skip
GOLDEN_FRAMES = [
    Frame(b"\x11" * 32, b"\x22" * 32, 0, 5, 16_384),
    Frame(b"\x33" * 32, b"\x44" * 32, 5, 263, CHUNK_SIZE_MAX),
]


def _frames(entries: list[tuple[bytes, bytes, int, int]]) -> list[Frame]:
    frames = []
    offset = 0
    for identity, digest, size, chunk_size in entries:
        frames.append(Frame(identity, digest, offset, size, chunk_size))
        offset += size
    return frames


def test_the_layout_is_the_one_in_the_module_text() -> None:
    assert write_frames(GOLDEN_FRAMES) == GOLDEN
    assert read_frames(GOLDEN) == GOLDEN_FRAMES
    assert [frame.end for frame in GOLDEN_FRAMES] == [5, 268]


@given(_ENTRIES)
def test_a_table_is_read_back_as_it_was_written(entries: list[tuple[bytes, bytes, int, int]]) -> None:
    frames = _frames(entries)

    assert read_frames(write_frames(frames)) == frames


def test_a_table_truncated_within_an_entry_is_refused() -> None:
    entry_size = (len(GOLDEN) - 8) // 2
    for length in set(range(len(GOLDEN))) - {8, 8 + entry_size}:
        with pytest.raises(MalformedFrameTableError):
            read_frames(GOLDEN[:length])


def test_a_table_truncated_between_entries_lacks_the_frames_behind() -> None:
    # Only the signed digest of the table can tell; the reader must not invent anything.
    assert read_frames(GOLDEN[: 8 + (len(GOLDEN) - 8) // 2]) == GOLDEN_FRAMES[:1]


def test_a_flipped_bit_is_refused_or_changes_a_frame() -> None:
    for bit in range(len(GOLDEN) * 8):
        damaged = bytearray(GOLDEN)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = read_frames(bytes(damaged))
        except MalformedFrameTableError:
            continue
        assert found != GOLDEN_FRAMES
        assert all(0 < frame.chunk_size <= CHUNK_SIZE_MAX for frame in found)


@pytest.mark.parametrize(("size", "chunk_size"), [(0, 1), (1, 0), (1, CHUNK_SIZE_MAX + 1)])
def test_impossible_sizes_are_refused(size: int, chunk_size: int) -> None:
    with pytest.raises(MalformedFrameTableError, match="frame 0 states the sizes"):
        read_frames(write_frames([Frame(bytes(32), bytes(32), 0, size, chunk_size)]))


@given(st.binary(max_size=200).filter(lambda data: not data.startswith(b"OVHFRM01")))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedFrameTableError):
        read_frames(data)
