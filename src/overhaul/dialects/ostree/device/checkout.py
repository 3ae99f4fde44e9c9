"""A commit's tree laid out as directories with hard links to the repository's objects.

Links cost no space, and a tree of thirty thousand files is laid out in about a second. Directories are made as the
commit says, deepest dressed first, with time 0 as everywhere in OSTree.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.errors import MissingOstreeObjectError
from overhaul.dialects.ostree.layout import object_path
from overhaul.dialects.ostree.objects import Commit, Dirmeta, Dirtree, ObjectName, ObjectType, TreeDirectory


def check_out(repository: BareRepository, commit: Commit, destination: Path) -> None:
    """Lay the tree of `commit` out at `destination`, which must not exist.

    Raises:
        MissingOstreeObjectError: An object of it is not in the repository.
    """
    base = os.fspath(repository.path)
    made: list[tuple[str, Dirmeta]] = []
    waiting = [(os.fspath(destination), commit.root_tree, commit.root_meta)]
    metas: dict[bytes, Dirmeta] = {}
    while waiting:
        path, tree_checksum, meta_checksum = waiting.pop()
        if meta_checksum not in metas:
            metas[meta_checksum] = repository.dirmeta(meta_checksum)
        os.mkdir(path, 0o700)
        made.append((path, metas[meta_checksum]))
        tree = repository.dirtree(tree_checksum)
        for file in tree.files:
            _link(base, file.checksum, os.path.join(path, file.name))
        waiting += [(os.path.join(path, entry.name), entry.tree, entry.meta) for entry in tree.directories]
    for path, meta in reversed(made):
        _dress_directory(path, meta)


def _link(base: str, checksum: bytes, path: str) -> None:
    name = ObjectName(ObjectType.FILE, checksum)
    source = os.path.join(base, object_path(name, bare=True))
    try:
        os.link(source, path, follow_symlinks=False)
    except FileNotFoundError as error:
        raise MissingOstreeObjectError(repository=base, name=str(name)) from error
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        # Empty files are one object with more names than a file system may give it.
        copy_with_attributes(Path(source), Path(path))


def _dress_directory(path: str, meta: Dirmeta) -> None:
    os.chown(path, meta.uid, meta.gid)
    os.chmod(path, stat.S_IMODE(meta.mode))
    for name, value in meta.xattrs:
        os.setxattr(path, name, value)
    os.utime(path, (0, 0))


def copy_with_attributes(source: Path, destination: Path) -> None:
    """Copy a file or symbolic link with owner, mode, extended attributes and times; it may not exist there."""
    status = source.lstat()
    if stat.S_ISLNK(status.st_mode):
        destination.symlink_to(os.readlink(source))
    else:
        with source.open("rb") as reader, destination.open("xb") as writer:
            if not _clone(reader.fileno(), writer.fileno()):
                shutil.copyfileobj(reader, writer, 256 * 1024)
    dress_like(source, destination)


def dress_like(source: Path, destination: Path) -> None:
    """Give `destination` the owner, mode, extended attributes and times of `source`."""
    status = source.lstat()
    os.chown(destination, status.st_uid, status.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        destination.chmod(stat.S_IMODE(status.st_mode))
    for name in os.listxattr(source, follow_symlinks=False):
        os.setxattr(destination, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(destination, ns=(status.st_atime_ns, status.st_mtime_ns), follow_symlinks=False)


def _clone(source: int, destination: int) -> bool:
    """Share the blocks where the file system can; they part when one of the two is written to."""
    import fcntl

    ficlone = 0x40049409
    try:
        fcntl.ioctl(destination, ficlone, source)
    except OSError:
        return False
    return True


def subtree(repository: BareRepository, commit: Commit, path: str) -> TreeDirectory | None:
    """Return the directory `path` of a commit's tree, or None."""
    entry = TreeDirectory("", commit.root_tree, commit.root_meta)
    for part in path.split("/"):
        tree = repository.dirtree(entry.tree)
        found = next((child for child in tree.directories if child.name == part), None)
        if found is None:
            return None
        entry = found
    return entry


def file_object(repository: BareRepository, commit: Commit, path: str) -> Path | None:
    """Return the object of the file `path` of a commit's tree, or None."""
    folder, _, name = path.rpartition("/")
    entry = subtree(repository, commit, folder) if folder else TreeDirectory("", commit.root_tree, commit.root_meta)
    if entry is None:
        return None
    found = next((file for file in repository.dirtree(entry.tree).files if file.name == name), None)
    return None if found is None else repository.object_path(ObjectName(ObjectType.FILE, found.checksum))


def walk_tree(repository: BareRepository, tree: bytes) -> Iterator[tuple[str, Dirtree]]:
    """Yield each directory below a dirtree, with its path ('' for itself)."""
    waiting = [("", tree)]
    while waiting:
        path, checksum = waiting.pop()
        listed = repository.dirtree(checksum)
        yield path, listed
        waiting += [(f"{path}/{entry.name}".lstrip("/"), entry.tree) for entry in listed.directories]
