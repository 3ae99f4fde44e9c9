"""Making ready: every new object beside its final place, new directories as a whole with all that belongs in them."""

import errno
import os
import stat
from collections.abc import Mapping

from overhaul.dialects.swupd.device.errors import UnsafePathError
from overhaul.dialects.swupd.device.journal import Fixing, Placing
from overhaul.dialects.swupd.device.places import Parents, copy_file, free_names, is_private, lstat
from overhaul.dialects.swupd.hash import read_xattrs
from overhaul.dialects.swupd.manifest import Entry


class Staging:
    """Makes everything ready; entries come in the order of their paths."""

    def __init__(self, root: bytes, objects: bytes, names: Mapping[bytes, bytes], *, with_xattrs: bool) -> None:
        self._root = root
        self._objects = objects
        #: Under which name each object lies ready.
        self._names = names
        self._with_xattrs = with_xattrs
        self._parents = Parents(root)
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
        there = lstat(self._root + path)
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
        if not is_private(entry.name):
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
        there = lstat(self._root + parent)
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
            staged = free_names(self._root, [parent])[parent]
            self.place.append(Placing(parent, staged))
        os.mkdir(self._root + staged, 0o755)
        os.chmod(self._root + staged, 0o755)  # noqa: S103 - as all directories of a system
        self._new[parent] = staged
        return staged


def _copy_xattrs(source: bytes, target: bytes) -> None:
    for name, value in read_xattrs(source):
        os.setxattr(target, name, value, follow_symlinks=False)
