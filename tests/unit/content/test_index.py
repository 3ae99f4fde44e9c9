"""An index is read back as it was written, and never from damaged bytes."""

import hashlib
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.index import (
    CHUNK_SIZE_MAX,
    CHUNK_SIZE_MIN,
    Chunk,
    Index,
    MalformedIndexError,
    chunk_id,
    longest_index,
    read_index,
    write_index,
)

#: What Debian's casync 2 wrote for the 300 000 bytes below.
INDEX_BY_CASYNC = bytes.fromhex(
    "3000000000000000f99f127b9c4d829600000000000000b0004000000000000000000100000000000000040000000000"
    "ffffffffffffffff7d41172f119e5be7"
    "160b0100000000006e570614dc49df42ee6be604b459ef36b1b7bf4ff5d6974363673c818a087b87"
    "c74202000000000099b44760b8e682df8853e25abeceea9459c29769ea897578380ae6b50cb76b93"
    "e093040000000000192487df2be26312f7d213f7b87aa23bf5f371c796cdfb52fdd505ecec7e0c2c"
    "000000000000000000000000000000003000000000000000b000000000000000d1ec49550e054f4b"
)
DATA = hashlib.shake_256(b"1").digest(300_000)
ENDS = [0, 68_374, 148_167, 300_000]
#: Header fields that casync may set otherwise without changing what an index means: flags, minimum and average.
FREE_BITS = range(16 * 8, 40 * 8)


def _index(sizes: list[int]) -> Index:
    ends = list(accumulate(sizes, initial=0))
    return Index([Chunk(begin, end - begin, chunk_id(b"%d" % end)) for begin, end in pairwise(ends)])


def _with(offset: int, replacement: bytes) -> bytes:
    return INDEX_BY_CASYNC[:offset] + replacement + INDEX_BY_CASYNC[offset + len(replacement) :]


def test_an_index_of_casync_is_read() -> None:
    index = read_index(INDEX_BY_CASYNC)

    assert index == Index([Chunk(begin, end - begin, chunk_id(DATA[begin:end])) for begin, end in pairwise(ENDS)])
    assert (len(index), index.size, index.chunks[1].end) == (3, 300_000, 148_167)


def test_an_index_is_written_as_casync_writes_it() -> None:
    assert write_index(read_index(INDEX_BY_CASYNC)) == INDEX_BY_CASYNC


def test_an_id_is_the_sha_512_256_of_the_bytes() -> None:
    # The digest of "abc" in FIPS 180-4's example values.
    assert chunk_id(b"abc").hex() == "53048e2681941ef99b2e29b76b4c7dabe4c2d0c634fc6d46e0e2f13107e7af23"


@given(st.lists(st.integers(1, CHUNK_SIZE_MAX), max_size=40))
def test_an_index_is_read_back_as_it_was_written(sizes: list[int]) -> None:
    index = _index(sizes)

    assert read_index(write_index(index)) == index
    assert index.size == sum(sizes)


@given(st.lists(st.integers(CHUNK_SIZE_MIN, CHUNK_SIZE_MAX), max_size=40), st.integers(1, CHUNK_SIZE_MIN))
def test_no_index_is_longer_than_the_longest_of_its_image(sizes: list[int], last: int) -> None:
    index = _index([*sizes, last])

    assert len(write_index(index)) <= longest_index(index.size)
    assert len(write_index(_index([CHUNK_SIZE_MIN] * 40))) >= longest_index(40 * CHUNK_SIZE_MIN) - 40


def test_an_index_truncated_anywhere_is_refused() -> None:
    for length in range(len(INDEX_BY_CASYNC)):
        with pytest.raises(MalformedIndexError):
            read_index(INDEX_BY_CASYNC[:length])


def test_bytes_behind_an_index_are_refused() -> None:
    for length in range(1, 90):
        with pytest.raises(MalformedIndexError):
            read_index(INDEX_BY_CASYNC + bytes(length))


def test_a_flipped_bit_is_refused_or_changes_the_index() -> None:
    original = read_index(INDEX_BY_CASYNC)
    for bit in range(len(INDEX_BY_CASYNC) * 8):
        damaged = bytearray(INDEX_BY_CASYNC)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = read_index(bytes(damaged))
        except MalformedIndexError:
            continue
        # The largest chunk size may be any that no chunk exceeds.
        assert bit in FREE_BITS or bit // 8 in range(40, 48) or found != original
        assert sum(chunk.size for chunk in found) == found.size


@pytest.mark.parametrize(
    ("offset", "replacement", "reason"),
    [
        (8, b"\0" * 8, "index header"),
        (16, (0x9000000000000000).to_bytes(8, "little"), "SHA-512/256"),
        (24, (0).to_bytes(8, "little"), "chunk sizes"),
        (24, (65_537).to_bytes(8, "little"), "chunk sizes"),
        (40, (1 << 40).to_bytes(8, "little"), "chunk sizes"),
        (48, b"\0" * 8, "table header"),
        (64, (300_000).to_bytes(8, "little"), "chunk 0 ends at 300000"),
        (104, (68_374).to_bytes(8, "little"), "chunk 1 ends at 68374"),
        (104, (1).to_bytes(8, "little"), "chunk 1 ends at 1"),
        (64, ((1 << 64) - 1).to_bytes(8, "little"), "chunk 0"),
        (200, b"\1" + b"\0" * 7, "tail"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(offset: int, replacement: bytes, reason: str) -> None:
    with pytest.raises(MalformedIndexError, match=reason):
        read_index(_with(offset, replacement))


@given(st.binary(max_size=400).filter(lambda data: not data.startswith(INDEX_BY_CASYNC[:16])))
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedIndexError):
        read_index(data)
