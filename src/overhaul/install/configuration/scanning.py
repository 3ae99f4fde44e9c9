"""What this device has as configuration: its /etc, as the values a merge compares."""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from overhaul.content.configuration import node_of
from overhaul.content.tree import TreeEntry, read_files, scan_tree
from overhaul.release.configuration import Node


@dataclass(frozen=True, kw_only=True)
class Scanned:
    """A directory."""

    nodes: dict[bytes, Node]
    #: Sockets, pipes and devices, which no update carries over.
    special: tuple[bytes, ...]


def scan(directory: Path) -> Scanned:
    """Return what `directory` holds; every file is read.

    Raises:
        UnreadableTreeError: Something of it cannot be read, or changed meanwhile.
    """
    entries = scan_tree(directory)
    digests: dict[bytes, bytes] = {}

    def take(entry: TreeEntry, content: memoryview) -> None:
        digests[entry.path] = hashlib.sha256(content).digest()

    read_files(directory, entries, [take], workers=2)
    nodes: dict[bytes, Node] = {}
    special: list[bytes] = []
    for entry in entries:
        node = node_of(entry, digests.get(entry.path))
        if node is None:
            special.append(entry.path)
        else:
            nodes[entry.path] = node
    return Scanned(nodes=nodes, special=tuple(special))


def read_here(directory: Path, path: bytes, *, limit: int) -> bytes | None:
    """Return the content of a file below `directory`, or None when it is bigger than `limit` or no file now."""
    try:
        with open_no_link(directory / os.fsdecode(path)) as stream:
            data = stream.read(limit + 1)
    except OSError:
        return None
    return data if len(data) <= limit else None


def open_no_link(path: Path) -> BinaryIO:
    """Open a regular file itself, and neither what a link leads to nor a pipe that nobody writes to."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    return os.fdopen(descriptor, "rb")
