"""What this device has as configuration: its /etc, as the values a merge compares."""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from overhaul.content.configuration import node_of
from overhaul.content.tree import TreeEntry, UnreadableTreeError, scan_tree
from overhaul.release.configuration import Node

_PIECE_BYTES = 1024 * 1024


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
    nodes: dict[bytes, Node] = {}
    special: list[bytes] = []
    for entry in entries:
        node = node_of(entry, _digest(directory, entry) if entry.is_file else None)
        if node is None:
            special.append(entry.path)
        else:
            nodes[entry.path] = node
    return Scanned(nodes=nodes, special=tuple(special))


def _digest(directory: Path, entry: TreeEntry) -> bytes:
    """Return the digest of a file. It is read and not mapped: a bad sector would kill whoever looks into a mapping."""
    digest = hashlib.sha256()
    try:
        with open_no_link(directory / os.fsdecode(entry.path)) as stream:
            while piece := stream.read(_PIECE_BYTES):
                digest.update(piece)
            status = os.fstat(stream.fileno())
    except OSError as error:
        raise UnreadableTreeError(path=entry.path, reason=error.strerror or str(error)) from error
    if (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
        raise UnreadableTreeError(path=entry.path, reason="it changed while it was read")
    return digest.digest()


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
