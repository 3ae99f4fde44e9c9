"""What the client keeps: its data, which must survive, and its cache, which may vanish at any time.

DATA/   bundles/<name>     bundles that were added by name (empty files)
        swupd_lock         locked while a run changes something; holds its process id
        version            the version that was applied last
        journal            what an interrupted run was doing (see `journal`)
        3rd-party/<name>/  the same for one 3rd-party repository
CACHE/cache/<address of the content>/
        manifest/<version>/Manifest.<bundle>[.sig|.<hash>]
        staged/<hash>      objects, ready to be linked into the system
        delta/  download/  temp/
        pack-<bundle>-from-<old>-to-<version>.tar   empty: this pack is unpacked already
        search/<hash of the MoM>                    the index of files
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.device.errors import RefusedDirectoryError, StateLockedError
from overhaul.dialects.swupd.names import is_bundle_name

DEFAULT_STATE = Path("var/lib/swupd")
_REFUSED = frozenset({"/", "/var", "/usr", "/etc", "/home", "/root", "/boot"})


@dataclass(frozen=True)
class Data:
    """The directory that must survive."""

    directory: Path

    @property
    def version_file(self) -> Path:
        """Holds the version that was applied last."""
        return self.directory / "version"

    @property
    def journal(self) -> Path:
        """Holds what an interrupted run was doing."""
        return self.directory / "journal"

    def prepare(self) -> None:
        """Make the directory; raise `RefusedDirectoryError` for one that belongs to the system."""
        _check(self.directory)
        (self.directory / "bundles").mkdir(mode=0o755, parents=True, exist_ok=True)

    def tracked(self) -> frozenset[str]:
        """Return the bundles that were added by name; empty means that nobody kept count."""
        try:
            return frozenset(name for name in os.listdir(self.directory / "bundles") if is_bundle_name(name))
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()

    def track(self, bundle: str) -> None:
        """Remember that `bundle` was added by name."""
        place = self.directory / "bundles"
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        (place / bundle).touch(mode=0o644)

    def untrack(self, bundle: str) -> None:
        """Forget that `bundle` was added by name."""
        (self.directory / "bundles" / bundle).unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock inside the block.

        It is the record lock of fcntl(2) that every swupd takes, so that ours and another one exclude each other.

        Raises:
            StateLockedError: Another process holds it.
        """
        path = self.directory / "swupd_lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
                raise StateLockedError(path=path, holder=holder if holder.isdecimal() else "") from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Cache:
    """The part of the cache that belongs to one content URL."""

    directory: Path

    @classmethod
    def of(cls, state: Path, content_url: str) -> "Cache":
        """Return the cache below `state` for what `content_url` serves."""
        return cls(state / "cache" / content_url.replace(":", "_").replace("/", "_"))

    @property
    def staged(self) -> Path:
        """Holds objects under their hashes."""
        return self.directory / "staged"

    @property
    def delta(self) -> Path:
        """Holds deltas that are still to be applied."""
        return self.directory / "delta"

    @property
    def download(self) -> Path:
        """Holds what is being fetched."""
        return self.directory / "download"

    @property
    def temp(self) -> Path:
        """Holds what is being made."""
        return self.directory / "temp"

    @property
    def search(self) -> Path:
        """Holds indexes of files."""
        return self.directory / "search"

    def manifest(self, version: int, bundle: str) -> Path:
        """Return the path of a manifest's copy."""
        return self.directory / "manifest" / str(version) / f"Manifest.{bundle}"

    def pack_marker(self, bundle: str, *, old: int, version: int) -> Path:
        """Return the path of what says that a pack is unpacked."""
        return self.directory / f"pack-{bundle}-from-{old}-to-{version}.tar"

    def prepare(self, state: Path) -> None:
        """Make the directories; only root may look inside, as setuid files lie there."""
        _check(state)
        for place in (self.staged, self.delta, self.download, self.temp):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / "manifest").mkdir(mode=0o755, exist_ok=True)

    def forget_objects(self) -> int:
        """Remove objects, deltas and markers; return how many bytes that frees."""
        freed = 0
        for place in (self.staged, self.delta, self.download, self.temp):
            freed += empty(place)
        for marker in self.directory.glob("pack-*.tar"):
            marker.unlink(missing_ok=True)
        return freed


def empty(directory: Path) -> int:
    """Remove everything inside `directory`; return how many bytes that frees."""
    freed = 0
    try:
        found = list(os.scandir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            freed += empty(Path(entry.path))
            shutil.rmtree(entry.path)
        else:
            status = entry.stat(follow_symlinks=False)
            freed += status.st_size if status.st_nlink == 1 else 0
            os.unlink(entry.path)
    return freed


def _check(directory: Path) -> None:
    if not directory.is_absolute() or str(directory.resolve()) in _REFUSED:
        raise RefusedDirectoryError(path=directory)
