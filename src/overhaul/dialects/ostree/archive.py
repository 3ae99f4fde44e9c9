"""A repository of mode `archive`: what is published and served. Real `ostree` may work on it at the same time.

Objects are written in a *batch*: under temporary names in `tmp/`, made durable all together by one syncfs(2), then
renamed, then the directories they went to are synced. A commit object takes its name after everything it needs has
its own, a ref moves after that, the summary last. So a batch that dies leaves only what nobody refers to.

Locks are OSTree's own (`device/recordlock.py`): shared while objects come, exclusive while refs and the summary move
and while objects go. `.overhaul.lock` keeps two of our own writers apart, whose commits would have one parent.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from overhaul.dialects.ostree.device.recordlock import record_locked
from overhaul.dialects.ostree.errors import MissingOstreeObjectError
from overhaul.dialects.ostree.filez import Filez, open_filez
from overhaul.dialects.ostree.layout import (
    CONFIG,
    DIRECTORIES,
    HEADS,
    LOCK,
    Refspec,
    check_ref,
    decode_config,
    decode_ref,
    encode_config,
    encode_ref,
    object_path,
    parse_object_path,
    ref_path,
)
from overhaul.dialects.ostree.objects import (
    Commit,
    Dirtree,
    Metadata,
    ObjectName,
    ObjectType,
    check_object,
    decode_commit,
    decode_dirtree,
    decode_metadata,
)
from overhaul.errors import InputError, OperatorError
from overhaul.host.files import replace_bytes, sync_directory, sync_file_system
from overhaul.host.locks import locked

_OWN_LOCK = ".overhaul.lock"
_LOCK_WAIT_S = 300.0
_STAGING = "overhaul-"
_MODES = ("archive-z2", "archive")


class UnusableRepositoryError(OperatorError):
    """A directory that is no repository we can publish to."""

    def __init__(self, *, path: Path, reason: str, next_step: str = "name one of mode archive") -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used as an OSTree repository: {reason}; {next_step}.")


class ClashingBranchError(OperatorError):
    """A branch whose name another one needs as a directory, or the other way round."""

    def __init__(self, *, repository: Path, branch: str) -> None:
        self.repository = repository
        self.branch = branch
        super().__init__(
            f"{repository} cannot have the branch {branch}: it lies inside or above another one; give it another name."
        )


class NoSuchCommitError(InputError):
    """A name that is neither a branch nor a commit of a repository."""

    def __init__(self, *, repository: Path, name: str) -> None:
        self.repository = repository
        self.name = name
        super().__init__(
            f"{repository} has no branch and no commit {name}; `overhaul ostree list {repository}` shows what it has."
        )


class ArchiveRepository:
    """One repository, open."""

    def __init__(self, path: Path) -> None:
        """Open the repository in `path`.

        Raises:
            UnusableRepositoryError: There is none, or none of mode archive.
        """
        self.path = path
        try:
            data = (path / CONFIG).read_bytes()
        except OSError as error:
            raise UnusableRepositoryError(path=path, reason=f"its config cannot be read ({error.strerror})") from error
        core = decode_config(data, what=f"configuration {path / CONFIG}").get("core", {})
        if core.get("mode") not in _MODES or core.get("repo_version") != "1":
            raise UnusableRepositoryError(path=path, reason=f"its mode is {core.get('mode', 'not given')}")
        #: Whether the summary lists deltas beside their indexes; its owner may turn that off, as for `ostree` itself.
        self.lists_deltas_in_summary = core.get("no-deltas-in-summary") not in ("true", "1")

    @classmethod
    def create(cls, path: Path) -> "ArchiveRepository":
        """Open the repository in `path`, after making an empty one where there is none."""
        if not (path / CONFIG).exists():
            for name in DIRECTORIES:
                (path / name).mkdir(parents=True, exist_ok=True)
            # The configuration comes last: without it the directory is no repository.
            replace_bytes(path / CONFIG, encode_config({"core": {"repo_version": "1", "mode": "archive-z2"}}))
        return cls(path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers of ours out inside the block; what a dead one left unfinished is removed."""
        with locked(self.path / _OWN_LOCK, purpose=f"A change of {self.path}"):
            for left in (self.path / "tmp").glob(_STAGING + "*"):
                shutil.rmtree(left)
            yield

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Hold OSTree's shared lock: nobody removes objects inside the block."""
        with record_locked(self.path / LOCK, purpose="A change of objects", shared=True, wait_s=_LOCK_WAIT_S):
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold OSTree's exclusive lock: nobody commits, prunes or writes the summary inside the block."""
        with record_locked(self.path / LOCK, purpose="A change of refs", wait_s=_LOCK_WAIT_S):
            yield

    def present(self) -> set[ObjectName]:
        """Return every object there is; looks at names only."""
        found = set()
        objects = self.path / "objects"
        for directory in sorted(os.listdir(objects)):
            for name in os.listdir(objects / directory):
                parsed = parse_object_path(f"objects/{directory}/{name}")
                if parsed is not None:
                    found.add(parsed)
        return found

    def has(self, name: ObjectName) -> bool:
        """Tell whether an object is there."""
        return (self.path / object_path(name)).exists()

    def read(self, name: ObjectName) -> bytes:
        """Return the bytes of a metadata object, checked against its name (detached metadata have none).

        Raises:
            MissingOstreeObjectError: It is not there.
            WrongChecksumError: It is damaged.
        """
        try:
            data = (self.path / object_path(name)).read_bytes()
        except FileNotFoundError as error:
            raise MissingOstreeObjectError(repository=str(self.path), name=str(name)) from error
        if name.type is not ObjectType.COMMITMETA:
            check_object(name, data)
        return data

    def commit(self, checksum: bytes) -> Commit:
        """Return a commit."""
        name = ObjectName(ObjectType.COMMIT, checksum)
        return decode_commit(self.read(name), what=f"object {name}")

    def ancestors(self, commit: bytes) -> Iterator[bytes]:
        """Yield a commit's parent, its parent's parent and so on, as far as they were not pruned."""
        parent = self.commit(commit).parent
        while parent is not None and self.has(ObjectName(ObjectType.COMMIT, parent)):
            yield parent
            parent = self.commit(parent).parent

    def dirtree(self, checksum: bytes) -> Dirtree:
        """Return a directory."""
        name = ObjectName(ObjectType.DIRTREE, checksum)
        return decode_dirtree(self.read(name), what=f"object {name}")

    def detached(self, commit: bytes) -> Metadata:
        """Return a commit's detached metadata; empty when it has none."""
        name = ObjectName(ObjectType.COMMITMETA, commit)
        if not self.has(name):
            return {}
        return decode_metadata(self.read(name), what=f"object {name}")

    @contextmanager
    def open_file(self, checksum: bytes) -> Iterator[Filez]:
        """Open a file object; its content is not checked against its name.

        Raises:
            MissingOstreeObjectError: It is not there.
        """
        name = ObjectName(ObjectType.FILE, checksum)
        try:
            stream = (self.path / object_path(name)).open("rb")
        except FileNotFoundError as error:
            raise MissingOstreeObjectError(repository=str(self.path), name=str(name)) from error
        with stream:
            yield open_filez(stream, what=f"object {name}")

    def content(self, checksum: bytes) -> bytes:
        """Return the whole content of a file object."""
        with self.open_file(checksum) as filez:
            buffer = BytesIO()
            for piece in filez.content():
                buffer.write(piece)
            return buffer.getvalue()

    def branches(self) -> dict[str, bytes]:
        """Return the commit of each local branch."""
        found = {}
        heads = self.path / HEADS
        for folder, _directories, names in os.walk(heads):
            for name in names:
                branch = Path(folder, name).relative_to(heads).as_posix()
                if not name.startswith("."):
                    found[branch] = decode_ref(Path(folder, name).read_bytes(), what=f"ref {branch}")
        return found

    def resolve(self, branch: str) -> bytes | None:
        """Return the commit of a branch, or None when there is no such branch."""
        try:
            data = (self.path / ref_path(Refspec(check_ref(branch)))).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        return decode_ref(data, what=f"ref {branch}")

    def check_branch(self, branch: str) -> None:
        """Refuse a branch that could not be set.

        Raises:
            BadRefNameError: It has no name that OSTree takes.
            ClashingBranchError: It lies inside or above another one.
        """
        heads = self.path / HEADS
        path = heads / check_ref(branch)
        if path.is_dir() or any(above.is_file() for above in path.parents if above.is_relative_to(heads)):
            raise ClashingBranchError(repository=self.path, branch=branch)

    def commit_named(self, name: str) -> bytes:
        """Return the commit that a branch or 64 hexadecimal digits name.

        Raises:
            NoSuchCommitError: There is no such one.
        """
        if re.fullmatch("[0-9a-f]{64}", name):
            found: bytes | None = bytes.fromhex(name)
            if found is not None and not self.has(ObjectName(ObjectType.COMMIT, found)):
                found = None
        else:
            found = self.resolve(name)
        if found is None:
            raise NoSuchCommitError(repository=self.path, name=name)
        return found

    def set_branch(self, branch: str, commit: bytes) -> None:
        """Let a branch name `commit`, durably and all at once."""
        path = self.path / ref_path(Refspec(check_ref(branch)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_bytes(path, encode_ref(commit))
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise ClashingBranchError(repository=self.path, branch=branch) from error

    def remove_branch(self, branch: str) -> None:
        """Remove a branch; its objects stay until they are pruned."""
        path = self.path / ref_path(Refspec(check_ref(branch)))
        path.unlink(missing_ok=True)
        sync_directory(path.parent)

    @contextmanager
    def batch(self) -> Iterator["ObjectBatch"]:
        """Collect objects that get their names when the block ends without an error."""
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self.path / "tmp") as staging:
            batch = ObjectBatch(self, Path(staging))
            yield batch
            batch.store()

    def walk(self, tree: bytes, take: Callable[[ObjectName], bool]) -> None:
        """Call `take` for each object below a dirtree and itself; where it answers False for a directory, go no deeper.

        Raises:
            MissingOstreeObjectError, WrongChecksumError: A directory is not there, or damaged.
        """
        waiting = [tree]
        while waiting:
            checksum = waiting.pop()
            if not take(ObjectName(ObjectType.DIRTREE, checksum)):
                continue
            directory = self.dirtree(checksum)
            for file in directory.files:
                take(ObjectName(ObjectType.FILE, file.checksum))
            for child in directory.directories:
                take(ObjectName(ObjectType.DIRMETA, child.meta))
                waiting.append(child.tree)

    def reachable(self, commit: bytes, known: set[ObjectName] | None = None) -> set[ObjectName]:
        """Return every object a commit needs, itself and its signatures included, but not its parent.

        What is below directories of `known` is in there already, and is not looked at again; `known` is added to.
        """
        found = set() if known is None else known

        def take(name: ObjectName) -> bool:
            is_new = name not in found
            found.add(name)
            return is_new

        head = self.commit(commit)
        take(ObjectName(ObjectType.COMMIT, commit))
        take(ObjectName(ObjectType.COMMITMETA, commit))
        take(ObjectName(ObjectType.DIRMETA, head.root_meta))
        self.walk(head.root_tree, take)
        return found


class ObjectBatch:
    """Objects on their way into a repository; `put` and `staged` may be called from several threads."""

    def __init__(self, repository: ArchiveRepository, staging: Path) -> None:
        self._repository = repository
        self._staging = staging
        self._names: list[ObjectName] = []

    def put(self, name: ObjectName, *pieces: bytes | memoryview) -> int:
        """Write an object and return its size; one that is there already is written again."""
        descriptor = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            for piece in pieces:
                _write_all(descriptor, piece)
        finally:
            os.close(descriptor)
        self._names.append(name)
        return sum(map(len, pieces))

    def link(self, name: ObjectName, source: Path) -> None:
        """Take an object from another repository: by hard link, or by copy from another file system."""
        try:
            os.link(source, self._path(name))
        except OSError:
            shutil.copyfile(source, self._path(name))
        self._names.append(name)

    def store(self) -> None:
        """Give everything its name, durably: commits and their signatures after all else."""
        sync_file_system(self._staging)
        last = (ObjectType.COMMIT, ObjectType.COMMITMETA)
        self._rename([name for name in self._names if name.type not in last])
        self._rename([name for name in self._names if name.type is ObjectType.COMMITMETA])
        self._rename([name for name in self._names if name.type is ObjectType.COMMIT])
        self._names.clear()

    def _rename(self, names: list[ObjectName]) -> None:
        if not names:
            return
        objects = self._repository.path / "objects"
        directories = {name.checksum[:1].hex() for name in names}
        for directory in directories:
            (objects / directory).mkdir(exist_ok=True)
        for name in names:
            os.replace(self._path(name), self._repository.path / object_path(name))
        for directory in sorted(directories):
            sync_directory(objects / directory)
        sync_directory(objects)

    def _path(self, name: ObjectName) -> Path:
        return self._staging / str(name)


def _write_all(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
