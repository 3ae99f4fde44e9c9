"""A directory tree as values, and every file of it read once for all who want its bytes.

Several formats are made of one tree (an OSTree commit, swupd's full files, ...). Each needs other digests and
other containers of the same bytes, so the tree is scanned once into entries, and `read_files` hands each file's
content to every taker while it is in memory. Names are bytes: a tree may hold any but NUL and the slash.
"""

import mmap
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

from overhaul.errors import InputError
from overhaul.progress import Progress, Silence

#: Files above this are mapped instead of copied into memory.
_MAP_FROM = 8 << 20


class UnreadableTreeError(InputError):
    """A tree that cannot be read whole, or that changed while it was read."""

    def __init__(self, *, path: bytes, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{os.fsdecode(path)!r} of the tree cannot be read: {reason}; run again on a quiet tree.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEntry:
    """One object of a tree, as lstat(2) shows it."""

    #: Relative to the root, without a leading slash; the root itself is empty.
    path: bytes
    #: Type and permissions, as in st_mode.
    mode: int
    uid: int
    gid: int
    #: Bytes of a file or of a link's target; 0 for everything else.
    size: int
    mtime_ns: int
    #: Of a device node, else 0.
    rdev: int
    #: Equal for names of one object, and only for those.
    identity: tuple[int, int]
    #: Names the object has, inside the tree or not.
    links: int
    #: The target of a symbolic link, else None.
    target: bytes | None = None
    #: Extended attributes by name.
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


#: Takes a regular file and all of its bytes, which are not to be kept after the call.
FileTaker = Callable[[TreeEntry, memoryview], None]


def scan_tree(root: Path) -> tuple[TreeEntry, ...]:
    """Return every object below and including the directory `root`, by bytewise path; no content is read.

    Raises:
        UnreadableTreeError: Something of it cannot be looked at.
    """
    base = os.fsencode(root)
    entries = [_entry(b"", base)]
    waiting = [b""]
    while waiting:
        folder = waiting.pop()
        try:
            names = os.listdir(os.path.join(base, folder))
        except OSError as error:
            raise UnreadableTreeError(path=folder, reason=str(error.strerror)) from error
        for name in names:
            entry = _entry(os.path.join(folder, name), base)
            entries.append(entry)
            if entry.is_directory:
                waiting.append(entry.path)
    return tuple(sorted(entries, key=lambda entry: entry.path))


def read_files(
    root: Path,
    entries: Iterable[TreeEntry],
    takers: Sequence[FileTaker],
    *,
    workers: int,
    progress: Progress | None = None,
) -> None:
    """Read each regular file among `entries` once and hand it to every one of `takers`.

    Takers are called from `workers` threads at once, for one file at a time in each; names of one object (hard
    links) are handed on one after the other with the same bytes. The first error ends it.

    Raises:
        UnreadableTreeError: A file cannot be read, or has another size or time than its entry says.
    """
    progress = progress or Silence()
    objects: defaultdict[tuple[int, int], list[TreeEntry]] = defaultdict(list)
    for entry in entries:
        if entry.is_file:
            objects[entry.identity].append(entry)
    # The largest first, so that no thread is left alone with one at the end.
    named = sorted(objects.values(), key=lambda names: -names[0].size)
    progress.begin("Reading the tree", sum(names[0].size for names in named))
    try:
        with ThreadPoolExecutor(workers) as pool:
            done = pool.map(_read_object, repeat(os.fsencode(root)), named, repeat(takers))
            try:
                for size in done:
                    progress.advance(size)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        progress.end()


def _read_object(root: bytes, names: Sequence[TreeEntry], takers: Sequence[FileTaker]) -> int:
    first = names[0]
    try:
        descriptor = os.open(os.path.join(root, first.path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableTreeError(path=first.path, reason=str(error.strerror)) from error
    try:
        content = _content(descriptor, first)
        with content:
            for entry in names:
                for take in takers:
                    take(entry, content)
        status = os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (first.size, first.mtime_ns):
            raise UnreadableTreeError(path=first.path, reason="it changed while it was read")
    finally:
        os.close(descriptor)
    return first.size


def _content(descriptor: int, entry: TreeEntry) -> memoryview:
    if os.fstat(descriptor).st_size != entry.size:
        raise UnreadableTreeError(path=entry.path, reason="it changed while it was read")
    if entry.size >= _MAP_FROM:
        return memoryview(mmap.mmap(descriptor, entry.size, prot=mmap.PROT_READ))
    pieces = []
    left = entry.size
    while left:
        piece = os.read(descriptor, left)
        if not piece:
            raise UnreadableTreeError(path=entry.path, reason="it changed while it was read")
        pieces.append(piece)
        left -= len(piece)
    return memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))


def _entry(path: bytes, base: bytes) -> TreeEntry:
    full = os.path.join(base, path) if path else base
    try:
        status = os.stat(full) if not path else os.lstat(full)
        is_link = stat.S_ISLNK(status.st_mode)
        target = os.readlink(full) if is_link else None
        names = os.listxattr(full, follow_symlinks=not path)
        xattrs = tuple((os.fsencode(name), os.getxattr(full, name, follow_symlinks=not path)) for name in sorted(names))
    except OSError as error:
        raise UnreadableTreeError(path=path, reason=str(error.strerror)) from error
    is_node = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return TreeEntry(
        path=path,
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if stat.S_ISREG(status.st_mode) or is_link else 0,
        mtime_ns=status.st_mtime_ns,
        rdev=status.st_rdev if is_node else 0,
        identity=(status.st_dev, status.st_ino),
        links=status.st_nlink,
        target=target,
        xattrs=xattrs,
    )
