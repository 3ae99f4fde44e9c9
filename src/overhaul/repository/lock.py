"""One writer at a time: the lock of a repository.

In a local directory the kernel holds the lock (`flock`), so a writer that dies frees it. Anywhere else the lock
is a *lease*: an object that names its holder and the time it ends. The holder renews it from a thread; who finds
an ended lease takes it over by `swap`, which exactly one of several wins. A lease is never deleted, only marked
free, so that a late holder cannot remove its successor's.

A lease alone cannot stop a writer that slept through its end. Therefore `check` is asked before every step that
others can see, and the steps themselves are conditional writes (see `signed.py`).
"""

import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Protocol

import msgspec

from overhaul.errors import BusyError, OperatorError
from overhaul.repository.layout import LOCK_KEY
from overhaul.repository.local import LocalStorage
from overhaul.repository.storage import MissingObjectError, ObjectChangedError, ObjectExistsError, Storage

LEASE_SECONDS = 120.0
#: Clocks of two publishers may differ by this much; an ended lease is left alone for so long.
CLOCK_MARGIN_SECONDS = 30.0


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds the lock and what for."""

    host: str
    pid: int
    purpose: str
    #: Seconds since 1970 UTC, up to the last that a calendar date can be written for.
    since: Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]
    #: Tells two holders apart, whatever else they have in common.
    token: str
    #: When a lease ends unless it is renewed; 0 for a free one. A local lock has no end.
    ends_at: float | None = None

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"`overhaul {self.purpose}` on {self.host} (process {self.pid}, since {since})"


class RepositoryBusyError(BusyError):
    """Another process writes to the repository."""

    def __init__(self, *, place: str, holder: Holder | None) -> None:
        self.place = place
        self.holder = holder
        super().__init__(
            f"The repository {place} is in use by {holder or 'another process'}; wait until it has ended, "
            "then run the command again."
        )


class LostLockError(BusyError):
    """The lease ended while its holder was busy or cut off, so somebody else may write now."""

    def __init__(self, *, place: str) -> None:
        self.place = place
        super().__init__(
            f"The lock of {place} was lost because it could not be renewed in time; nothing was published, "
            "run the command again."
        )


class RepositoryLock(Protocol):
    """A lock that is held."""

    def check(self) -> None:
        """Raise `LostLockError` when the lock is not surely held any more."""


class _KernelLock:
    def check(self) -> None:
        """Do nothing: the kernel keeps the lock as long as the process lives."""


@contextmanager
def repository_lock(
    storage: Storage, *, purpose: str, clock: Callable[[], float] = time.time, lease_s: float = LEASE_SECONDS
) -> Iterator[RepositoryLock]:
    """Hold the lock of the repository in `storage` inside the block.

    Raises:
        RepositoryBusyError: Somebody else holds it.
    """
    holder = Holder(
        host=socket.gethostname(), pid=os.getpid(), purpose=purpose, since=clock(), token=secrets.token_hex(16)
    )
    if isinstance(storage, LocalStorage):
        with _kernel_lock(storage, holder) as lock:
            yield lock
        return
    lease = _Lease(storage, holder, clock=clock, lease_s=lease_s)
    lease.acquire()
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def _kernel_lock(storage: LocalStorage, holder: Holder) -> Iterator[RepositoryLock]:
    path = storage.root / LOCK_KEY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise OperatorError(f"The lock {path} cannot be opened ({error.strerror}); check its rights.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RepositoryBusyError(place=storage.place, holder=_parse(os.pread(descriptor, 4096, 0))) from error
        os.ftruncate(descriptor, 0)
        # Only told to whoever comes second: it need not survive anything, and a full disk must not keep out a prune.
        # One who comes before it is written, or when it has been taken away, is told of another process.
        with suppress(OSError):
            os.pwrite(descriptor, msgspec.json.encode(holder), 0)
        try:
            yield _KernelLock()
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


class _Lease:
    """A lease object, renewed by a thread while it is held."""

    def __init__(self, storage: Storage, holder: Holder, *, clock: Callable[[], float], lease_s: float) -> None:
        self._storage = storage
        self._holder = holder
        self._clock = clock
        self._lease_s = lease_s
        self._written = b""
        self._ends_at = 0.0
        self._renewing = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="repository-lease", daemon=True)

    def acquire(self) -> None:
        """Take the lease when it is free or has ended."""
        data, ends_at = self._document()
        try:
            self._storage.create(LOCK_KEY, data)
        except ObjectExistsError:
            self._take_over(data)
        self._written, self._ends_at = data, ends_at
        self._thread.start()

    def check(self) -> None:
        """Raise `LostLockError` when the lease has ended, or would end before a small write is done."""
        if self._clock() > self._ends_at - self._lease_s / 4:
            self.renew()

    def renew(self) -> None:
        """Move the end of the lease on.

        Raises:
            LostLockError: Somebody else has it.
        """
        with self._renewing:
            data, ends_at = self._document()
            try:
                self._storage.swap(LOCK_KEY, data, expected=self._written)
            except ObjectChangedError as error:
                self._ends_at = 0.0
                raise LostLockError(place=self._storage.place) from error
            self._written, self._ends_at = data, ends_at

    def release(self) -> None:
        """Mark the lease free, if it is still ours."""
        self._stop.set()
        self._thread.join()
        try:
            self._storage.swap(LOCK_KEY, _encode(self._holder, ends_at=0.0), expected=self._written)
        except OperatorError:
            # It ended and is somebody else's, or the storage is gone: then it ends by itself.
            return

    def _take_over(self, data: bytes) -> None:
        found = self._storage.read(LOCK_KEY)
        holder = _parse(found)
        if holder is not None and holder.ends_at and self._clock() < holder.ends_at + CLOCK_MARGIN_SECONDS:
            raise RepositoryBusyError(place=self._storage.place, holder=holder)
        try:
            self._storage.swap(LOCK_KEY, data, expected=found)
        except (ObjectChangedError, MissingObjectError) as error:
            raise RepositoryBusyError(place=self._storage.place, holder=None) from error

    def _document(self) -> tuple[bytes, float]:
        ends_at = self._clock() + self._lease_s
        return _encode(self._holder, ends_at=ends_at), ends_at

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._lease_s / 3):
            try:
                self.renew()
            except LostLockError:
                return
            except OperatorError:
                # The storage did not answer; try again until `check` finds that the lease has ended.
                continue


def _encode(holder: Holder, *, ends_at: float) -> bytes:
    return msgspec.json.encode(msgspec.structs.replace(holder, ends_at=ends_at))


def _parse(data: bytes) -> Holder | None:
    try:
        return msgspec.json.decode(data, type=Holder)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
