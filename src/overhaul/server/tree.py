"""Where the bytes of the public tree come from: a local directory or any other storage, with one behaviour.

Both refuse to leave `public/`. The local tree answers from the page cache without leaving the event loop and
goes to a thread only for bytes that must come from the disk; the storage tree always does.
"""

import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import anyio.to_thread

from overhaul.repository.local import LocalStorage
from overhaul.repository.opening import StorageAddress, open_storage
from overhaul.repository.storage import MissingObjectError, Storage

#: Storage key below which everything public lies.
PUBLIC_PREFIX = "public/"
#: Sizes of immutable objects remembered, so that a range costs one question to the storage and not two.
_REMEMBERED_SIZES = 4096


class OpenFile(Protocol):
    """One published file, open for reading."""

    size: int
    #: Changes whenever the bytes may have changed; two equal versions are the same bytes.
    version: str

    async def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to `end`; fewer mean that the file is damaged."""

    def close(self) -> None:
        """Let it go."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PublicTree(Protocol):
    """The files below the public root, by their public path."""

    #: Whether `version` answers within microseconds, so that it may be called inside the event loop.
    answers_at_once: bool

    async def open(self, path: str) -> OpenFile | None:
        """Open the file `path` (a path that `caching.naming_of` accepted), or return None when there is none."""

    def read_all(self, path: str) -> bytes | None:
        """Return the bytes of `path`, blocking; for the small files the server itself reads."""

    def version(self, path: str) -> str | None:
        """Return what `OpenFile.version` would be, blocking; None when there is no such file."""


class _Closing:
    def close(self) -> None:
        """Let it go."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _LocalFile(_Closing):
    def __init__(self, descriptor: int, status: os.stat_result) -> None:
        self._descriptor = descriptor
        self.size = status.st_size
        self.version = _version(status)

    async def read(self, start: int, end: int) -> bytes:
        size = min(end, self.size) - start
        piece = bytearray(max(0, size))
        try:
            received = os.preadv(self._descriptor, [piece], start, os.RWF_NOWAIT)
        except OSError:  # not in the page cache, or a file system that cannot tell
            received = 0
        if received == len(piece):
            return bytes(piece)
        return await anyio.to_thread.run_sync(os.pread, self._descriptor, len(piece), start)

    def close(self) -> None:
        os.close(self._descriptor)


class LocalTree:
    """The public tree of a repository in a local directory."""

    answers_at_once = True

    def __init__(self, repository: Path) -> None:
        self._root = os.path.realpath(repository / PUBLIC_PREFIX)

    @property
    def root(self) -> Path:
        """The directory of the public tree."""
        return Path(self._root)

    async def open(self, path: str) -> OpenFile | None:
        """Open the file `path`, or return None when there is none."""
        return self._open(path)

    def read_all(self, path: str) -> bytes | None:
        """Return the bytes of `path`."""
        found = self._open(path)
        if found is None:
            return None
        with found:
            return os.pread(found._descriptor, found.size, 0)

    def version(self, path: str) -> str | None:
        """Return what changes with the bytes of `path`."""
        try:
            return _version(os.stat(f"{self._root}/{path}"))  # noqa: PTH116 - asked on every poll: no Path objects
        except OSError:
            return None

    def _open(self, path: str) -> _LocalFile | None:
        try:
            descriptor = os.open(f"{self._root}/{path}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        status = os.fstat(descriptor)
        # The kernel knows where the opened file really is, so no symbolic link on the way can be overlooked.
        real = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - hot path
        if not stat.S_ISREG(status.st_mode) or not real.startswith(self._root + "/"):
            os.close(descriptor)
            return None
        return _LocalFile(descriptor, status)


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


class _StoredFile(_Closing):
    def __init__(self, storage: Storage, path: str, size: int, version: str, forget: Callable[[str], None]) -> None:
        self._storage = storage
        self._path = path
        self._forget = forget
        self.size = size
        self.version = version

    async def read(self, start: int, end: int) -> bytes:
        key = PUBLIC_PREFIX + self._path
        try:
            return await anyio.to_thread.run_sync(lambda: self._storage.read(key, start=start, end=end))
        except MissingObjectError:  # pruned since it was first asked for
            self._forget(self._path)
            raise


class StorageTree:
    """The public tree in any storage, read in ranges."""

    answers_at_once = False

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._immutable: OrderedDict[str, _StoredFile] = OrderedDict()

    async def open(self, path: str) -> OpenFile | None:
        """Open the file `path`, or return None when there is none."""
        known = self._immutable.get(path)
        if known is not None:
            self._immutable.move_to_end(path)
            return known
        found = await anyio.to_thread.run_sync(self._find, path)
        if found is not None and path.startswith(("content/", "castr/")):
            self._immutable[path] = found
            if len(self._immutable) > _REMEMBERED_SIZES:
                self._immutable.popitem(last=False)
        return found

    def read_all(self, path: str) -> bytes | None:
        """Return the bytes of `path`."""
        try:
            return self._storage.read(PUBLIC_PREFIX + path)
        except MissingObjectError:
            return None

    def version(self, path: str) -> str | None:
        """Return what changes with the bytes of `path`.

        Buckets tell the time of a change in whole seconds, which is too coarse for the pointer: it is read.
        """
        data = self.read_all(path)
        return None if data is None else hashlib.sha256(data).hexdigest()

    def _find(self, path: str) -> _StoredFile | None:
        stored = self._storage.stat(PUBLIC_PREFIX + path)
        if stored is None:
            return None
        return _StoredFile(self._storage, path, stored.size, f"{stored.modified_at}-{stored.size}", self._forget)

    def _forget(self, path: str) -> None:
        self._immutable.pop(path, None)


def open_tree(address: StorageAddress) -> PublicTree:
    """Return the public tree of the repository whose objects live at `address`."""
    storage = open_storage(address)
    return LocalTree(Path(storage.root)) if isinstance(storage, LocalStorage) else StorageTree(storage)
