"""OSTree's own locks: record locks of open file descriptions over a whole file, shared or exclusive.

They are another kind than `host.locks`: only this kind is seen by a real `ostree` that works on the same device.
The kernel drops them with the process.
"""

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from overhaul.errors import BusyError

_PAUSE_S = 0.2


class RepositoryBusyError(BusyError):
    """Another program holds the lock."""

    def __init__(self, *, path: Path, purpose: str) -> None:
        self.path = path
        self.purpose = purpose
        super().__init__(f"{purpose} is under way in another program (it holds {path}); try again when it has ended.")


@contextmanager
def record_locked(
    path: Path,
    *,
    purpose: str,
    shared: bool = False,
    wait_s: float,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold the lock on `path` inside the block, after waiting for it `wait_s` at most.

    Raises:
        RepositoryBusyError: Somebody else still holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        deadline = monotonic() + wait_s
        while not _try(descriptor, fcntl.F_RDLCK if shared else fcntl.F_WRLCK):
            if monotonic() >= deadline:
                raise RepositoryBusyError(path=path, purpose=purpose)
            sleep(_PAUSE_S)
        yield
    finally:
        os.close(descriptor)


def _try(descriptor: int, kind: int) -> bool:
    # struct flock: type, whence, start, length 0 for the whole file, and a process id that must be 0.
    request = struct.pack("@hhqqi0q", kind, os.SEEK_SET, 0, 0, 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except BlockingIOError:
        return False
    except PermissionError:  # POSIX lets systems answer EACCES for the same thing
        return False
    return True
