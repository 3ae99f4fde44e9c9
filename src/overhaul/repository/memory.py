"""A storage in memory: for tests and for trying things out. It keeps every promise but survival."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from overhaul.repository.storage import (
    MissingObjectError,
    ObjectChangedError,
    ObjectExistsError,
    StoredObject,
    check_key,
)


class MemoryStorage:
    """Objects in a dictionary, safe to share between threads."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.place = "memory"
        self._clock = clock
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, float]] = {}

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of `key` from `start` up to `end`; raise `MissingObjectError` when there are none."""
        with self._lock:
            if check_key(key) not in self._objects:
                raise MissingObjectError(key=key)
            return self._objects[key][0][start:end]

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, replacing what was there."""
        with self._lock:
            self._objects[check_key(key)] = (data, self._clock())

    def put_file(self, key: str, source: Path) -> None:
        """Store the content of the file `source` under `key`."""
        self.put(key, source.read_bytes())

    def create(self, key: str, data: bytes) -> None:
        """Store `data` under a new `key`; raise `ObjectExistsError` when it exists."""
        with self._lock:
            if check_key(key) in self._objects:
                raise ObjectExistsError(key=key)
            self._objects[key] = (data, self._clock())

    def swap(self, key: str, data: bytes, *, expected: bytes) -> None:
        """Store `data` under `key` only while it holds `expected`; raise `ObjectChangedError` when it does not."""
        with self._lock:
            if check_key(key) not in self._objects or self._objects[key][0] != expected:
                raise ObjectChangedError(key=key)
            self._objects[key] = (data, self._clock())

    def stat(self, key: str) -> StoredObject | None:
        """Return what is known of `key`, or None when it does not exist."""
        with self._lock:
            entry = self._objects.get(check_key(key))
        return None if entry is None else StoredObject(key=key, size=len(entry[0]), modified_at=entry[1])

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key begins with `prefix`, in key order."""
        with self._lock:
            found = [(key, *entry) for key, entry in sorted(self._objects.items()) if key.startswith(prefix)]
        for key, data, modified_at in found:
            yield StoredObject(key=key, size=len(data), modified_at=modified_at)

    def delete(self, key: str) -> None:
        """Remove `key`; removing what is not there is no error."""
        with self._lock:
            self._objects.pop(check_key(key), None)
