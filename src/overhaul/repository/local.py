"""A storage in a local directory: one file an object, under its key.

A name appears only by rename or link of a file that is already synced, so a reader or a power cut never meets
half an object. Temporary files are hidden (their names begin with a dot, which no key part does) and lie beside
their targets; `sweep` removes those that a killed writer left.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overhaul.host.files import replacing, sync_directory, sync_file_system
from overhaul.repository.storage import (
    MissingObjectError,
    ObjectChangedError,
    ObjectExistsError,
    StorageFailedError,
    StoredObject,
    check_key,
)

#: Held for the moment of a swap, so that two swappers cannot both see the old content.
_SWAP_LOCK = ".swap"


class LocalStorage:
    """Objects as files below `root`, which is made on the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = str(root)

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of `key` from `start` up to `end`; raise `MissingObjectError` when there are none."""
        with self._explained(key), self._path(key).open("rb") as stream:
            stream.seek(start)
            return stream.read() if end is None else stream.read(max(0, end - start))

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, replacing what was there."""
        with self._explained(key), replacing(self._path_for_writing(key)) as stream:
            stream.write(data)

    def put_file(self, key: str, source: Path) -> None:
        """Store the content of the file `source` under `key`; within one file system `source` is moved there."""
        with self._explained(key):
            path = self._path_for_writing(key)
            if source.stat().st_dev == path.parent.stat().st_dev:
                source.chmod(0o644)
                _sync_file(source)
                os.replace(source, path)  # noqa: PTH105 - crash tests count calls of os
                sync_directory(path.parent)
            else:
                with source.open("rb") as reader, replacing(path) as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)

    def create(self, key: str, data: bytes) -> None:
        """Store `data` under a new `key`; raise `ObjectExistsError` when it exists."""
        with self._explained(key):
            path = self._path_for_writing(key)
            descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fchmod(stream.fileno(), 0o644)
                    os.fsync(stream.fileno())
                # A link, unlike a rename, fails when the name is taken.
                os.link(temporary, path)
            except FileExistsError as error:
                raise ObjectExistsError(key=key) from error
            finally:
                os.unlink(temporary)  # noqa: PTH108 - crash tests count calls of os
            sync_directory(path.parent)

    def swap(self, key: str, data: bytes, *, expected: bytes) -> None:
        """Store `data` under `key` only while it holds `expected`; raise `ObjectChangedError` when it does not."""
        with self._explained(key):
            path = self._path_for_writing(key)
            with (self.root / _SWAP_LOCK).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                try:
                    unchanged = path.read_bytes() == expected
                except FileNotFoundError:
                    unchanged = False
                if not unchanged:
                    raise ObjectChangedError(key=key)
                with replacing(path) as stream:
                    stream.write(data)

    def stat(self, key: str) -> StoredObject | None:
        """Return what is known of `key`, or None when it does not exist."""
        path = self._path(key)
        with self._explained(key):
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not path.is_file():
                return None
        return StoredObject(key=key, size=status.st_size, modified_at=status.st_mtime)

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key begins with `prefix`, in key order."""
        folder = prefix.rpartition("/")[0]
        keys = sorted(key for key in self._keys(folder) if key.startswith(prefix))
        for key in keys:
            found = self.stat(key)
            if found is not None:
                yield found

    def delete(self, key: str) -> None:
        """Remove `key`; removing what is not there is no error."""
        path = self._path(key)
        with self._explained(key):
            try:
                os.unlink(path)  # noqa: PTH108 - crash tests count calls of os
            except (FileNotFoundError, NotADirectoryError):
                return
            sync_directory(path.parent)

    def sweep(self) -> int:
        """Remove the temporary files of writers that died, and return how many; call it under the lock only."""
        leftovers = [
            Path(folder) / name
            for folder, _folders, names in os.walk(self.root)
            for name in names
            if name.startswith(".") and name.endswith(".tmp")
        ]
        for path in leftovers:
            path.unlink(missing_ok=True)
        return len(leftovers)

    def make_durable(self) -> None:
        """Make durable all that a writer who was killed before it synced may have left.

        Its files can be read, so they are taken for stored; the pointer that is moved to them would be durable and
        they, after a power cut, would not.
        """
        try:
            sync_file_system(self.root)
        except OSError as error:
            raise StorageFailedError(place=self.place, reason=error.strerror or str(error)) from error

    def _keys(self, folder: str) -> Iterator[str]:
        top = self.root / folder if folder else self.root
        for directory, folders, names in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            relative = Path(directory).relative_to(self.root).as_posix()
            for name in names:
                if not name.startswith("."):
                    yield name if relative == "." else f"{relative}/{name}"

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _path_for_writing(self, key: str) -> Path:
        path = self._path(key)
        missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            sync_directory(folder.parent)
        return path

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise MissingObjectError(key=key) from error
        except OSError as error:
            raise StorageFailedError(place=self.place, reason=f"{key}: {error.strerror or error}") from error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
