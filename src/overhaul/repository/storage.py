"""The storage seam: where a published tree lives. A local directory or a bucket, with one behaviour.

Keys are relative paths with forward slashes. What every implementation promises:

* An object is wholly there or not there: readers never see a part of one.
* `put` replaces; `create` refuses when the key exists and exactly one of several racing creators wins; `swap`
  replaces only the content it was told of, and exactly one of several racing swappers wins.
* When `put`, `create` or `swap` returns, the object survives a power cut.
* `list_objects` shows what was put before it began.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from overhaul.errors import OperatorError


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """What a listing tells of an object."""

    key: str
    size: int
    #: Seconds since 1970 UTC at which it was last written.
    modified_at: float


class Storage(Protocol):
    """A place for objects."""

    #: What a person calls this place: a path or an address without secrets.
    place: str

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of `key` from `start` up to `end`; raise `MissingObjectError` when there are none."""

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, replacing what was there."""

    def put_file(self, key: str, source: Path) -> None:
        """Store the content of the file `source` under `key`; a local storage may move it there."""

    def create(self, key: str, data: bytes) -> None:
        """Store `data` under a new `key`; raise `ObjectExistsError` when it exists."""

    def swap(self, key: str, data: bytes, *, expected: bytes) -> None:
        """Store `data` under `key` only while it holds `expected`; raise `ObjectChangedError` when it does not."""

    def stat(self, key: str) -> StoredObject | None:
        """Return what is known of `key`, or None when it does not exist."""

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key begins with `prefix`, in key order."""

    def delete(self, key: str) -> None:
        """Remove `key`; removing what is not there is no error."""


class MissingObjectError(OperatorError):
    """A key that should be in the storage is not."""

    def __init__(self, *, key: str) -> None:
        self.key = key
        super().__init__(f"{key} is missing from the repository; run `overhaul repository verify` to see what else is.")


class ObjectExistsError(OperatorError):
    """A key that should be new exists."""

    def __init__(self, *, key: str) -> None:
        self.key = key
        super().__init__(f"{key} already exists in the repository; somebody else wrote it first.")


class ObjectChangedError(OperatorError):
    """A key holds something else than the writer saw before."""

    def __init__(self, *, key: str) -> None:
        self.key = key
        super().__init__(f"{key} was changed by somebody else in the meantime; run the command again.")


class UnusableKeyError(ValueError):
    """A key that no published tree has; asking for it is a mistake in the calling code."""

    def __init__(self, *, key: str) -> None:
        self.key = key
        super().__init__(f"{key!r} is not a storage key")


def check_key(key: str) -> str:
    """Return `key` when every part of it is a plain name; a part never begins with a dot.

    Raises:
        UnusableKeyError: The key is empty, absolute, leaves the storage, or has a hidden part.
    """
    if not key or "\0" in key or any(not part or part.startswith(".") for part in key.split("/")):
        raise UnusableKeyError(key=key)
    return key


class StorageFailedError(OperatorError):
    """The storage itself did not answer or refused."""

    def __init__(self, *, place: str, reason: str) -> None:
        self.place = place
        self.reason = reason
        super().__init__(f"The storage {place} failed: {reason}. Check its address, rights and free space.")
