"""Changing a system so that a kill at any moment leaves it as it was, or is finished by the next run.

Everything new is first made ready beside its final place under names that begin with `.update.`: files and links
one by one, new directories as a whole with all that belongs in them. Then everything is written to the medium, the
journal turns to `applying`, and renames put it in place, the file that tells the version last. What must go is
removed after that. A directory that gives way to a file or link is moved aside first, and what nobody listed in it
stays there under a name that begins with `.deleted.`.

Nothing is written through a symbolic link: every parent must be a real directory inside the root.
"""

import ctypes
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overhaul.dialects.swupd.device.errors import NoSpaceError, StagingError, UnsafePathError
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.journal import (
    APPLYING,
    STAGING,
    Fixing,
    Placing,
    Record,
    read_record,
    remove_record,
    write_record,
)
from overhaul.dialects.swupd.device.pathclasses import is_config, is_state
from overhaul.dialects.swupd.device.state import Data
from overhaul.dialects.swupd.hash import read_xattrs
from overhaul.dialects.swupd.manifest import Entry
from overhaul.host.files import replace_bytes

_VERSION_FILES = (b"/usr/lib/os-release", b"/etc/os-release")
_NAME_MAX = 255
_BLOCK = 4096
#: What a file system needs for itself while names change.
_RESERVE_BYTES = 1 << 20
_COPY_BYTES = 1 << 20


@dataclass
class Applied:
    """What became of a list of changes."""

    #: Path and reason of what could not be changed.
    failed: dict[bytes, str] = field(default_factory=dict)
    #: Directories that were moved out of the way because they hold what no manifest lists.
    aside: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class Applier:
    """Changes one root."""

    root: Path
    data: Data
    #: Directory of the objects under their hashes; everything that is put must be there.
    objects: Path
    with_xattrs: bool = False
    clock: Callable[[], float] = time.time

    def apply(
        self,
        put: Sequence[Entry],
        remove: Iterable[bytes],
        *,
        version: int | None = None,
        track: Iterable[str] = (),
        untrack: Iterable[str] = (),
        goes_on: bool = False,
        advance: Callable[[int], None] = lambda _count: None,
    ) -> Applied:
        """Put the entries of `put` in place and remove the paths of `remove`.

        Without `goes_on` the first entry that cannot be made ready ends it, and nothing has changed; with it the
        others are put in place all the same. When something cannot be renamed or removed in the end, the version
        does not change, so that the next update tries again.

        Raises:
            NoSpaceError: The file system of the root is too small for what is new.
            StagingError, UnsafePathError: Something cannot be made ready.
        """
        ordered = sorted(put, key=lambda entry: entry.name)
        root = os.fsencode(self.root).rstrip(b"/")
        names = _free_names(root, [entry.name for entry in ordered])
        staging = _Staging(root, os.fsencode(self.objects), names, with_xattrs=self.with_xattrs)
        applied = Applied()
        self._check_space(ordered)
        epoch = int(self.clock())
        record = Record(phase=STAGING, root=str(self.root), version=version, epoch=epoch)
        # Before anything is made: which names to clear away when this run dies.
        intended = tuple(Placing(path, staged) for path, staged in names.items())
        write_record(self.data.journal, _with(record, place=intended))
        try:
            self._stage_all(staging, ordered, applied, goes_on=goes_on, advance=advance)
        except BaseException:
            self._clear(_with(record, place=(*intended, *staging.place)))
            remove_record(self.data.journal)
            raise
        sync_file_system(self.root)
        ready = Record(
            phase=APPLYING,
            root=str(self.root),
            version=version,
            epoch=epoch,
            fix=tuple(staging.fix),
            place=tuple(sorted(staging.place, key=_place_order)),
            remove=_removals(remove, staging.replaced, epoch),
            track=tuple(track),
            untrack=tuple(untrack),
        )
        write_record(self.data.journal, ready)
        self._carry_out(ready, applied)
        return applied

    def finish_interrupted(self) -> Record | None:
        """Finish or undo what an earlier run left; return its record when it was finished.

        Raises:
            BrokenJournalError: The record is damaged.
        """
        record = read_record(self.data.journal)
        if record is None:
            return None
        if Path(record.root) != self.root:
            # Another root was worked on with the same data; it is finished there, as this record says.
            return Applier(Path(record.root), self.data, self.objects, self.with_xattrs).finish_interrupted()
        if record.phase == STAGING:
            self._clear(record)
            remove_record(self.data.journal)
            return None
        self._carry_out(record, Applied())
        return record

    def _stage_all(
        self,
        staging: "_Staging",
        ordered: Sequence[Entry],
        applied: Applied,
        *,
        goes_on: bool,
        advance: Callable[[int], None],
    ) -> None:
        for entry in ordered:
            try:
                staging.stage(entry)
            except UnsafePathError as error:
                if not goes_on:
                    raise
                applied.failed[entry.name] = error.reason
            except OSError as error:
                if not goes_on or error.errno == errno.ENOSPC:
                    raise _staging_error(entry, error) from error
                applied.failed[entry.name] = error.strerror or str(error)
            advance(1)

    def _carry_out(self, record: Record, applied: Applied) -> None:
        """Do everything of `record` that is not done yet, then forget it."""
        place = _Placing(os.fsencode(self.root).rstrip(b"/"), record.epoch, applied)
        for fixing in record.fix:
            place.fix(fixing)
        for placing in record.place:
            if placing.path in _VERSION_FILES and applied.failed:
                place.discard(placing)
            else:
                place.put(placing)
        sync_file_system(self.root)
        for path in record.remove:
            place.remove(path)
        if not applied.failed:
            for bundle in record.track:
                self.data.track(bundle)
            for bundle in record.untrack:
                self.data.untrack(bundle)
            if record.version is not None:
                replace_bytes(self.data.version_file, f"{record.version}\n".encode())
        sync_file_system(self.root)
        remove_record(self.data.journal)

    def _clear(self, record: Record) -> None:
        root = os.fsencode(self.root).rstrip(b"/")
        parents = _Parents(root)
        for placing in record.place:
            if parents.are_real(placing.staged):
                _remove_tree(root + placing.staged)

    def _check_space(self, put: Sequence[Entry]) -> None:
        """Refuse what does not fit, knowing the exact sizes of all objects."""
        status = os.statvfs(self.root)
        free = status.f_bavail * status.f_frsize
        device = os.stat(self.root).st_dev
        needed = _RESERVE_BYTES
        for entry in put:
            try:
                found = os.lstat(self.objects / entry.hash)
            except FileNotFoundError:
                continue
            is_linked = entry.kind == "F" and found.st_dev == device and not _is_private(entry.name)
            needed += 256 if is_linked else -(-found.st_size // _BLOCK) * _BLOCK + (_BLOCK if entry.kind == "D" else 0)
        if needed > free:
            raise NoSpaceError(place=self.root, needed_bytes=needed, free_bytes=free)


class _Staging:
    """Makes everything ready; entries come in the order of their paths."""

    def __init__(self, root: bytes, objects: bytes, names: Mapping[bytes, bytes], *, with_xattrs: bool) -> None:
        self._root = root
        self._objects = objects
        #: Under which name each object lies ready.
        self._names = names
        self._with_xattrs = with_xattrs
        self._parents = _Parents(root)
        #: New directories: path -> where it lies until it is put in place.
        self._new: dict[bytes, bytes] = {}
        self.place: list[Placing] = []
        self.fix: list[Fixing] = []
        #: Directories that give way to something else.
        self.replaced: list[bytes] = []

    def stage(self, entry: Entry) -> None:
        """Make one object ready."""
        path = entry.name
        source = os.path.join(self._objects, entry.hash.encode())
        if path == b"/":
            self._fix(path, source)
            return
        parent, _slash, name = path.rpartition(b"/")
        above = self._new_parent(parent)
        if above is not None:
            self._make(entry, source, self._root + above + b"/" + name, above + b"/" + name)
            return
        there = _lstat(self._root + path)
        is_directory = there is not None and stat.S_ISDIR(there.st_mode)
        if entry.kind == "D" and is_directory:
            self._fix(path, source)
            return
        staged = self._names[path]
        self._make(entry, source, self._root + staged, staged)
        self.place.append(Placing(path, staged))
        if is_directory:
            self.replaced.append(path)

    def _make(self, entry: Entry, source: bytes, target: bytes, staged: bytes) -> None:
        status = os.lstat(source)
        if entry.kind == "D":
            os.mkdir(target, 0o700)
            os.chown(target, status.st_uid, status.st_gid)
            os.chmod(target, stat.S_IMODE(status.st_mode))
            self._new[entry.name] = staged
        elif entry.kind == "L":
            os.symlink(os.readlink(source), target)
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        else:
            self._make_file(entry, source, target, status)
            return
        if self._with_xattrs:
            _copy_xattrs(source, target)

    def _make_file(self, entry: Entry, source: bytes, target: bytes, status: os.stat_result) -> None:
        if not _is_private(entry.name):
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError as error:
                # Another file system, one without links, or too many of them.
                if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}:
                    raise
            else:
                return
        copy_file(source, target, status)
        if self._with_xattrs:
            _copy_xattrs(source, target)

    def _fix(self, path: bytes, source: bytes) -> None:
        wanted = os.lstat(source)
        xattrs = read_xattrs(source) if self._with_xattrs else None
        self.fix.append(Fixing(path, stat.S_IMODE(wanted.st_mode), wanted.st_uid, wanted.st_gid, xattrs))

    def _new_parent(self, parent: bytes) -> bytes | None:
        """Return where the new directory `parent` lies, or None when it is in place already."""
        if not parent:
            return None
        new = self._new.get(parent)
        if new is not None:
            return new
        if self._parents.are_real(parent + b"/x"):
            return None
        there = _lstat(self._root + parent)
        if there is not None and not stat.S_ISDIR(there.st_mode):
            what = "a link" if stat.S_ISLNK(there.st_mode) else "no directory"
            raise UnsafePathError(path=os.fsdecode(parent), reason=f"{os.fsdecode(parent)} is {what}")
        if there is not None:
            raise UnsafePathError(path=os.fsdecode(parent), reason="one of its parents is a link")
        # No manifest lists it, so it gets what directories usually have.
        above = self._new_parent(parent.rpartition(b"/")[0])
        name = parent.rpartition(b"/")[2]
        if above is not None:
            staged = above + b"/" + name
        else:
            staged = _free_names(self._root, [parent])[parent]
            self.place.append(Placing(parent, staged))
        os.mkdir(self._root + staged, 0o755)
        os.chmod(self._root + staged, 0o755)  # noqa: S103 - as all directories of a system
        self._new[parent] = staged
        return staged


class _Placing:
    """Puts in place what lies ready; every act can be repeated."""

    def __init__(self, root: bytes, epoch: int, applied: Applied) -> None:
        self._root = root
        self._epoch = epoch
        self._applied = applied
        self._parents = _Parents(root)

    def fix(self, fixing: Fixing) -> None:
        if not self._parents.are_real(fixing.path + b"/x"):
            return
        full = self._root + fixing.path
        with _noting(self._applied, fixing.path):
            os.chown(full, fixing.uid, fixing.gid, follow_symlinks=False)
            os.chmod(full, fixing.mode)
            if fixing.xattrs is not None:
                for name, _value in read_xattrs(full):
                    os.removexattr(full, name, follow_symlinks=False)
                for name, value in fixing.xattrs:
                    os.setxattr(full, name, value, follow_symlinks=False)

    def put(self, placing: Placing) -> None:
        staged, target = self._root + placing.staged, self._root + placing.path
        new = _lstat(staged) if self._parents.are_real(placing.staged) else None
        if new is None:
            return  # done already
        with _noting(self._applied, placing.path):
            old = _lstat(target)
            if old is not None and stat.S_ISDIR(old.st_mode):
                os.rename(target, self._root + aside_name(placing.path, self._epoch))
                self._parents.forget()
            elif old is not None and stat.S_ISDIR(new.st_mode):
                os.unlink(target)
            os.rename(staged, target)

    def discard(self, placing: Placing) -> None:
        if self._parents.are_real(placing.staged):
            _remove_tree(self._root + placing.staged)

    def remove(self, path: bytes) -> None:
        if not self._parents.are_real(path):
            return
        full = self._root + path
        with _noting(self._applied, path):
            status = _lstat(full)
            if status is None:
                return
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(full)
                return
            self._remove_directory(path, full)

    def _remove_directory(self, path: bytes, full: bytes) -> None:
        try:
            os.rmdir(full)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                raise
            if os.path.basename(path).startswith(b".deleted."):
                self._applied.aside.append(path)
                return
            aside = aside_name(path, self._epoch)
            os.rename(full, self._root + aside)
            self._parents.forget()
            self._applied.aside.append(aside)


class _Parents:
    """Tells whether all parents of a path are real directories, asking for each directory once."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._real: dict[bytes, bool] = {b"": True}

    def are_real(self, path: bytes) -> bool:
        return self._is_real(path.rpartition(b"/")[0])

    def forget(self) -> None:
        self._real = {b"": True}

    def _is_real(self, directory: bytes) -> bool:
        known = self._real.get(directory)
        if known is not None:
            return known
        status = _lstat(self._root + directory)
        real = status is not None and stat.S_ISDIR(status.st_mode) and self._is_real(directory.rpartition(b"/")[0])
        if real:
            self._real[directory] = True
        return real


class _noting:  # noqa: N801 - used like a function
    """Notes what the system refuses instead of ending the whole run; cheaper than a generator for many paths."""

    def __init__(self, applied: Applied, path: bytes) -> None:
        self._applied = applied
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, OSError):
            self._applied.failed[self._path] = error.strerror or str(error)
            return True
        return False


def _free_names(root: bytes, paths: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return where the new object for each path lies ready: beside it, under a name that nothing else has or gets."""
    taken = set(paths)
    found: dict[bytes, bytes] = {}
    for path in paths:
        staged, number = _beside(path, b".update."), 0
        while staged in taken or os.path.lexists(root + staged):
            number += 1
            staged = _beside(path, b".update.%d." % number)
        taken.add(staged)
        found[path] = staged
    return found


def aside_name(path: bytes, epoch: int) -> bytes:
    """Return the path to which a directory is moved that gives way."""
    return _beside(path, b".deleted.%d." % epoch)


def sync_file_system(root: Path) -> None:
    """Write everything of the file system that holds `root` to its medium."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _syncfs is None:
            os.sync()
        elif _syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(root))
    finally:
        os.close(descriptor)


def copy_file(source: bytes, target: bytes, status: os.stat_result) -> None:
    """Make `target` a copy of the file `source` with its rights and owner; shares blocks where that is possible."""
    reader = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            _copy_content(reader, writer, status.st_size)
            os.fchown(writer, status.st_uid, status.st_gid)
            os.fchmod(writer, stat.S_IMODE(status.st_mode))
        finally:
            os.close(writer)
    finally:
        os.close(reader)


def _copy_content(reader: int, writer: int, size: int) -> None:
    left = size
    try:
        while left:
            copied = os.copy_file_range(reader, writer, left)
            if not copied:
                return
            left -= copied
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP} or left != size:
            raise
        while piece := os.read(reader, _COPY_BYTES):
            view = memoryview(piece)
            while view:
                view = view[os.write(writer, view) :]


def _copy_xattrs(source: bytes, target: bytes) -> None:
    for name, value in read_xattrs(source):
        os.setxattr(target, name, value, follow_symlinks=False)


def _removals(paths: Iterable[bytes], replaced: Sequence[bytes], epoch: int) -> tuple[bytes, ...]:
    """Return the paths to remove, children first; what lies in a directory that gives way is removed where that is."""
    moved: Mapping[bytes, bytes] = {path: aside_name(path, epoch) for path in replaced}
    found = set(moved.values())
    for path in paths:
        above = next((old for old in moved if path.startswith(old + b"/")), None)
        found.add(path if above is None else moved[above] + path[len(above) :])
    # Bytewise descending puts everything in a directory before the directory itself.
    return tuple(sorted(found - set(moved), reverse=True))


def _place_order(placing: Placing) -> tuple[bool, bytes]:
    return placing.path in _VERSION_FILES, placing.path


def _is_private(path: bytes) -> bool:
    """Tell whether the device may write into the file, which then must not share its content with another name."""
    return is_config(path) or is_state(path)


def _beside(path: bytes, prefix: bytes) -> bytes:
    parent, _slash, name = path.rpartition(b"/")
    if len(prefix) + len(name) > _NAME_MAX:
        name = hashlib.sha256(name).hexdigest()[:48].encode()
    return parent + b"/" + prefix + name


def _remove_tree(path: bytes) -> None:
    status = _lstat(path)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path)
        return
    for name in os.listdir(path):
        _remove_tree(path + b"/" + name)
    os.rmdir(path)


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _staging_error(entry: Entry, error: OSError) -> StagingError | NoSpaceError:
    if error.errno == errno.ENOSPC:
        return NoSpaceError(place=Path(os.fsdecode(entry.name)), needed_bytes=_BLOCK, free_bytes=0)
    status = Exit.CANNOT_MAKE_DIRECTORY if entry.kind == "D" else Exit.CANNOT_CREATE
    return StagingError(path=os.fsdecode(entry.name), status=status, reason=error.strerror or str(error))


def _with(record: Record, *, place: tuple[Placing, ...]) -> Record:
    return Record(phase=record.phase, root=record.root, version=record.version, epoch=record.epoch, place=place)


def _load_syncfs() -> Callable[[int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int]
    function.restype = ctypes.c_int
    found: Callable[[int], int] = function
    return found


_syncfs = _load_syncfs()
