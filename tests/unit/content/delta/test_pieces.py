import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overhaul.content.delta.bytesource import ImageBytes
from overhaul.content.delta.format import CopyRun
from overhaul.content.delta.pairing import Pair
from overhaul.content.delta.pieces import (
    PIECE_SIZE,
    Claims,
    copies_of_file,
    divide_directories,
    divide_file,
    divide_rest,
    join_copies,
)
from overhaul.content.delta.segments import MAX_UNIT_OUTPUT, MAX_UNIT_WINDOW
from overhaul.content.ext4 import Extent, ImageFile

_BLOCK = 4096


def _file(*extents: Extent) -> ImageFile:
    return ImageFile(b"/file", 12, sum(extent.size for extent in extents), extents)


@given(st.lists(st.integers(1, 5), max_size=6), st.lists(st.integers(1, 5), max_size=6))
def test_copies_of_a_file_follow_its_extents_on_both_sides(old_sizes: list[int], new_sizes: list[int]) -> None:
    total = min(sum(old_sizes), sum(new_sizes))
    old, new = _cut(old_sizes, total, 1000), _cut(new_sizes, total, 9000)
    moved = {}
    for copy in copies_of_file(old, new):
        moved.update({copy.target + n: copy.source + n for n in range(copy.size)})
    sources = [offset + n for offset, size in old for n in range(size)]
    targets = [offset + n for offset, size in new for n in range(size)]
    assert [moved[target] for target in targets] == sources


def _cut(sizes: list[int], total: int, begin: int) -> list[Extent]:
    extents = []
    for size in sizes:
        if total > 0:
            extents.append(Extent(begin, min(size, total)))
        total -= size
        begin += size + 50
    return extents


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "old", tmp_path / "new"


def test_equal_blocks_are_copied_and_the_rest_becomes_pieces(images: tuple[Path, Path]) -> None:
    data = random.Random(1).randbytes(40 * _BLOCK)
    changed = bytearray(data)
    changed[10 * _BLOCK] ^= 1
    changed[12 * _BLOCK] ^= 1  # block 11 between them is not worth a copy
    images[0].write_bytes(bytes(8 * _BLOCK) + data)
    images[1].write_bytes(changed)
    old_file, new_file = _file(Extent(8 * _BLOCK, 40 * _BLOCK)), _file(Extent(0, 40 * _BLOCK))
    with ImageBytes(images[0]) as old, ImageBytes(images[1]) as new:
        copies, pieces = divide_file(Pair(new_file, old_file, is_same=False), old, new, _BLOCK)
    assert copies == [CopyRun(0, 8 * _BLOCK, 10 * _BLOCK), CopyRun(13 * _BLOCK, 21 * _BLOCK, 27 * _BLOCK)]
    assert [piece.output for piece in pieces] == [((10 * _BLOCK, 3 * _BLOCK),)]
    assert [piece.window for piece in pieces] == [((8 * _BLOCK, 40 * _BLOCK),)]


@settings(max_examples=25)
@given(st.integers(1, 9_000), st.integers(0, 9_000), st.integers(0, 1 << 32))
def test_pieces_and_copies_share_out_a_file_within_the_limits(
    tmp_path_factory: pytest.TempPathFactory, new_blocks: int, old_blocks: int, seed: int
) -> None:
    directory = tmp_path_factory.mktemp("images")
    chance = random.Random(seed)
    pattern = random.Random(0).randbytes(_BLOCK)
    for name, blocks in (("old", old_blocks), ("new", new_blocks)):
        with (directory / name).open("wb") as stream:
            stream.truncate(blocks * _BLOCK)
            for _ in range(20):
                stream.seek(chance.randrange(blocks + 1) * _BLOCK)
                stream.write(pattern[: min(_BLOCK, blocks * _BLOCK - stream.tell())])
    old_file = _file(Extent(0, old_blocks * _BLOCK)) if old_blocks else None
    pair = Pair(_file(Extent(0, new_blocks * _BLOCK)), old_file, is_same=False)
    with ImageBytes(directory / "old") as old, ImageBytes(directory / "new") as new:
        copies, pieces = divide_file(pair, old, new, _BLOCK)
        assert all(old.read(copy.source, copy.size) == new.read(copy.target, copy.size) for copy in copies)
    written = [(copy.target, copy.size) for copy in copies] + [run for piece in pieces for run in piece.output]
    position = 0
    for offset, size in sorted(written):
        assert offset == position
        position += size
    assert position == new_blocks * _BLOCK
    for piece in pieces:
        assert sum(run.size for run in piece.output) <= MAX_UNIT_OUTPUT
        assert sum(run.size for run in piece.window) <= MAX_UNIT_WINDOW
        assert all(run.end <= old_blocks * _BLOCK for run in piece.window)
        assert sorted(piece.window) == list(piece.window)
        assert bool(piece.window) == bool(old_blocks)


def test_what_belongs_to_no_file_is_found_wherever_it_lies(images: tuple[Path, Path]) -> None:
    chance = random.Random(3)
    size = 3000 * _BLOCK + 100  # a tail that is no whole block
    with images[1].open("wb") as stream:
        stream.truncate(size)
        for place in (0, 1, 500, 2999):
            stream.seek(place * _BLOCK)
            stream.write(chance.randbytes(_BLOCK))
        stream.seek(size - 100)
        stream.write(b"tail")
    images[0].write_bytes(images[1].read_bytes()[: 2 * _BLOCK].replace(b"\1", b"\2", 1) + bytes(700 * _BLOCK))
    with ImageBytes(images[0]) as old, ImageBytes(images[1]) as new:
        claims = Claims(new.size, _BLOCK)
        assert claims.take([Extent(2999 * _BLOCK, _BLOCK)])
        copies, pieces = divide_rest(claims, old, new)
    assert copies == [CopyRun(_BLOCK, _BLOCK, _BLOCK)]
    (piece,) = pieces
    assert piece.pair is None
    assert piece.output == ((0, _BLOCK), (500 * _BLOCK, _BLOCK), (3000 * _BLOCK, 100))
    assert piece.window == ((0, _BLOCK), (500 * _BLOCK, _BLOCK))


def _directory(path: bytes, *blocks: int) -> ImageFile:
    return ImageFile(path, 2, len(blocks) * _BLOCK, tuple(Extent(block * _BLOCK, _BLOCK) for block in blocks))


def test_directories_are_told_from_those_of_their_path_wherever_they_lie(images: tuple[Path, Path]) -> None:
    chance = random.Random(4)
    blocks = [chance.randbytes(_BLOCK) for _ in range(12)]
    images[0].write_bytes(b"".join(blocks))
    images[1].write_bytes(b"".join([*blocks[:3], *reversed(blocks[3:])]))
    there = [_directory(b"", 1), _directory(b"/gone", 2), _directory(b"/lib/6.1.0-55", 7), _directory(b"/usr", 4, 5)]
    here = [_directory(b"/usr", 10, 8), _directory(b"/lib/6.1.0-56", 6), _directory(b"", 1), _directory(b"/more", 9)]
    with ImageBytes(images[0]) as old, ImageBytes(images[1]) as new:
        claims = Claims(new.size, _BLOCK)
        # A file that claims a directory's block keeps it.
        assert claims.take([Extent(9 * _BLOCK, _BLOCK)])
        (piece,) = divide_directories(there, here, claims, old, new)
        (rest,) = divide_rest(claims, old, new)[1]
    assert piece.pair is None
    assert piece.output == ((6 * _BLOCK, _BLOCK), (10 * _BLOCK, _BLOCK), (8 * _BLOCK, _BLOCK))
    assert piece.window == ((7 * _BLOCK, _BLOCK), (4 * _BLOCK, 2 * _BLOCK))
    assert rest.output == ((3 * _BLOCK, 3 * _BLOCK), (11 * _BLOCK, _BLOCK))


def test_pieces_of_many_directories_stay_small(images: tuple[Path, Path]) -> None:
    blocks = 2 * PIECE_SIZE // _BLOCK + 10
    images[0].write_bytes(bytes(blocks * _BLOCK))
    images[1].write_bytes(random.Random(5).randbytes(blocks * _BLOCK))
    big = PIECE_SIZE // _BLOCK + 1
    there = [_directory(b"/%d" % number, number) for number in range(blocks - big)]
    here = [*there, _directory(b"/big", *range(blocks - big, blocks))]
    with ImageBytes(images[0]) as old, ImageBytes(images[1]) as new:
        claims = Claims(new.size, _BLOCK)
        pieces = divide_directories(there, here, claims, old, new)
    assert [sum(run.size for run in piece.output) for piece in pieces] == [PIECE_SIZE, 9 * _BLOCK]
    assert list(claims.free_runs(new.size)) == [((blocks - big) * _BLOCK, blocks * _BLOCK)]


def test_blocks_of_two_files_are_provided_for_once() -> None:
    claims = Claims(100 * _BLOCK, _BLOCK)
    assert claims.take([Extent(0, 3 * _BLOCK), Extent(10 * _BLOCK, _BLOCK)])
    assert not claims.take([Extent(20 * _BLOCK, _BLOCK), Extent(2 * _BLOCK, 2 * _BLOCK)])
    assert claims.take([Extent(20 * _BLOCK, _BLOCK)])
    assert list(claims.free_runs(100 * _BLOCK)) == [
        (3 * _BLOCK, 10 * _BLOCK),
        (11 * _BLOCK, 20 * _BLOCK),
        (21 * _BLOCK, 100 * _BLOCK),
    ]


def test_copies_that_continue_one_another_are_joined() -> None:
    copies = [CopyRun(30, 130, 10), CopyRun(0, 100, 10), CopyRun(10, 110, 10), CopyRun(20, 500, 10)]
    assert join_copies(copies) == [CopyRun(0, 100, 20), CopyRun(20, 500, 10), CopyRun(30, 130, 10)]
