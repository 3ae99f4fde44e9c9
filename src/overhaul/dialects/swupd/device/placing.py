"""Putting in place what lies ready, and removing what must go; every act can be repeated after a kill."""

import errno
import os
import stat
from dataclasses import dataclass, field

from overhaul.dialects.swupd.device.journal import Fixing, Placing
from overhaul.dialects.swupd.device.places import Parents, aside_name, lstat, remove_tree
from overhaul.dialects.swupd.hash import read_xattrs


@dataclass
class Applied:
    """What became of a list of changes."""

    #: Path and reason of what could not be changed.
    failed: dict[bytes, str] = field(default_factory=dict)
    #: Directories that were moved out of the way because they hold what no manifest lists.
    aside: list[bytes] = field(default_factory=list)


class InPlace:
    """Puts in place what lies ready; every act can be repeated."""

    def __init__(self, root: bytes, epoch: int, applied: Applied) -> None:
        self._root = root
        self._epoch = epoch
        self._applied = applied
        self._parents = Parents(root)

    def fix(self, fixing: Fixing) -> None:
        if not self._parents.are_real(fixing.path + b"/x"):
            return
        full = self._root + fixing.path
        with noting(self._applied, fixing.path):
            os.chown(full, fixing.uid, fixing.gid, follow_symlinks=False)
            os.chmod(full, fixing.mode)
            if fixing.xattrs is not None:
                for name, _value in read_xattrs(full):
                    os.removexattr(full, name, follow_symlinks=False)
                for name, value in fixing.xattrs:
                    os.setxattr(full, name, value, follow_symlinks=False)

    def put(self, placing: Placing) -> None:
        staged, target = self._root + placing.staged, self._root + placing.path
        new = lstat(staged) if self._parents.are_real(placing.staged) else None
        if new is None:
            return  # done already
        with noting(self._applied, placing.path):
            old = lstat(target)
            if old is not None and stat.S_ISDIR(old.st_mode):
                os.rename(target, self._root + aside_name(placing.path, self._epoch))
                self._parents.forget()
            elif old is not None and stat.S_ISDIR(new.st_mode):
                os.unlink(target)
            os.rename(staged, target)

    def discard(self, placing: Placing) -> None:
        if self._parents.are_real(placing.staged):
            remove_tree(self._root + placing.staged)

    def remove(self, path: bytes) -> None:
        if not self._parents.are_real(path):
            return
        full = self._root + path
        with noting(self._applied, path):
            status = lstat(full)
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


class noting:  # noqa: N801 - used like a function
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
