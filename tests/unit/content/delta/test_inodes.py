"""Check sums of inodes, left out and computed again as mkfs.ext4 and the kernel do."""

import itertools
import random
import struct
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.content.delta.images import make_image, write_tree

from overhaul.content.delta.compressed import PlainBytes
from overhaul.content.delta.inodes import INODE_SIZE, checksum_seed, crc32c, trailer, unpack_inodes, without_sums
from overhaul.content.delta.recoders import RECODERS
from overhaul.content.delta.segments import Run
from overhaul.content.ext4 import Ext4Files, read_ext4


def _packed(plain: bytes) -> bytes:
    return b"".join(RECODERS["ext4-inodes"].pack(PlainBytes(plain), Run(0, len(plain)), scratch=None))


def _read(image: Path) -> tuple[bytes, Ext4Files]:
    with image.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        return data[:], read_ext4(data, image=str(image))


def test_a_known_check_sum() -> None:
    assert crc32c(b"123456789") ^ 0xFFFFFFFF == 0xE3069283


@pytest.mark.parametrize(
    "options",
    [
        ("-O", "metadata_csum", "-I", "256"),
        ("-O", "metadata_csum,metadata_csum_seed", "-I", "256"),
        ("-O", "metadata_csum,^64bit", "-I", "256", "-b", "1024", "-g", "2048"),
        ("-O", "metadata_csum,^extent,^64bit", "-I", "256", "-N", "9000"),
    ],
    ids=" ".join,
)
def test_every_table_of_a_real_image_comes_back_bit_by_bit(tmp_path: Path, options: tuple[str, ...]) -> None:
    files = {f"d{number % 7}/f{number}": b"x" * (number % 3) for number in range(500)}
    tree = write_tree(tmp_path / "tree", files)
    (tree / "link").symlink_to("d1")
    data, found = _read(make_image(tree, tmp_path / "image", *options))
    seed = checksum_seed(data[1024:2048])
    assert seed is not None
    assert found.inode_size == INODE_SIZE
    first = 1
    sums_left_out = 0
    for offset, size in found.inode_tables:
        table = data[offset : offset + size]
        plain = without_sums(table)
        sums_left_out += sum(plain[place] for place in range(124, size, INODE_SIZE))
        assert _packed(plain + trailer(seed=seed, first=first)) == table
        first += size // INODE_SIZE
    assert sums_left_out > 500


@pytest.mark.parametrize("extra_size", [0, 3, 4, 32, 256])
def test_an_inode_without_room_for_it_keeps_what_lies_there(extra_size: int) -> None:
    chance = random.Random(extra_size)
    table = bytearray(chance.randbytes(3 * INODE_SIZE))
    for begin in range(0, len(table), INODE_SIZE):
        struct.pack_into("<H", table, begin + 128, extra_size)
    plain = without_sums(bytes(table))
    made = _packed(plain + trailer(seed=1, first=12))
    differing = {place % INODE_SIZE for place in range(len(table)) if made[place] != table[place]}
    assert differing <= ({124, 125, 130, 131} if extra_size >= 4 else {124, 125})
    # What it made is what it would make again.
    assert _packed(without_sums(made) + trailer(seed=1, first=12)) == made


def test_an_image_without_check_sums_states_none(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"file": b""})
    data, _found = _read(make_image(tree, tmp_path / "image", "-O", "^metadata_csum"))
    assert checksum_seed(data[1024:2048]) is None


@given(data=st.binary(max_size=2000), cuts=st.lists(st.integers(0, 2000), max_size=5))
def test_bytes_of_any_kind_and_in_any_pieces_stay_as_many(data: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    pieces = [data[begin:end] for begin, end in itertools.pairwise(places)]
    whole = len(data) // INODE_SIZE * INODE_SIZE
    assert b"".join(unpack_inodes(pieces)) == without_sums(data[:whole]) + data[whole:]
    assert len(_packed(data)) == max(0, len(data) - 16)
