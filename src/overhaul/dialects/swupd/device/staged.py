"""Updating a copy of the system and switching to it at once; `rollback` switches back.

    DIRECTORY/roots/<name>/     whole root file systems
    DIRECTORY/current           link to the one that is used; the boot loader or initramfs follows it
    DIRECTORY/previous          link to the one before
    DIRECTORY/lock

The running system is never written. The copy is a snapshot where the file system is btrfs and the root a subvolume;
elsewhere files that only updates change are hard links, which is safe because an update replaces files and never
writes into them, and what the device itself writes (configuration and state) is copied, sharing blocks where the
file system can. The switch is one rename. A copy that a killed update left is thrown away by the next one.
"""

import os
import shutil
import stat
from pathlib import Path

from overhaul.dialects.swupd.device import updating
from overhaul.dialects.swupd.device.applying import sync_file_system
from overhaul.dialects.swupd.device.context import Context
from overhaul.dialects.swupd.device.errors import NothingToRollBackError, SubprocessError, WrongUsageError
from overhaul.dialects.swupd.device.exits import Exit
from overhaul.dialects.swupd.device.pathclasses import is_config, is_state
from overhaul.dialects.swupd.device.places import copy_file
from overhaul.dialects.swupd.device.system import System
from overhaul.dialects.swupd.hash import read_xattrs
from overhaul.host.files import sync_directory
from overhaul.host.locks import locked

_SUBVOLUME_INODE = 256
_NEW = ".new"


def update(context: Context) -> Exit:
    """Run `swupd update`, of the system itself or of a copy with `--staged`; then of 3rd-party repositories."""
    place = context.text("staged")
    code = _update_copy(context, Path(os.path.abspath(place))) if place else updating.update(context)
    if code is Exit.OK and context.is_set("3rd_party"):
        from overhaul.dialects.swupd.device.thirdparty import third_party

        return third_party(context, ["update"])
    return code


def rollback(context: Context) -> Exit:
    """Run `swupd rollback`: the system before the last staged update is the current one again."""
    given = context.text("staged")
    if given is None:
        raise WrongUsageError("rollback needs --staged=DIRECTORY, on the command line or in a configuration file")
    place = Path(os.path.abspath(given))
    place.mkdir(parents=True, exist_ok=True)
    with locked(place / "lock", purpose="Another staged update"):
        current, previous = _target(place / "current"), _target(place / "previous")
        if previous is None or not previous.is_dir():
            raise NothingToRollBackError(place=place)
        _switch(place, previous, current)
    context.output.say(f"Version {System(previous).version()} is the current one from the next start on")
    return Exit.OK


def _update_copy(context: Context, place: Path) -> Exit:
    output = context.output
    (place / "roots").mkdir(parents=True, exist_ok=True)
    with locked(place / "lock", purpose="Another staged update"):
        current = _target(place / "current")
        if current is None or "path" in context.values:
            current = context.root
        new = place / "roots" / _NEW
        _discard(new)
        installed = System(current).version()
        inner = _inner(context, current)
        if context.is_set("dry_run") or context.is_set("download"):
            return updating.update(inner)
        newest = inner.repository.latest(inner.format_name)[0]
        if newest <= installed:
            output.say(f"Version {installed} is the newest.")
            return Exit.OK
        copy_root(current, new)
        code = updating.update(_inner(context, new))
        if code is not Exit.OK:
            _discard(new)
            return code
        version = System(new).version()
        if version == installed:
            _discard(new)
            return Exit.OK
        final = _free_name(place / "roots", str(version))
        sync_file_system(new)
        new.rename(final)
        sync_directory(final.parent)
        _switch(place, final, current)
        _prune(place)
    output.say(f"Version {version} is the current one from the next start on; `swupd rollback` goes back")
    return Exit.OK


def copy_root(source: Path, target: Path) -> None:
    """Make `target` a copy of the root `source` that can be updated without touching it.

    Raises:
        SubprocessError: The file system could not make a snapshot.
    """
    if _is_subvolume(source) and _is_same_file_system(source, target.parent):
        from overhaul.errors import OverhaulError
        from overhaul.host.processes import run

        try:
            run(["btrfs", "subvolume", "snapshot", source, target])
        except OverhaulError as error:
            raise SubprocessError(reason=f"{source} could not be snapshotted ({error})") from error
        return
    device = os.stat(source).st_dev
    _copy_tree(os.fsencode(source), os.fsencode(target), b"", device, excluded=os.fsencode(target.parent.parent))


def _copy_tree(source: bytes, target: bytes, path: bytes, device: int, *, excluded: bytes) -> None:
    os.mkdir(target, 0o700)
    with os.scandir(source) as found:
        entries = list(found)
    for entry in entries:
        there, inside = os.path.join(target, entry.name), path + b"/" + entry.name
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if status.st_dev != device or os.path.realpath(entry.path) == os.path.realpath(excluded):
                # Another file system, or the copies themselves: only the place where it belongs is copied.
                os.mkdir(there, 0o700)
                _copy_rights(entry.path, there, status)
            else:
                _copy_tree(entry.path, there, inside, device, excluded=excluded)
        elif stat.S_ISREG(status.st_mode):
            _copy_object(entry.path, there, inside, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(entry.path), there)
            os.chown(there, status.st_uid, status.st_gid, follow_symlinks=False)
        elif not stat.S_ISSOCK(status.st_mode):
            os.mknod(there, status.st_mode, status.st_rdev)
            _copy_rights(entry.path, there, status)
    _copy_rights(source, target, os.lstat(source))


def _copy_object(source: bytes, target: bytes, path: bytes, status: os.stat_result) -> None:
    if not is_config(path) and not is_state(path):
        try:
            os.link(source, target, follow_symlinks=False)
        except OSError:
            pass
        else:
            return
    copy_file(source, target, status)
    _copy_rights(source, target, status)


def _copy_rights(source: bytes, target: bytes, status: os.stat_result) -> None:
    os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
    os.chmod(target, stat.S_IMODE(status.st_mode))
    for name, value in read_xattrs(source):
        os.setxattr(target, name, value, follow_symlinks=False)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _inner(context: Context, root: Path) -> Context:
    values = {key: value for key, value in context.values.items() if key not in {"staged", "3rd_party"}}
    return Context({**values, "path": str(root), "no_boot_update": True}, context.output)


def _switch(place: Path, new: Path, old: Path | None) -> None:
    """Make `new` the current root, and `old` the previous one; each is one rename."""
    if old is not None:
        _point(place / "previous", old)
    if _is_subvolume(new):
        from overhaul.errors import OverhaulError
        from overhaul.host.processes import run

        try:
            run(["btrfs", "subvolume", "set-default", new])
        except OverhaulError as error:
            raise SubprocessError(reason=f"{new} could not be made the default subvolume ({error})") from error
    _point(place / "current", new)


def _point(link: Path, target: Path) -> None:
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
    sync_directory(link.parent)


def _target(link: Path) -> Path | None:
    try:
        return link.parent / link.readlink()
    except (FileNotFoundError, OSError):
        return None


def _prune(place: Path) -> None:
    """Keep the current and the previous root only."""
    kept = {_target(place / "current"), _target(place / "previous")}
    for root in (place / "roots").iterdir():
        if root not in kept:
            _discard(root)


def _discard(root: Path) -> None:
    if not root.exists():
        return
    if _is_subvolume(root):
        from overhaul.host.processes import run

        run(["btrfs", "subvolume", "delete", root])
        return
    shutil.rmtree(root)


def _free_name(directory: Path, name: str) -> Path:
    number = 0
    while True:
        path = directory / (f"{name}-{number}" if number else name)
        if not path.exists():
            return path
        number += 1


def _is_subvolume(path: Path) -> bool:
    """Tell whether `path` is the top of a btrfs subvolume, which always has this inode number."""
    try:
        return os.stat(path).st_ino == _SUBVOLUME_INODE and _btrfs_device(path) is not None
    except OSError:
        return False


def _is_same_file_system(source: Path, directory: Path) -> bool:
    device = _btrfs_device(source)
    return device is not None and device == _btrfs_device(directory)


def _btrfs_device(path: Path) -> str | None:
    """Return the device of the btrfs that holds `path`, or None when it lies on something else.

    Subvolumes have device numbers of their own, so the mount is found by its place.
    """
    real = os.path.realpath(path) + "/"
    best, found = -1, None
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        left, _dash, right = line.partition(" - ")
        place = left.split()[4].rstrip("/") + "/"
        if real.startswith(place) and len(place) >= best:
            kind, device = right.split()[:2]
            best, found = len(place), device if kind == "btrfs" else None
    return found
