"""The device's repository: mode `bare`, where a file object is the file itself, so that deployments are hard links.

    config                      mode, remotes
    objects/HH/….file           a file or symbolic link with its owner, mode and extended attributes, time 0
    objects/HH/….dirtree        and .dirmeta, .commit, .commitmeta: as in every repository
    refs/remotes/REMOTE/BRANCH  what was pulled
    refs/heads/ostree/B/S/N     what is deployed
    state/COMMIT.commitpartial  an object of the commit may be missing
    tmp/                        staged objects, see `staging`
    .lock                       shared while objects come, exclusive while they go

Real OSTree works on the same repository.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from overhaul.dialects.ostree.device.keyfile import read_key_file
from overhaul.dialects.ostree.device.recordlock import record_locked
from overhaul.dialects.ostree.errors import MissingOstreeObjectError
from overhaul.dialects.ostree.layout import Refspec, check_ref, object_path, ref_path
from overhaul.dialects.ostree.objects import (
    MAX_METADATA_SIZE,
    Commit,
    Dirmeta,
    Dirtree,
    ObjectName,
    ObjectType,
    check_object,
    decode_commit,
    decode_dirmeta,
    decode_dirtree,
)
from overhaul.errors import DeviceError
from overhaul.host.files import replace_bytes, sync_directory

_CHECKSUM = re.compile(r"[0-9a-f]{64}\Z")
_DEFAULT_LOCK_WAIT_S = 300.0


class RepositoryUnusableError(DeviceError):
    """The device's repository is not one that deployments can be made of."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The repository {path} cannot be used: {reason}.")


class BareRepository:
    """One repository of mode `bare`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.objects = path / "objects"
        self.config = read_key_file(path / "config")
        mode = self.config.get("core", "mode") or "bare"
        if mode != "bare":
            raise RepositoryUnusableError(path=path, reason=f"its mode is {mode}, deployments need bare")
        version = self.config.get("core", "repo_version")
        if version != "1":
            raise RepositoryUnusableError(path=path, reason=f"its repo_version is {version}, known is 1")

    @contextmanager
    def locked(self, *, shared: bool) -> Iterator[None]:
        """Hold the repository's lock: shared to add objects, exclusive to remove some."""
        wait = self.config.get("core", "lock-timeout-secs") or ""
        wait_s = float(wait) if wait.isdecimal() else _DEFAULT_LOCK_WAIT_S
        with record_locked(self.path / ".lock", purpose="A change of the repository", shared=shared, wait_s=wait_s):
            yield

    def object_path(self, name: ObjectName) -> Path:
        """Return the file of an object."""
        return self.path / object_path(name, bare=True)

    def has(self, name: ObjectName) -> bool:
        """Whether an object is here."""
        return os.path.lexists(self.object_path(name))

    def present(self) -> set[str]:
        """Return the names of all objects, as `extension` and `object_key` write them; one look at each directory."""
        found: set[str] = set()
        for directory in os.listdir(self.objects):
            if len(directory) == 2:
                found.update(directory + name for name in os.listdir(self.objects / directory))
        return found

    def read(self, name: ObjectName) -> bytes:
        """Return the bytes of a metadata object, checked against its name (a commitmeta has none of its own).

        Raises:
            MissingOstreeObjectError: It is not here.
            WrongChecksumError: It is damaged.
        """
        try:
            # Not through a path object, which takes as long as the reading; a pull reads thousands.
            with open(f"{self.path}/{object_path(name, bare=True)}", "rb") as stream:
                data = stream.read()
        except FileNotFoundError as error:
            raise MissingOstreeObjectError(repository=str(self.path), name=str(name)) from error
        if name.type is not ObjectType.COMMITMETA:
            check_object(name, data)
        return data

    def commit(self, checksum: str) -> Commit:
        """Return a commit."""
        return decode_commit(self.read(ObjectName(ObjectType.COMMIT, bytes.fromhex(checksum))))

    def dirtree(self, checksum: bytes) -> Dirtree:
        """Return a directory's names."""
        return decode_dirtree(self.read(ObjectName(ObjectType.DIRTREE, checksum)))

    def dirmeta(self, checksum: bytes) -> Dirmeta:
        """Return a directory's metadata."""
        return decode_dirmeta(self.read(ObjectName(ObjectType.DIRMETA, checksum)))

    def reload(self) -> None:
        """Read the configuration again."""
        self.config = read_key_file(self.path / "config")

    def resolve(self, remote: str, branch: str) -> str | None:
        """Return the commit a ref names, or None."""
        try:
            text = self._ref_path(remote, branch).read_text().strip()
        except FileNotFoundError:
            return None
        if not _CHECKSUM.match(text):
            raise RepositoryUnusableError(path=self.path, reason=f"the ref {remote}:{branch} holds {text[:80]!r}")
        return text

    def set_ref(self, remote: str, branch: str, commit: str) -> None:
        """Let a ref name `commit`, durably."""
        path = self._ref_path(remote, branch)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, commit.encode() + b"\n")

    def refs(self) -> Iterator[tuple[Path, str]]:
        """Yield each ref's file and commit."""
        for folder, _directories, names in os.walk(self.path / "refs"):
            for name in names:
                path = Path(folder, name)
                text = "" if path.is_symlink() or name.endswith(".tmp") else path.read_text().strip()
                if _CHECKSUM.match(text):
                    yield path, text

    def sweep(self) -> None:
        """Remove what interrupted replacements of refs left; only whoever holds the updater's lock may."""
        for path in (self.path / "refs").rglob(".*.tmp"):
            path.unlink()

    def is_partial(self, commit: str) -> bool:
        """Whether objects of a commit may be missing."""
        return self._partial_path(commit).exists()

    def mark_partial(self, commit: str) -> None:
        """Note durably that objects of a commit may be missing."""
        path = self._partial_path(commit)
        path.parent.mkdir(exist_ok=True)
        path.touch(mode=0o644)
        sync_directory(path.parent)

    def clear_partial(self, commit: str) -> None:
        """Note that a commit is whole."""
        path = self._partial_path(commit)
        if path.exists():
            path.unlink()
            sync_directory(path.parent)

    def _partial_path(self, commit: str) -> Path:
        return self.path / "state" / f"{commit}.commitpartial"

    def _ref_path(self, remote: str, branch: str) -> Path:
        if remote:
            check_ref(remote)
        return self.path / ref_path(Refspec(check_ref(branch), remote or None))


def extension(kind: ObjectType) -> str:
    """Return the suffix of an object's file in a bare repository."""
    return "file" if kind is ObjectType.FILE else kind.extension


def object_key(name: ObjectName) -> str:
    """Return an object's name as `BareRepository.present` lists it."""
    return f"{name.checksum.hex()}.{extension(name.type)}"


def metadata_limit() -> int:
    """Return the size above which a metadata object is refused: a device has little memory."""
    return min(MAX_METADATA_SIZE, 16 << 20)
