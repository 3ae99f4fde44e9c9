"""Making commits: a tree's files while they are read, its directories bottom-up, then the commit, signed.

A file is hashed first and packed only when the repository has no such object, so a second commit of a tree that
hardly changed costs little more than reading it. Names, modes and targets come from `CommitEntry`s, which need not
be where the tree has them: `prepare.py` moves them before they are committed.
"""

import os
import stat
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.tree import TreeEntry, read_files, scan_tree
from overhaul.dialects.ostree.archive import ArchiveRepository, ObjectBatch
from overhaul.dialects.ostree.filez import FileHeader, file_checksum, filez_header
from overhaul.dialects.ostree.layout import object_path
from overhaul.dialects.ostree.objects import (
    Commit,
    Dirmeta,
    Dirtree,
    ObjectName,
    ObjectType,
    TreeDirectory,
    TreeFile,
    Xattrs,
    checksum_of,
    encode_commit,
    encode_dirmeta,
    encode_dirtree,
    encode_metadata,
)
from overhaul.dialects.ostree.packing import DEFAULT_LEVEL, deflated
from overhaul.dialects.ostree.signatures import Signer, with_signatures
from overhaul.errors import BusyError, InputError
from overhaul.progress import Progress


class UncommittableTreeError(InputError):
    """Something in a tree that OSTree has no object for."""

    def __init__(self, *, path: bytes, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"{os.fsdecode(path)!r} cannot be part of an OSTree commit: {reason}; remove it from the tree."
        )


class ObjectsPrunedError(BusyError):
    """Objects of the new commit that were there when it was begun, and are not any more."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"Somebody pruned {path} while a tree was committed to it; run the command again.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitEntry:
    """One name of what is committed."""

    #: As in `TreeEntry`: relative, the root is empty.
    path: bytes
    mode: int
    uid: int
    gid: int
    xattrs: Xattrs = ()
    #: Of a symbolic link, else None.
    target: bytes | None = None
    #: Of a file: where the tree has its content; None for content that stands in `content`.
    source: bytes | None = None
    content: bytes = b""


def entries_of(entries: Iterable[TreeEntry]) -> list[CommitEntry]:
    """Return a tree's entries as they are."""
    return [
        CommitEntry(
            path=entry.path,
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            xattrs=entry.xattrs,
            target=entry.target,
            source=entry.path if entry.is_file else None,
        )
        for entry in entries
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRoot:
    """What a commit points to."""

    tree: bytes
    meta: bytes


class TreeCommitter:
    """Stores one tree in a batch; `take` may be called from several threads."""

    def __init__(
        self,
        repository: ArchiveRepository,
        batch: ObjectBatch,
        entries: Sequence[CommitEntry],
        *,
        level: int = DEFAULT_LEVEL,
    ) -> None:
        """Prepare to store `entries`; nobody need hold a lock until `finish`.

        Raises:
            UncommittableTreeError: Something in it is neither file, directory nor symbolic link, or is not UTF-8.
        """
        self._repository = repository
        self._batch = batch
        self._level = level
        self._entries = entries
        self._present = repository.present()
        #: Objects of the commit that were there already.
        self._reused: set[ObjectName] = set()
        self._written: set[ObjectName] = set()
        self._claiming = threading.Lock()
        self._checksums: dict[bytes, bytes] = {}
        self._by_source: defaultdict[bytes, list[CommitEntry]] = defaultdict(list)
        #: Bytes of objects written, and how many there are.
        self.new_size = 0
        self.new_objects = 0
        for entry in entries:
            _check(entry)
            if stat.S_ISREG(entry.mode) and entry.source is not None:
                self._by_source[entry.source].append(entry)

    def wants(self, entry: TreeEntry) -> bool:
        """Tell whether a file of the tree is part of the commit."""
        return entry.path in self._by_source

    def take(self, entry: TreeEntry, content: memoryview) -> None:
        """Store a file of the tree under each name it has in the commit."""
        for target in self._by_source.get(entry.path, ()):
            self._store_file(target, content)

    def finish(self) -> TreeRoot:
        """Store everything but files of the tree, which were all taken, and return the root.

        To be called with the repository's shared lock held until the commit has its ref.

        Raises:
            UncommittableTreeError: A file was not taken, or a name has no directory.
            ObjectsPrunedError: Objects that were to be used again have been removed.
        """
        for entry in self._entries:
            if stat.S_ISLNK(entry.mode) or (stat.S_ISREG(entry.mode) and entry.source is None):
                self._store_file(entry, memoryview(entry.content))
        files: defaultdict[bytes, list[TreeFile]] = defaultdict(list)
        directories: defaultdict[bytes, list[TreeDirectory]] = defaultdict(list)
        root: TreeRoot | None = None
        known = {entry.path for entry in self._entries if stat.S_ISDIR(entry.mode)}
        # Deepest first: whatever is in a directory sorts behind it.
        for entry in sorted(self._entries, key=lambda entry: entry.path, reverse=True):
            parent, _, name = entry.path.rpartition(b"/")
            if entry.path and parent not in known:
                raise UncommittableTreeError(path=entry.path, reason="its directory is not part of the tree")
            if not stat.S_ISDIR(entry.mode):
                if entry.path not in self._checksums:
                    raise UncommittableTreeError(path=entry.path, reason="its content was not read")
                files[parent].append(TreeFile(name.decode(), self._checksums[entry.path]))
                continue
            tree = Dirtree(tuple(files.pop(entry.path, ())), tuple(directories.pop(entry.path, ())))
            stored = TreeRoot(
                tree=self._put(ObjectType.DIRTREE, encode_dirtree(tree)),
                meta=self._put(
                    ObjectType.DIRMETA,
                    encode_dirmeta(Dirmeta(uid=entry.uid, gid=entry.gid, mode=entry.mode, xattrs=entry.xattrs)),
                ),
            )
            if entry.path:
                directories[parent].append(TreeDirectory(name.decode(), stored.tree, stored.meta))
            else:
                root = stored
        if root is None:
            raise UncommittableTreeError(path=b"", reason="the tree has no root")
        if not all(map(self._repository.has, self._reused - self._written)):
            raise ObjectsPrunedError(path=self._repository.path)
        return root

    def _store_file(self, entry: CommitEntry, content: memoryview) -> None:
        header = FileHeader(
            uid=entry.uid,
            gid=entry.gid,
            mode=entry.mode,
            target="" if entry.target is None else entry.target.decode(),
            xattrs=entry.xattrs,
        )
        name = ObjectName(ObjectType.FILE, file_checksum(header, content))
        self._checksums[entry.path] = name.checksum
        if not self._claim(name):
            return
        pieces = () if header.is_link else deflated(content, level=self._level)
        self._write(name, filez_header(header, len(content)), *pieces)

    def _put(self, kind: ObjectType, data: bytes) -> bytes:
        name = ObjectName(kind, checksum_of(data))
        if self._claim(name):
            self._write(name, data)
        return name.checksum

    def _claim(self, name: ObjectName) -> bool:
        """Tell whether an object is new, to one caller only."""
        with self._claiming:
            if name in self._present:
                self._reused.add(name)
                return False
            self._present.add(name)
            self._written.add(name)
            return True

    def _write(self, name: ObjectName, *pieces: bytes | memoryview) -> None:
        size = self._batch.put(name, *pieces)
        with self._claiming:
            self.new_size += size
            self.new_objects += 1


def later_than(held: Commit | None, wanted: int) -> int:
    """Return the time of a commit that follows `held`: `wanted`, or a second more than `held` has.

    Clients refuse what is older and take what is as old. Two builds of one SOURCE_DATE_EPOCH would let somebody serve
    the first, which is signed as well, to devices that have the second.
    """
    return wanted if held is None else max(wanted, held.timestamp + 1)


def put_commit(batch: ObjectBatch, commit: Commit, *, signers: Sequence[Signer]) -> bytes:
    """Put a commit and its signatures into a batch, and return its checksum."""
    data = encode_commit(commit)
    checksum = checksum_of(data)
    if signers:
        detached = encode_metadata(with_signatures({}, data, signers))
        batch.put(ObjectName(ObjectType.COMMITMETA, checksum), detached)
    batch.put(ObjectName(ObjectType.COMMIT, checksum), data)
    return checksum


def commit_tree(
    repository: ArchiveRepository,
    root: Path,
    entries: Sequence[CommitEntry],
    describe: Callable[[TreeRoot], Commit],
    *,
    branch: str,
    signers: Sequence[Signer] = (),
    level: int = DEFAULT_LEVEL,
    workers: int,
    progress: Progress,
) -> bytes:
    """Commit what `entries` name of the tree in `root` on `branch`, and return the commit's checksum.

    `describe` makes the commit of the stored root. Our own lock is held by the caller (`ArchiveRepository.writing`).

    Raises:
        UncommittableTreeError, UnreadableTreeError, SigningFailedError: What is in the way; the branch stays.
    """
    with repository.batch() as batch:
        committer = TreeCommitter(repository, batch, entries, level=level)
        files = [entry for entry in scan_tree(root) if committer.wants(entry)]
        read_files(root, files, [committer.take], workers=workers, progress=progress)
        with repository.adding():
            checksum = put_commit(batch, describe(committer.finish()), signers=signers)
            batch.store()
            repository.set_branch(branch, checksum)
    return checksum


def copy_commit(source: ArchiveRepository, target: ArchiveRepository, commit: bytes) -> int:
    """Bring a commit with all it needs into another repository, under the same name; return the number of objects.

    Raises:
        MissingOstreeObjectError: Something of it is not in `source`.
    """
    copied = 0
    present = target.present()
    with target.adding(), target.batch() as batch:
        for name in sorted(source.reachable(commit) - present):
            if name.type is ObjectType.COMMITMETA and not source.has(name):
                continue
            batch.link(name, source.path / object_path(name))
            copied += 1
    return copied


def _check(entry: CommitEntry) -> None:
    kind = stat.S_IFMT(entry.mode)
    if kind not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
        raise UncommittableTreeError(path=entry.path, reason="it is a device, pipe or socket")
    try:
        entry.path.decode()
        (entry.target or b"").decode()
    except UnicodeDecodeError as error:
        raise UncommittableTreeError(path=entry.path, reason="its name or target is not UTF-8") from error
