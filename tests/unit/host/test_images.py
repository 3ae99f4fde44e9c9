"""Partition tables are read as the system's own program writes them, and nothing outside of the disk is believed."""

import os
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from tests.fuzz.mutations import fuzzing, judged, mutated
from tests.tools import need
from tests.waiting import until

from overhaul.host.images import UnreadableImageError, extract_tree, read_partitions

_LONG_AGO = 1_600_000_000


def disk(path: Path, table: str, *, size: int = 8 << 20) -> Path:
    with path.open("wb") as stream:
        stream.truncate(size)
    subprocess.run([need("sfdisk"), "-q", path], input=table.encode(), check=True, capture_output=True)
    return path


def ranges(image: Path) -> list[tuple[int, int, int]]:
    return [(one.number, one.offset >> 9, one.size >> 9) for one in read_partitions(image)]


def test_gpt_and_mbr_with_logical_partitions_are_read(tmp_path: Path) -> None:
    gpt = disk(tmp_path / "gpt", "label: gpt\n2: start=4096, size=2048\n1: start=2048, size=2048\n")
    assert ranges(gpt) == [(1, 2048, 2048), (2, 4096, 2048)]
    mbr = disk(
        tmp_path / "mbr", "label: dos\nstart=2048, size=1000, type=83\nstart=4096, size=8000, type=5\n"
        "5: start=5000, size=100\n6: start=6144, size=200\n",
    )  # fmt: skip
    assert ranges(mbr) == [(1, 2048, 1000), (5, 5000, 100), (6, 6144, 200)]


def test_a_missing_partition_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    image = disk(tmp_path / "gpt", "label: gpt\nstart=2048, size=2048\n")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnreadableImageError, match=r"no partition 7 \(there are: 1\)"):
        extract_tree(image, tmp_path / "out", partition=7)
    with pytest.raises(UnreadableImageError, match="no file"):
        extract_tree(tmp_path / "nothing", tmp_path / "out")


def test_partitions_outside_of_the_disk_are_refused(tmp_path: Path) -> None:
    image = disk(tmp_path / "mbr", "label: dos\nstart=2048, size=1000\n")
    data = bytearray(image.read_bytes())
    data[446 + 12 : 446 + 16] = struct.pack("<I", 1 << 31)
    image.write_bytes(data)
    with pytest.raises(UnreadableImageError, match="outside"):
        read_partitions(image)


def test_spoilt_tables_are_read_or_refused(tmp_path: Path) -> None:
    samples = [
        disk(tmp_path / "a", "label: gpt\nstart=2048, size=100\n", size=2 << 20).read_bytes()[: 40 << 9],
        disk(tmp_path / "b", "label: dos\nstart=1, size=9, type=5\n5: start=2, size=1\n", size=1 << 20).read_bytes()[
            :4096
        ],
    ]
    place = tmp_path / "spoilt"

    @fuzzing(150)
    @given(mutated(*samples, places=[446, 450, 454, 458, 510, 512, 520, 584, 592, 1024, 1056]))
    def spoil(data: bytes) -> None:
        place.write_bytes(data)
        judged(lambda: read_partitions(place), refusal=UnreadableImageError)

    spoil()


def make_tree(root: Path) -> Path:
    """Write a tree with what images can lose: owners, rights, times, attributes, odd names."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/a tool").write_bytes(b"tool")
    (root / 'usr/bin/quo"te').write_bytes(b"")
    (root / "usr/bin/link").symlink_to("a tool")
    os.chown(root / "usr/bin/a tool", 5, 6)
    (root / "usr/bin/a tool").chmod(0o4711)
    os.setxattr(root / "usr/bin/a tool", "user.note", b'one\n"two"\0')
    os.setxattr(root / "usr", "security.selinux", b"system_u:object_r:usr_t:s0\0")
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, (_LONG_AGO + number, _LONG_AGO + number), follow_symlinks=False)
    return root


def seen(place: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        names = os.listxattr(path, follow_symlinks=False)
        values = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        shown = (oct(status.st_mode), status.st_uid, status.st_gid, int(status.st_mtime), content, values)
        found[str(path.relative_to(place))] = shown
    return found


def test_tars_squashfs_and_ext4_become_the_same_tree(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "root")
    ext4 = tmp_path / "what?offset.ext4"
    with ext4.open("wb") as stream:
        stream.truncate(4 << 20)
    xattrs = ("--xattrs", "--xattrs-include=*")
    for command in (
        [need("mkfs.ext4"), "-q", "-F", "-d", root, ext4],
        [need("mksquashfs"), root, tmp_path / "squashfs", "-quiet", "-no-progress"],
        ["tar", "-C", root, "-cJf", tmp_path / "tar", *xattrs, "."],
    ):
        subprocess.run([str(word) for word in command], check=True, capture_output=True)

    for image in (ext4, tmp_path / "squashfs", tmp_path / "tar"):
        place = tmp_path / f"out-{image.name}"
        place.mkdir()
        extract_tree(image, place)
        assert seen(place) == seen(root), image


def test_what_no_program_reads_is_mounted(tmp_path: Path) -> None:
    """The kernel reads erofs, here from a partition of a disk whose other partition is not to be seen."""
    root = make_tree(tmp_path / "root")
    system = tmp_path / "erofs"
    subprocess.run([need("mkfs.erofs"), "--quiet", system, root], check=True)
    image = disk(tmp_path / "disk", "label: gpt\nstart=2048, size=2048\nstart=4096, size=2048\n")
    with image.open("r+b") as stream:
        stream.seek(4096 << 9)
        stream.write(system.read_bytes())
    place = tmp_path / "out"
    place.mkdir()
    extract_tree(image, place, partition=2)
    assert seen(place) == seen(root)
    # Whoever looks at new devices, as udev does, may hold it a moment longer.
    until(lambda: subprocess.run(["losetup", "--associated", image], check=True, capture_output=True).stdout == b"")
    with pytest.raises(UnreadableImageError, match="mount"):
        extract_tree(image, place, partition=1)
