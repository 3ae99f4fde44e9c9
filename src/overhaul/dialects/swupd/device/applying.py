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
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.device.errors import NoSpaceError, StagingError, UnsafePathError
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.journal import (
    APPLYING,
    STAGING,
    Placing,
    Record,
    read_record,
    remove_record,
    write_record,
)
from overhaul.dialects.swupd.device.places import Parents, aside_name, free_names, is_private, remove_tree
from overhaul.dialects.swupd.device.placing import Applied, InPlace
from overhaul.dialects.swupd.device.staging import Staging
from overhaul.dialects.swupd.device.state import Data
from overhaul.dialects.swupd.manifest import Entry
from overhaul.host.files import replace_bytes

_VERSION_FILES = (b"/usr/lib/os-release", b"/etc/os-release")
_BLOCK = 4096
#: What a file system needs for itself while names change.
_RESERVE_BYTES = 1 << 20


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
        names = free_names(root, [entry.name for entry in ordered])
        staging = Staging(root, os.fsencode(self.objects), names, with_xattrs=self.with_xattrs)
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
        staging: "Staging",
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
        place = InPlace(os.fsencode(self.root).rstrip(b"/"), record.epoch, applied)
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
        parents = Parents(root)
        for placing in record.place:
            if parents.are_real(placing.staged):
                remove_tree(root + placing.staged)

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
            is_linked = entry.kind == "F" and found.st_dev == device and not is_private(entry.name)
            needed += 256 if is_linked else -(-found.st_size // _BLOCK) * _BLOCK + (_BLOCK if entry.kind == "D" else 0)
        if needed > free:
            raise NoSpaceError(place=self.root, needed_bytes=needed, free_bytes=free)


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
