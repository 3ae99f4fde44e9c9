"""Objects on their way into the repository: each is verified before it has a name, and all become durable together.

    REPO/tmp/overhaul-staging-BOOT/HEX.file       verified objects, named as in the repository, one directory
    REPO/tmp/overhaul-staging-BOOT/.part-N        being written

BOOT is the start of the system in which they were written. After a kill they are still whole, because the kernel
kept them: the next run takes them as they are. After a loss of power nothing is known about them, so a run in another
boot hashes each again before it takes it. `publish` syncs the file system once, then renames: one wait for the disk
for the whole pull, and no object under its final name whose bytes could be lost.
"""

import os
import shutil
import stat
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from pathlib import Path

from overhaul.dialects.ostree.device.barerepo import BareRepository, extension, object_key
from overhaul.dialects.ostree.errors import MalformedOstreeDataError, WrongChecksumError
from overhaul.dialects.ostree.filez import FileHeader, content_hash
from overhaul.dialects.ostree.objects import ObjectName, ObjectType, check_object
from overhaul.errors import DeviceError
from overhaul.host.files import sync_file_system

_PREFIX = "overhaul-staging-"
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_COPY_BYTES = 256 * 1024
_BUFFER_BYTES = 256 * 1024
#: Files that may wait to be stored; with what each holds at most that is 8 MiB.
_MAX_WAITING = 32
#: How many bytes may be written before free space is looked at again.
_LOOK_EVERY_BYTES = 16 << 20


class NoSpaceError(DeviceError):
    """The device has too little free space."""

    def __init__(self, *, path: Path, needed_bytes: int, free_bytes: int) -> None:
        self.path = path
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        super().__init__(
            f"{path} has {free_bytes} bytes free, and {needed_bytes} are needed; remove files or undeploy an old "
            "deployment, then try again. What was fetched is kept."
        )


class NotAllowedError(DeviceError):
    """Files cannot get the owner or attributes that the commit says."""

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"An object cannot be stored at {path} ({reason}); run as root, on a file system with xattrs.")


class Staging:
    """Collects verified objects of one pull."""

    def __init__(
        self,
        repository: BareRepository,
        *,
        boot_id: str,
        reserve_bytes: int,
        free_space: Callable[[Path], int],
    ) -> None:
        self._repository = repository
        self.directory = repository.path / "tmp" / f"{_PREFIX}{boot_id}"
        #: A prefix of paths: for thousands of small objects, path objects would cost more than the writing.
        self._place = f"{self.directory}/"
        self._reserve_bytes = reserve_bytes
        self._free_space = free_space
        self._numbers = count()
        self._written_bytes = 0
        self._looked_at_bytes = -_LOOK_EVERY_BYTES
        (repository.path / "tmp").mkdir(exist_ok=True)
        self.directory.mkdir(exist_ok=True)
        self.keys = self._take_over()

    def has(self, name: ObjectName) -> bool:
        """Whether an object is staged."""
        return object_key(name) in self.keys

    def place(self, name: ObjectName) -> str:
        """Return the path of an object while it is staged."""
        return self._place + object_key(name)

    def put_metadata(self, name: ObjectName, data: bytes) -> None:
        """Stage a metadata object whose bytes were checked."""
        self.room_for(len(data))
        key, part = object_key(name), self.part()
        descriptor = os.open(part, _NEW_FILE, 0o644)
        try:
            _write_whole(descriptor, data)
        finally:
            os.close(descriptor)
        os.rename(part, self._place + key)
        self.keys.add(key)

    def put_file(self, name: ObjectName, header: FileHeader, content: Iterable[bytes | memoryview]) -> int:
        """Stage a file object; return the bytes of its content.

        Raises:
            WrongChecksumError: Header and content are not those its name promises.
            NoSpaceError: There is no room for it.
        """
        digest = content_hash(header)
        size = 0
        with self.open_file(name, header) as staged:
            for piece in content:
                digest.update(piece)
                staged.write(piece)
                size += len(piece)
            if digest.digest() != name.checksum:
                raise WrongChecksumError(what=f"object {name}", expected=name.checksum.hex(), actual=digest.hexdigest())
            staged.finish()
        return size

    def open_file(
        self, name: ObjectName, header: FileHeader, *, later: Callable[[Callable[[], None]], None] | None = None
    ) -> "StagedFile":
        """Begin a file object whose content the caller hashes; it is staged when the caller calls `finish`.

        With `later`, a small one may be stored after that, by whoever `later` hands it to.
        """
        return StagedFile(self, name, header, later)

    def publish(self) -> None:
        """Give all staged objects their final names, durably; commits come last."""
        sync_file_system(self.directory)
        objects = str(self._repository.objects)
        for directory in {key[:2] for key in self.keys}.difference(os.listdir(objects)):
            (self._repository.objects / directory).mkdir(exist_ok=True)
        order = sorted(self.keys, key=_publishing_order)
        for key in order:
            os.rename(self._place + key, f"{objects}/{key[:2]}/{key[2:]}")
        sync_file_system(self.directory)
        self.discard()

    def discard(self) -> None:
        """Remove what is staged."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.keys = set()

    def _take_over(self) -> set[str]:
        """Return what an earlier run left that is whole, moved here from the staging of other boots."""
        found = set()
        for entry in os.scandir(self.directory):
            if entry.name.startswith(".part-"):
                Path(entry.path).unlink()
            else:
                found.add(entry.name)
        for other in sorted((self._repository.path / "tmp").glob(f"{_PREFIX}*")):
            if other == self.directory:
                continue
            for path in other.iterdir():
                if path.name not in found and _is_whole(path):
                    path.rename(self.directory / path.name)
                    found.add(path.name)
            shutil.rmtree(other)
        return found

    def part(self) -> str:
        """Return a new name for a file being written."""
        return f"{self._place}.part-{next(self._numbers)}"

    def room_for(self, size: int) -> None:
        """Look, now and then, whether there is still room; raise `NoSpaceError` when there is not."""
        # Threads add to it without a lock: it decides only how often the file system is asked.
        self._written_bytes += size
        if self._written_bytes - self._looked_at_bytes < _LOOK_EVERY_BYTES:
            return
        self._looked_at_bytes = self._written_bytes
        free = self._free_space(self.directory)
        if free < self._reserve_bytes + _LOOK_EVERY_BYTES:
            raise NoSpaceError(
                path=self._repository.path, needed_bytes=self._reserve_bytes + _LOOK_EVERY_BYTES, free_bytes=free
            )


class StagedFile:
    """A file object being written; as a context it is discarded unless it was finished.

    What is small is held until it is finished, and then stored at once: by `later` when there is one, so that whoever
    makes the content need not wait for the file system.
    """

    def __init__(
        self, staging: Staging, name: ObjectName, header: FileHeader, later: Callable[[Callable[[], None]], None] | None
    ) -> None:
        self._staging = staging
        self._name = name
        self._header = header
        self._later = later
        self._part = staging.part()
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._descriptor: int | None = None
        self._is_finished = False

    def __enter__(self) -> "StagedFile":
        return self

    def __exit__(self, *_error: object) -> None:
        self.discard()

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._staging.room_for(len(data))
        self._waiting.append(bytes(data))
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= _BUFFER_BYTES:
            self._flush()

    def finish(self) -> None:
        """Give it its owner, mode and attributes, and stage it."""
        self._is_finished = True
        if self._later is None or self._descriptor is not None:
            self._store()
        else:
            self._later(self._store)

    def discard(self) -> None:
        """Remove what was written; after `finish` there is nothing to remove."""
        if not self._is_finished:
            self._remove()

    def _store(self) -> None:
        header = self._header
        try:
            if header.is_link:
                os.symlink(header.target, self._part)
                _dress_link(self._part, header)
            else:
                _dress(self._flush(), header, path=self._part)
                self._close()
            os.rename(self._part, self._staging.place(self._name))
        except BaseException:
            self._remove()
            raise
        self._staging.keys.add(object_key(self._name))

    def _flush(self) -> int:
        """Write what waits and return the open file."""
        if self._descriptor is None:
            self._descriptor = os.open(self._part, _NEW_FILE, 0o600)
        pieces, self._waiting, self._waiting_bytes = self._waiting, [], 0
        for piece in pieces:
            _write_whole(self._descriptor, piece)
        return self._descriptor

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _remove(self) -> None:
        self._close()
        Path(self._part).unlink(missing_ok=True)


class Aside:
    """Stores finished files in a thread of its own; what waits is bounded, and what failed is told at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "Aside":
        return self

    def __exit__(self, *_error: object) -> None:
        self._pool.shutdown()

    def __call__(self, act: Callable[[], None]) -> None:
        """Have `act` done, after those before it."""
        self._waiting.append(self._pool.submit(act))
        while len(self._waiting) > _MAX_WAITING:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Wait for everything; raise what something raised."""
        while self._waiting:
            self._waiting.popleft().result()


def free_space_bytes(path: Path) -> int:
    """Return what the owner of files may still write where `path` lies."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _publishing_order(key: str) -> int:
    return {"commitmeta": 1, "commit": 2}.get(key.rpartition(".")[2], 0)


def _write_whole(descriptor: int, piece: bytes | memoryview) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(descriptor, view) :]


def _dress(descriptor: int, header: FileHeader, *, path: str) -> None:
    """Give a new file its owner, mode and attributes; changing the owner would drop some of them, so it is first."""
    try:
        os.fchown(descriptor, header.uid, header.gid)
        os.fchmod(descriptor, stat.S_IMODE(header.mode))
        for name, value in header.xattrs:
            os.setxattr(descriptor, name, value)
        os.utime(descriptor, ns=(0, 0))
    except OSError as error:
        raise NotAllowedError(path=path, reason=error.strerror or str(error)) from error


def _dress_link(path: str, header: FileHeader) -> None:
    try:
        os.chown(path, header.uid, header.gid, follow_symlinks=False)
        for name, value in header.xattrs:
            os.setxattr(path, name, value, follow_symlinks=False)
        os.utime(path, ns=(0, 0), follow_symlinks=False)
    except OSError as error:
        raise NotAllowedError(path=path, reason=error.strerror or str(error)) from error


def _is_whole(path: Path) -> bool:
    """Tell whether a file left by another boot holds what its name says."""
    digits, _, kind = path.name.partition(".")
    kinds = {extension(known): known for known in ObjectType}
    if len(digits) != 64 or kind not in kinds or kind == "commitmeta":
        return False
    name = ObjectName(kinds[kind], bytes.fromhex(digits))
    try:
        if kind == "file":
            return stored_checksum(path) == name.checksum
        check_object(name, path.read_bytes())
    except (OSError, ValueError, WrongChecksumError, MalformedOstreeDataError):
        return False
    return True


def stored_checksum(path: Path) -> bytes:
    """Return the name that a file object of a bare repository ought to have."""
    status = path.lstat()
    names = os.listxattr(path, follow_symlinks=False)
    xattrs = tuple(sorted((os.fsencode(name), os.getxattr(path, name, follow_symlinks=False)) for name in names))
    is_link = stat.S_ISLNK(status.st_mode)
    target = str(path.readlink()) if is_link else ""
    header = FileHeader(uid=status.st_uid, gid=status.st_gid, mode=status.st_mode, target=target, xattrs=xattrs)
    digest = content_hash(header)
    if not is_link:
        with path.open("rb") as stream:
            while piece := stream.read(_COPY_BYTES):
                digest.update(piece)
    return digest.digest()
