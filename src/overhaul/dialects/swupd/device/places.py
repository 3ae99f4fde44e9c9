"""Places in a root: names beside a path, parents that are real, and small acts on what lies there."""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence

from overhaul.dialects.swupd.device.pathclasses import is_config, is_state

_NAME_MAX = 255
_COPY_BYTES = 1 << 20


class Parents:
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
        status = lstat(self._root + directory)
        real = status is not None and stat.S_ISDIR(status.st_mode) and self._is_real(directory.rpartition(b"/")[0])
        if real:
            self._real[directory] = True
        return real


def free_names(root: bytes, paths: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return where the new object for each path lies ready: beside it, under a name that nothing else has or gets."""
    taken = set(paths)
    found: dict[bytes, bytes] = {}
    for path in paths:
        staged, number = beside(path, b".update."), 0
        while staged in taken or os.path.lexists(root + staged):
            number += 1
            staged = beside(path, b".update.%d." % number)
        taken.add(staged)
        found[path] = staged
    return found


def aside_name(path: bytes, epoch: int) -> bytes:
    """Return the path to which a directory is moved that gives way."""
    return beside(path, b".deleted.%d." % epoch)


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


def is_private(path: bytes) -> bool:
    """Tell whether the device may write into the file, which then must not share its content with another name."""
    return is_config(path) or is_state(path)


def beside(path: bytes, prefix: bytes) -> bytes:
    parent, _slash, name = path.rpartition(b"/")
    if len(prefix) + len(name) > _NAME_MAX:
        name = hashlib.sha256(name).hexdigest()[:48].encode()
    return parent + b"/" + prefix + name


def remove_tree(path: bytes) -> None:
    status = lstat(path)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(path)
        return
    for name in os.listdir(path):
        remove_tree(path + b"/" + name)
    os.rmdir(path)


def lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
