"""The chunker cuts where casync cuts, however it is compiled and however it is fed."""

import hashlib
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content import chunker
from overhaul.content.buzhash_table import TABLE
from overhaul.content.chunker import (
    STANDARD_SIZES,
    ZERO_CHUNK,
    ChunkSizes,
    EmptyImageError,
    ImageChangedError,
    chunk_file,
    cut,
    cut_image,
    cut_python,
)
from overhaul.content.index import CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, chunk_id

#: Ends of the chunks that Debian's casync 2 made of the first 2 MiB of `_noise(1)`.
BOUNDARIES_BY_CASYNC = [
    68374,
    148167,
    368588,
    385590,
    412465,
    475799,
    554491,
    614746,
    718756,
    741953,
    760396,
    807538,
    831295,
    873829,
    897667,
    930675,
    1007142,
    1025325,
    1108659,
    1164346,
    1245408,
    1310956,
    1374083,
    1520283,
    1662554,
    1772509,
    1831502,
    1875972,
    1943012,
    1998812,
    2015305,
    2097152,
]
#: SHA-256 over the ends of all chunks of all inputs at all sizes of the grid below.
GRID_DIGEST = "cfde283c006865163869e584b992378ef2e0e5968f0edc4a99c1ad55181db97f"

_GRID = [
    ChunkSizes(minimum, average, maximum)
    for minimum, average, maximum in [
        (48, 48, 48),
        (48, 64, 256),
        (49, 97, 98),
        (64, 100, 100_000),
        (256, 1024, 4096),
        (1000, 3000, 3001),
        (4096, 4096, 16384),
        (16384, 65536, 262_144),
    ]
]


def _noise(seed: int, size: int = 2 << 20) -> bytes:
    """Return bytes that look random and are the same on every machine and Python."""
    state = hashlib.shake_256(b"%d" % seed)
    return state.digest(size)


def _inputs() -> list[bytes]:
    noise = _noise(2, 60_000)
    return [b"", b"x", bytes(20_000), noise, noise[:47], noise[:48], noise[:49], noise[:5000] * 9, b"ab" * 9000]


def _ends(data: bytes, sizes: ChunkSizes, *, with_twin: bool) -> list[int]:
    ends = [0]
    while ends[-1] < len(data):
        if with_twin:
            end = cut_python(data, ends[-1], sizes.minimum, sizes.discriminator, sizes.maximum)
        else:
            end = cut(data, ends[-1], sizes=sizes)
        ends.append(end)
    return ends


def _chunk_sizes() -> st.SearchStrategy[ChunkSizes]:
    steps = st.tuples(st.integers(48, 300), st.integers(0, 1000), st.integers(0, 3000))
    return steps.map(lambda step: ChunkSizes(step[0], step[0] + step[1], sum(step)))


@pytest.mark.parametrize("with_twin", [True, False])
def test_boundaries_are_those_casync_makes(with_twin: bool) -> None:
    assert _ends(_noise(1), STANDARD_SIZES, with_twin=with_twin)[1:] == BOUNDARIES_BY_CASYNC


@pytest.mark.parametrize("with_twin", [True, False])
def test_all_inputs_at_all_sizes_give_the_golden_digest(with_twin: bool) -> None:
    digest = hashlib.sha256()
    for sizes in _GRID:
        for data in _inputs():
            digest.update(repr(_ends(data, sizes, with_twin=with_twin)).encode())

    assert digest.hexdigest() == GRID_DIGEST


def test_the_kernel_is_the_compiled_one_where_it_was_built() -> None:
    built = any(Path(chunker.__file__).parent.glob("_kernel*.so"))

    assert ("compiled" if built else "python") == chunker.KERNEL_NAME


@given(st.binary(max_size=6000), _chunk_sizes(), st.integers(0, 100))
def test_the_kernel_and_its_twin_agree(data: bytes, sizes: ChunkSizes, start: int) -> None:
    start = min(start, len(data))
    expected = cut_python(data, start, sizes.minimum, sizes.discriminator, sizes.maximum)

    assert expected == cut(data, start, sizes=sizes)
    assert expected == cut(bytearray(data), start, sizes=sizes)
    assert expected == cut(memoryview(data), start, sizes=sizes)


@given(st.integers(0, 1 << 32), _chunk_sizes(), st.integers(0, 300), st.integers(0, 300))
def test_a_chunk_depends_on_its_own_bytes_alone(seed: int, sizes: ChunkSizes, before: int, after: int) -> None:
    noise = random.Random(seed)
    data = noise.randbytes(9000)
    end = cut(data, sizes=sizes)
    moved = noise.randbytes(before) + data[:end] + noise.randbytes(after)

    assert cut(moved, before, sizes=sizes) == before + end


@given(st.binary(max_size=9000), _chunk_sizes())
def test_chunks_keep_their_bounds(data: bytes, sizes: ChunkSizes) -> None:
    ends = _ends(data, sizes, with_twin=False)
    lengths = [end - begin for begin, end in pairwise(ends)]

    assert all(sizes.minimum <= length <= sizes.maximum for length in lengths[:-1])
    assert all(0 < length <= sizes.maximum for length in lengths[-1:])


def test_zeros_are_cut_at_the_maximum_size() -> None:
    assert cut_python(ZERO_CHUNK, 0, CHUNK_SIZE_MIN, STANDARD_SIZES.discriminator, CHUNK_SIZE_MAX) == CHUNK_SIZE_MAX
    assert cut(bytes(3 * CHUNK_SIZE_MAX), 5) == 5 + CHUNK_SIZE_MAX


def test_the_table_is_one_word_for_each_byte() -> None:
    assert len(TABLE) == len(set(TABLE)) == 256
    assert TABLE[0] == 0x458BE752


@pytest.mark.parametrize("sizes", [(47, 64, 128), (64, 63, 128), (64, 128, 127), (48, 64, (1 << 30) + 1)])
def test_sizes_that_do_not_ascend_are_refused(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="ascend"):
        ChunkSizes(*sizes)


@pytest.mark.parametrize("segment_size", [1, CHUNK_SIZE_MAX + 1, 300_007, 1 << 20, 1 << 30])
def test_the_size_of_segments_changes_nothing(tmp_path: Path, segment_size: int) -> None:
    noise = _noise(3)
    data = noise[:700_000] + bytes(1_500_003) + noise[700_000:] + bytes(400_000)
    (tmp_path / "image").write_bytes(data)
    pieces = list(cut_image(tmp_path / "image", segment_size=segment_size))

    assert data == b"".join(piece.data for piece in pieces)
    assert _ends(data, STANDARD_SIZES, with_twin=False) == [0, *(piece.offset + len(piece.data) for piece in pieces)]


def test_a_sparse_image_is_cut_like_one_that_is_written_out(tmp_path: Path) -> None:
    noise = _noise(4)
    with (tmp_path / "sparse").open("wb") as stream:
        stream.seek(5_000_000)
        stream.write(noise[:300_000])
        stream.seek(9_000_001)
        stream.write(noise[300_000:])
        stream.truncate(30_000_000)
    (tmp_path / "full").write_bytes((tmp_path / "sparse").read_bytes())

    assert chunk_file(tmp_path / "full") == chunk_file(tmp_path / "sparse")


def test_a_huge_hole_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "image").open("wb") as stream:
        stream.truncate(4 << 30)
        stream.seek(3 << 30)
        stream.write(_noise(5, 100_000))
    read: list[int] = []
    pread = os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        read.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    pieces = list(cut_image(tmp_path / "image"))

    assert sum(read) <= 3 * chunker.SEGMENT_SIZE
    assert pieces[-1].offset + len(pieces[-1].data) == 4 << 30


@pytest.mark.parametrize("size", [1, 47, 48, CHUNK_SIZE_MIN - 1, CHUNK_SIZE_MIN, CHUNK_SIZE_MAX + 1])
def test_an_image_of_any_size_is_covered(tmp_path: Path, size: int) -> None:
    data = _noise(6, size)
    (tmp_path / "image").write_bytes(data)
    index = chunk_file(tmp_path / "image")

    assert index.size == size
    assert [chunk_id(data[chunk.offset : chunk.end]) for chunk in index] == [chunk.id for chunk in index]


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image").touch()

    with pytest.raises(EmptyImageError, match="image is empty"):
        chunk_file(tmp_path / "image")


def test_an_image_that_is_written_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(_noise(7))
    pieces = cut_image(path)
    next(pieces)
    with path.open("ab") as stream:
        stream.write(b"more")

    with pytest.raises(ImageChangedError, match="changed while it was read"):
        list(pieces)


def test_an_image_that_shrinks_meanwhile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(_noise(8) * 6)
    pieces = cut_image(path, segment_size=1 << 20)
    next(pieces)
    os.truncate(path, 1 << 21)

    with pytest.raises(ImageChangedError, match="changed while it was read"):
        list(pieces)
