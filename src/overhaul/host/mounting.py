"""File systems looked into while nobody else can see them mounted."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overhaul.host.processes import run

_EXT_MAGIC = (0x400 + 0x38, b"\x53\xef")
_LINKS_MAX = 40


@contextmanager
def looking_into(device: Path) -> Iterator[Path]:
    """Mount the file system of a block device or file, without changing a byte of it, and yield a way to its root.

    The mount is taken out of the tree of mounts at once and lives as long as this process holds it open, so that a
    process that is killed leaves none behind.

    Raises:
        ProgramFailedError: It cannot be mounted.
    """
    options = ["ro", "nodev", "nosuid", "noexec"]
    with device.open("rb") as stream:
        if os.pread(stream.fileno(), 2, _EXT_MAGIC[0]) == _EXT_MAGIC[1]:
            # Mounting read-only still replays a journal.
            options.append("noload")
    if device.is_file():
        options.append("loop")
    place = Path(tempfile.mkdtemp(prefix="overhaul-mount-"))
    try:
        run(["mount", "-o", ",".join(options), device, place])
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        finally:
            run(["umount", "-l", place])
    finally:
        place.rmdir()
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def find_inside(root: Path, path: str) -> Path | None:
    """Return the file that `path` names inside the tree at `root`, or None.

    Links are followed as the tree's own system would, so an absolute one begins at `root` again and none leads out.
    """
    waiting = [part for part in reversed(path.split("/")) if part not in {"", "."}]
    found: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            found = found[:-1]
            continue
        place = root.joinpath(*found, part)
        if not place.is_symlink():
            found.append(part)
            continue
        links += 1
        if links > _LINKS_MAX:
            return None
        target = os.fspath(place.readlink())
        if target.startswith("/"):
            found = []
        waiting += [piece for piece in reversed(target.split("/")) if piece not in {"", "."}]
    place = root.joinpath(*found)
    return place if place.is_file() else None
