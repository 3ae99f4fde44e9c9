"""Files that are either wholly there or not there at all."""

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

#: More writers than ever write one file at a time; a file system that is at odds with itself must not hold one up.
_TRIES_MAX = 100


def sync_directory(directory: Path) -> None:
    """Make renames and new names inside `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path, *, mode: int = 0o777) -> None:
    """Have a directory, and durably so: a file that is synced in a directory whose name is not can still be lost.

    The missing directories above it are made in the same way, with the usual rights.
    """
    missing = [place for place in (directory, *directory.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=mode if place == directory else 0o777, exist_ok=True)
        sync_directory(place.parent)


def sync_file_system(directory: Path) -> None:
    """Make all that was written to the file system of `directory` durable: one flush instead of thousands."""
    import ctypes

    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The standard library has fsync and sync, but not the call between them.
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(descriptor)


def require_writable(place: Path) -> None:
    """Raise the error that writing to the file `place`, or in the directory, would meet; nothing is changed.

    Root may write everywhere but to what is mounted read-only or not there.
    """
    place.stat()
    if not os.access(place, os.W_OK, effective_ids=True):
        number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(place))


@contextmanager
def replacing(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Open a file that takes the name `path` only when the block ends without an error.

    The bytes are written beside `path` under a temporary name, flushed, synced and renamed, and the directory
    is synced, so that after a power cut the name holds the old bytes or the new ones. On an error the temporary
    file is removed and `path` is untouched. What a writer that was killed left there is removed by the next one.
    """
    with _beside(path, mode) as (stream, temporary):
        yield stream
        _sync(stream)
        temporary.replace(path)
    sync_directory(path.parent)


def replace_together(contents: Mapping[Path, bytes], *, mode: int = 0o644) -> None:
    """Give several files their contents, durably and one right after the other in the order given.

    All are on the medium before the first gets its name, so that who reads them finds them apart for no longer than
    two renames take. A power cut may leave only the first ones new.
    """
    with ExitStack() as stack:
        written = []
        for path, data in contents.items():
            stream, temporary = stack.enter_context(_beside(path, mode))
            stream.write(data)
            _sync(stream)
            written.append((temporary, path))
        for temporary, path in written:
            temporary.replace(path)
    for directory in {path.parent for path in contents}:
        sync_directory(directory)


@contextmanager
def _beside(path: Path, mode: int) -> Iterator[tuple[BinaryIO, Path]]:
    """Open a new file beside `path`, which is removed on an error unless it was renamed."""
    temporary, descriptor = _open_temporary(path, mode)
    # Renamed while it is open: with the lock given back, another writer would take the file for abandoned.
    with os.fdopen(descriptor, "wb") as stream:
        try:
            yield stream, temporary
        except BaseException:
            # Once it was renamed, the name may be another writer's.
            if _is_named(descriptor, temporary):
                temporary.unlink()
            raise


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _open_temporary(path: Path, mode: int) -> tuple[Path, int]:
    """Return a new file beside `path` and its open descriptor, which holds a lock on it.

    The names are `.NAME.0.tmp`, `.NAME.1.tmp` and so on; each writer takes the first that no living one has. So a
    killed writer's file is found without looking through the directory, and is known by its lock: the kernel drops
    that with the process. A process id would say less, since another container or host has its own.
    """
    number = 0
    for _ in range(_TRIES_MAX):
        temporary = path.with_name(f".{path.name}.{number}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            if not _remove_abandoned(temporary):
                number += 1
            continue
        # Without locks, on some network file systems, nothing is ever taken for abandoned.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_named(descriptor, temporary):
            # Taken for abandoned before it was locked.
            os.close(descriptor)
            continue
        while _remove_abandoned(path.with_name(f".{path.name}.{number + 1}.tmp")):
            number += 1
        return temporary, descriptor
    raise OSError(errno.EBUSY, "no temporary name is to be had", str(path))


def _remove_abandoned(temporary: Path) -> bool:
    """Remove the file unless a living writer holds it, or it is not to be had; tell whether it was removed."""
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_named(descriptor, temporary):
            temporary.unlink()
            return True
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return False


def _is_named(descriptor: int, path: Path) -> bool:
    """Tell whether `path` is still a name of the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def replace_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Give `path` the content `data`, durably and all at once."""
    with replacing(path, mode=mode) as stream:
        stream.write(data)
