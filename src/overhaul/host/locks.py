"""A lock file that only one process holds, and that a killed process cannot leave behind."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overhaul.errors import BusyError


class LockedError(BusyError):
    """Another process holds the lock."""

    def __init__(self, *, path: Path, purpose: str) -> None:
        self.path = path
        self.purpose = purpose
        super().__init__(f"{purpose} is already running (it holds {path}); wait until it has ended, then try again.")


@contextmanager
def locked(path: Path, *, purpose: str) -> Iterator[None]:
    """Hold the lock `path` inside the block; `purpose` names its holder to whoever comes second.

    The kernel drops the lock with the process. The file itself stays: removing it would let a third process lock a
    new file while the second still waits on the old one.

    Raises:
        LockedError: Somebody else holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockedError(path=path, purpose=purpose) from error
        yield
    finally:
        os.close(descriptor)
