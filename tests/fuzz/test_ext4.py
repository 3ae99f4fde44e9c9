"""Images of file systems: a real one with damaged bytes where it describes itself."""

import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.ext4 import read_ext4
from tests.fuzz.mutations import fuzzing, judged, mutated
from tests.unit.content.delta.images import make_image, write_tree

_OPTIONS = ((), ("-O", "^extent,^64bit"), ("-O", "^has_journal,^metadata_csum,^resize_inode", "-I", "128"))


@cache
def _images() -> tuple[bytes, ...]:
    """Return small images whose files are all zero, so that what is not zero describes something."""
    with TemporaryDirectory() as directory:
        files = {f"usr/lib/{name}": bytes(size) for name, size in (("a", 1), ("b", 5000), ("c", 30_000))}
        files |= {f"etc/{number:03}": b"\0" for number in range(40)}
        tree = write_tree(Path(directory, "tree"), files)
        return tuple(
            make_image(tree, Path(directory, "image"), "-b", "1024", "-N", "128", *options, size_kib=512).read_bytes()
            for options in _OPTIONS
        )


@cache
def _places(image: bytes) -> list[int]:
    """Return where the image describes itself: half of it the superblock."""
    places = [place for place in range(2048, len(image)) if image[place]]
    return [*range(1024, 1380)] * (len(places) // 356 + 1) + places


def _read(image: bytes) -> None:
    found = judged(lambda: read_ext4(image, image="x.ext4"), refusal=UnsuitableImageError)
    if found is None:
        return
    blocks = 0
    for file in found.files:
        assert file.path.startswith(b"/")
        assert b".." not in file.path.split(b"/")
        assert len(file.path) <= 4096
        for extent in file.extents:
            assert 0 < extent.offset < extent.offset + extent.size <= len(image)
            blocks += extent.size // found.block_size
    assert blocks <= 2 * len(image) // found.block_size


@fuzzing(100)
@given(st.data())
def test_a_damaged_image_is_read_or_refused(data: st.DataObject) -> None:
    image = data.draw(st.sampled_from(_images()))
    _read(data.draw(mutated(image, places=_places(image))))


@fuzzing(30)
@given(st.binary(max_size=300), st.integers(0, 300))
def test_bytes_behind_the_magic_are_refused(superblock: bytes, zeros: int) -> None:
    image = bytes(1024) + (superblock.ljust(56, b"\1")[:56] + b"\x53\xef" + superblock[56:]).ljust(4096, b"\0")
    _read(image + bytes(zeros * 64))


def _root_extents(image: bytes) -> int:
    """Return the offset of the root directory's extent header."""
    (first_data_block,) = struct.unpack_from("<I", image, 1024 + 20)
    (table,) = struct.unpack_from("<I", image, (first_data_block + 1) * 1024 + 8)
    (inode_size,) = struct.unpack_from("<H", image, 1024 + 88)
    place: int = table * 1024 + inode_size + 40
    assert image[place : place + 2] == b"\x0a\xf3"
    return place


def test_an_extent_of_no_blocks_is_refused() -> None:
    # It cost nothing of the budget, so that a small image could list millions of them.
    image = bytearray(_images()[0])
    struct.pack_into("<H", image, _root_extents(bytes(image)) + 16, 0)
    with pytest.raises(UnsuitableImageError, match="lie outside"):
        read_ext4(bytes(image), image="x.ext4")
