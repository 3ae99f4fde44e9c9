"""A directory tree or a tar becomes an ext4 image, the same image for the same tree.

The image is meant to be written to a slot and mounted there: no journal and no reserved blocks to waste, a file
system id and hash seed that follow from the release's name, and every time that comes from the build machine
(creation, change, access) replaced by one given time, so that a second run makes the same bytes and a delta
carries only what changed. It has no checksums of metadata: the signed index covers every byte of the image, and
checksums would have to travel in every delta because they look like noise.
"""

import os
import re
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overhaul.errors import InputError
from overhaul.host.processes import ProgramFailedError, run
from overhaul.progress import Progress

_BLOCK = 4096
_INODE_BYTES = 256
_GROUP_BYTES = 128 << 20
#: Room left for what the tree's files do not explain: directories, extent trees, and later growth on the device.
_HEAD_ROOM_PERCENT = 10
_ROUND_TO = 4 << 20
_MIN_IMAGE = 8 << 20
#: Every name we derive an id from lies in this space; the value has no meaning.
_NAMESPACE = uuid.UUID("2d6c5fd0-4b1c-5a0e-9c39-6f7665726861")
_TAR_MAGIC_AT = 257


class UnusableTreeError(InputError):
    """A tree or tar that cannot become an image."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot become an image: {reason}.")


@dataclass(frozen=True, kw_only=True)
class ImageShape:
    """What decides an image besides the tree."""

    #: The file system's id and hash seed follow from it.
    name: str
    #: None: as big as the tree needs, and some head room.
    size_bytes: int | None = None
    #: Seconds since 1970 UTC for every time that is not a file's modification; None: the newest of those.
    timestamp: int | None = None


def is_tar(path: Path) -> bool:
    """Tell whether the file `path` is a tar, compressed or not, by its content."""
    with path.open("rb") as stream:
        head = stream.read(_TAR_MAGIC_AT + 5)
    compressed = head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"))
    return compressed or head[_TAR_MAGIC_AT:] == b"ustar"


def unpack_tar(archive: Path, target: Path) -> None:
    """Unpack `archive` into the empty directory `target` with owners, rights and attributes as they are."""
    if os.geteuid() != 0:
        reason = "only root can unpack its owners and device nodes; run as root (or under fakeroot), or give an image"
        raise UnusableTreeError(path=archive, reason=reason)
    options = ["--numeric-owner", "--preserve-permissions", "--same-owner", "--xattrs", "--xattrs-include=*", "--acls"]
    try:
        run(["tar", "--extract", f"--file={archive.absolute()}", f"--directory={target}", *options])
    except ProgramFailedError as error:
        raise UnusableTreeError(path=archive, reason=str(error)) from error


def build_image(tree: Path, image: Path, *, shape: ImageShape, progress: Progress) -> None:
    """Write an ext4 image of the directory `tree` to the new file `image`."""
    progress.begin(f"Building {image.name}", None)
    try:
        measured = _measure(tree)
        size = shape.size_bytes or measured.image_size
        timestamp = measured.newest if shape.timestamp is None else shape.timestamp
        identity = uuid.uuid5(_NAMESPACE, shape.name)
        try:
            run(
                [
                    "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree.absolute(),
                    "-b", str(_BLOCK), "-I", str(_INODE_BYTES), "-N", str(measured.inodes), "-m", "0",
                    "-O", "^has_journal,^resize_inode,^metadata_csum", "-U", str(identity),
                    "-E", f"hash_seed={identity},lazy_itable_init=0,root_owner=0:0,nodiscard",
                    image.absolute(), f"{size // 1024}k",
                ],
                environment={"E2FSPROGS_FAKE_TIME": str(timestamp), "SOURCE_DATE_EPOCH": str(timestamp)},
            )  # fmt: skip
        except ProgramFailedError as error:
            reason = f"{error}; when it does not fit, give --image-size above {size} bytes"
            raise UnusableTreeError(path=tree, reason=reason) from error
        _set_times(image, timestamp)
    except BaseException:
        image.unlink(missing_ok=True)
        raise
    finally:
        progress.end()


@dataclass(frozen=True, kw_only=True)
class _Measured:
    image_size: int
    inodes: int
    newest: int


def _measure(tree: Path) -> _Measured:
    blocks = 0
    newest = 0
    seen: set[tuple[int, int]] = set()
    for status in _statuses(tree):
        newest = max(newest, int(status.st_mtime))
        identity = (status.st_dev, status.st_ino)
        if identity not in seen:
            seen.add(identity)
            has_blocks = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            blocks += -(-status.st_size // _BLOCK) if has_blocks else 0
    inodes = len(seen) + len(seen) // 8 + 64
    size = blocks * _BLOCK + inodes * _INODE_BYTES
    size += size * _HEAD_ROOM_PERCENT // 100
    # Bitmaps and descriptors of each block group, and backups of the superblock.
    size += (size // _GROUP_BYTES + 1) * 4 * _BLOCK
    return _Measured(image_size=max(_MIN_IMAGE, -(-size // _ROUND_TO) * _ROUND_TO), inodes=inodes, newest=newest)


def _statuses(tree: Path) -> Iterator[os.stat_result]:
    yield tree.lstat()
    for folder, folders, names in os.walk(tree):
        for name in (*folders, *names):
            yield (Path(folder) / name).lstat()


def _set_times(image: Path, timestamp: int) -> None:
    """Replace the times that came from the build machine; mke2fs copies them from the tree."""
    commands = []
    for number in _used_inodes(image):
        commands += [f"set_inode_field <{number}> {field} @{timestamp}" for field in ("atime", "ctime")]
    run(
        ["debugfs", "-w", "-f", "-", image.absolute()],
        input_bytes=("\n".join(commands) + "\n").encode(),
        environment={"E2FSPROGS_FAKE_TIME": str(timestamp), "SOURCE_DATE_EPOCH": str(timestamp)},
    )


def _used_inodes(image: Path) -> Iterator[int]:
    """Yield the root directory and every inode that has a name; those between are the file system's own."""
    listing = run(["dumpe2fs", image.absolute()]).stdout.decode(errors="replace")
    count = int(_found(r"^Inode count:\s+(\d+)$", listing))
    first = int(_found(r"^First inode:\s+(\d+)$", listing))
    free: set[int] = set()
    for ranges in re.findall(r"^  Free inodes: (.*)$", listing, re.MULTILINE):
        for begin, _dash, end in (part.partition("-") for part in ranges.split(", ") if part):
            free.update(range(int(begin), int(end or begin) + 1))
    yield 2
    yield from (number for number in range(first, count + 1) if number not in free)


def _found(pattern: str, text: str) -> str:
    found: str = re.findall(pattern, text, re.MULTILINE)[0]
    return found
