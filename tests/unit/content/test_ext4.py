import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
from tests.tools import need
from tests.unit.content.delta.images import make_image, write_tree

from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.ext4 import Ext4Files, read_ext4

_SUPERBLOCK = 1024


def _read(image: bytes) -> Ext4Files:
    return read_ext4(image, image="test.ext4")


def _content(image: bytes, files: Ext4Files) -> dict[bytes, bytes]:
    return {
        file.path: b"".join(image[offset : offset + size] for offset, size in file.extents)[: file.size]
        for file in files.files
    }


def test_directories_are_found_with_their_blocks(tree: Path, tmp_path: Path) -> None:
    image = make_image(tree, tmp_path / "image").read_bytes()
    found = {directory.path: directory for directory in _read(image).directories}
    assert found.keys() == {
        b"", b"/lost+found", b"/usr", b"/usr/lib", b"/a", b"/a/b", b"/a/b/c", b"/a/b/c/d", b"/a/b/c/d/e",
    }  # fmt: skip
    (extent,) = found[b"/usr/lib"].extents
    assert b"one-block" in image[extent.offset : extent.offset + extent.size]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    chance = random.Random(7)
    files = {
        "empty": b"",
        "small": b"hello",
        "usr/lib/one-block": chance.randbytes(4096),
        "usr/lib/long": chance.randbytes(3_000_001),
        "a/b/c/d/e/deep": b"deep",
    }
    return write_tree(tmp_path / "tree", files)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-b", "1024"),
        ("-b", "2048", "-I", "128"),
        ("-O", "^64bit"),
        ("-O", "^extent,^64bit"),
        ("-b", "1024", "-O", "^extent,^64bit"),
        ("-O", "^has_journal,^flex_bg,^metadata_csum"),
        ("-t", "ext2"),
        ("-t", "ext3", "-b", "1024"),
    ],
    ids=" ".join,
)
def test_every_file_is_found_with_its_bytes(tree: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    image = make_image(tree, tmp_path / "image", *options).read_bytes()
    files = _read(image)
    expected = {
        b"/" + os.fsencode(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()
    }
    assert _content(image, files) == expected
    assert len({file.inode for file in files.files}) == len(expected)


def test_a_directory_with_thousands_of_names_is_read_whole(tmp_path: Path) -> None:
    names = [f"a-rather-long-name-so-that-blocks-fill-up-{number:05}" for number in range(1500)]
    tree = write_tree(tmp_path / "tree", dict.fromkeys(names, b"x"))
    image = make_image(tree, tmp_path / "image", "-b", "1024", "-N", "4000", size_kib=32 * 1024)
    subprocess.run([need("e2fsck"), "-fyD", image], capture_output=True, check=False)  # -D hashes the directory
    assert {file.path for file in _read(image.read_bytes()).files} == {b"/" + name.encode() for name in names}


def test_a_file_of_several_names_stands_there_once(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"first": b"same"})
    (tree / "second").hardlink_to(tree / "first")
    files = _read(make_image(tree, tmp_path / "image").read_bytes()).files
    assert [file.path in {b"/first", b"/second"} for file in files] == [True]


def test_holes_and_links_have_no_blocks(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"plain": b"x"})
    with (tree / "sparse").open("wb") as stream:
        stream.write(b"begin".ljust(4096, b"b"))
        stream.seek(1_000_000 // 4096 * 4096)
        stream.write(b"end".ljust(4096, b"e"))
    (tree / "short").symlink_to("plain")
    (tree / "long").symlink_to("p" * 900)
    image = make_image(tree, tmp_path / "image", "-b", "4096").read_bytes()
    by_path = {file.path: file for file in _read(image).files}
    assert set(by_path) == {b"/plain", b"/sparse"}
    assert by_path[b"/sparse"].stored_size == 2 * 4096
    stored = b"".join(image[offset : offset + size] for offset, size in by_path[b"/sparse"].extents)
    assert stored == b"begin".ljust(4096, b"b") + b"end".ljust(4096, b"e")


def test_a_deep_extent_tree_is_followed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "holey").open("wb") as stream:
        for number in range(2000):
            stream.seek(number * 8192)
            stream.write((number + 1).to_bytes(4, "big") * 256)
    image = make_image(tree, tmp_path / "image", "-b", "1024", size_kib=16 * 1024).read_bytes()
    (file,) = _read(image).files
    stored = b"".join(image[offset : offset + size] for offset, size in file.extents)
    assert stored == b"".join((number + 1).to_bytes(4, "big") * 256 for number in range(2000))


@pytest.mark.parametrize("data", [b"", bytes(4096), b"hsqs" + bytes(8192), random.Random(1).randbytes(8192)])
def test_what_is_no_ext4_is_refused_in_words(data: bytes) -> None:
    with pytest.raises(UnsuitableImageError, match=r"not an ext4 file system.*publish without delta"):
        _read(data)


@pytest.mark.parametrize(
    ("feature", "words"),
    [(0x1, "compression"), (0x4, "journal that was not replayed"), (0x10, "meta_bg"), (0x40000000, "0x40000000")],
)
def test_a_feature_not_known_is_refused_by_name(tree: Path, tmp_path: Path, feature: int, words: str) -> None:
    image = bytearray(make_image(tree, tmp_path / "image").read_bytes())
    place = _SUPERBLOCK + 96
    struct.pack_into("<I", image, place, struct.unpack_from("<I", image, place)[0] | feature)
    with pytest.raises(UnsuitableImageError, match=words):
        _read(bytes(image))


def test_directories_inside_inodes_are_refused_by_name(tree: Path, tmp_path: Path) -> None:
    image = make_image(tree, tmp_path / "image", "-O", "inline_data", "-I", "256").read_bytes()
    with pytest.raises(UnsuitableImageError, match="inline_data"):
        _read(image)


def test_an_image_cut_short_is_refused(tree: Path, tmp_path: Path) -> None:
    image = make_image(tree, tmp_path / "image").read_bytes()
    for size in (1500, 2048, 100_000, len(image) - 1):
        with pytest.raises(UnsuitableImageError):
            _read(image[:size])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(6))
def test_damage_anywhere_is_refused_or_read_within_the_image(tree: Path, tmp_path: Path, seed: int) -> None:
    image = make_image(
        tree, tmp_path / "image", "-b", "1024", *(("-O", "^extent,^64bit") if seed % 2 else ())
    ).read_bytes()
    chance = random.Random(seed)
    used = [place for place in range(1024, len(image), 512) if any(image[place : place + 512])]
    for _ in range(25):
        damaged = bytearray(image)
        for _ in range(chance.randrange(1, 40)):
            place = chance.choice(used) + chance.randrange(512)
            damaged[place] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        try:
            files = _read(bytes(damaged))
        except UnsuitableImageError:
            continue
        assert all(e.offset >= 0 and e.offset + e.size <= len(image) for file in files.files for e in file.extents)


def test_an_extent_tree_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    with (tree / "holey").open("wb") as stream:
        for number in range(500):
            stream.seek(number * 8192)
            stream.write(b"x")
    image = bytearray(make_image(tree, tmp_path / "image", "-b", "1024").read_bytes())
    magic = struct.pack("<H", 0xF30A)
    nodes = [place for place in range(0, len(image), 1024) if image[place : place + 2] == magic]
    assert nodes
    for place in nodes:  # each leaf becomes an index whose entries are the leaf itself
        entries = struct.unpack_from("<H", image, place + 2)[0]
        struct.pack_into("<H", image, place + 6, 5)
        for entry in range(entries):
            struct.pack_into("<IIHH", image, place + 12 * (entry + 1), 0, place // 1024, 0, 0)
    with pytest.raises(UnsuitableImageError, match="extent tree is damaged"):
        _read(bytes(image))
