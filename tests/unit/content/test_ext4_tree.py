"""Reading a directory of an ext4 image without mounting it: what the real mke2fs was given comes back."""

import os
import random
import struct
import subprocess
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.content.configuration import node_of
from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.ext4_tree import Ext4Folder
from overhaul.content.tree import scan_tree

#: user::rw-, user:1000:r--, group::r--, mask::r--, other::---, as the kernel shows it.
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in ((1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1))
)


def make_tree(root: Path) -> Path:
    etc = root / "etc"
    (etc / "deep/er").mkdir(parents=True)
    (etc / "text").write_text("a line\n")
    (etc / "empty").touch()
    (etc / "big").write_bytes(random.Random(1).randbytes(300_000))
    with (etc / "sparse").open("wb") as stream:
        stream.seek(100_000)
        stream.write(b"after a hole")
    (etc / "short-link").symlink_to("text")
    (etc / "long-link").symlink_to("/" + "x" * 200)
    os.link(etc / "text", etc / "deep/er/same")
    for number in range(400):
        (etc / f"deep/file-{number:04}-with-a-longish-name").write_bytes(b"%d" % number)
    (etc / b"\xff\xfe".decode(errors="surrogateescape")).write_text("no text as a name")
    (etc / "owned").write_text("x")
    os.chown(etc / "owned", 70_000, 80_000)
    (etc / "owned").chmod(0o4711)
    os.setxattr(etc / "text", "user.note", b"of the owner")
    os.setxattr(etc / "text", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(etc / "big", "system.posix_acl_access", ACL)
    (root / "usr").mkdir()
    (root / "usr/etc").write_text("elsewhere")
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    place = tmp_path_factory.mktemp("ext4")
    root = make_tree(place / "tree")
    image = place / "image"
    subprocess.run(
        [need("mkfs.ext4"), "-q", "-b", "1024", "-I", "256", "-d", root, image, "8m"], check=True, capture_output=True
    )
    return root, image.read_bytes()


def test_every_object_is_as_it_was_given(made: tuple[Path, bytes]) -> None:
    root, data = made

    folder = Ext4Folder(data, b"etc", image="image")

    given = {entry.path: node_of(entry, None) for entry in scan_tree(root / "etc")}
    assert {path: node_of(one, None) for path, one in folder.objects.items()} == given


def test_contents_come_back_with_their_holes(made: tuple[Path, bytes]) -> None:
    root, data = made
    folder = Ext4Folder(data, b"etc", image="image")

    for name in ("text", "empty", "big", "sparse", "deep/er/same", "deep/file-0399-with-a-longish-name"):
        assert folder.read(folder.objects[name.encode()]) == (root / "etc" / name).read_bytes()


def test_a_directory_that_is_not_there_has_nothing(made: tuple[Path, bytes]) -> None:
    assert not Ext4Folder(made[1], b"nowhere", image="image").objects
    assert not Ext4Folder(made[1], b"usr/etc/below", image="image").objects


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_image_is_refused_or_read_and_never_breaks_the_reader(made: tuple[Path, bytes], seed: int) -> None:
    told = random.Random(seed)
    data = bytearray(made[1])
    for _ in range(200):
        # Metadata lie in front, mostly.
        data[told.randrange(1024, 400_000)] ^= 1 << told.randrange(8)
    try:
        folder = Ext4Folder(bytes(data), b"etc", image="image")
        for one in folder.objects.values():
            if one.mode & 0o170000 == 0o100000:
                folder.read(one)
    except UnsuitableImageError:
        pass


def test_what_is_no_ext4_is_refused() -> None:
    with pytest.raises(UnsuitableImageError):
        Ext4Folder(bytes(10_000), b"etc", image="image")
