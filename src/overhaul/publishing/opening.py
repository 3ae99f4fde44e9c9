"""An opened repository: its settings, its storage and its keys, each made when it is first needed."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from overhaul.publishing.settings import SETTINGS_FILE, Settings, read_settings
from overhaul.repository.journal import Journal
from overhaul.repository.layout import WORK_FOLDER
from overhaul.repository.local import LocalStorage
from overhaul.repository.lock import RepositoryLock, repository_lock
from overhaul.repository.opening import open_storage
from overhaul.repository.signed import Published, SignedChange, read_published
from overhaul.repository.storage import Storage
from overhaul.trust.keyfiles import Passphrases
from overhaul.trust.keyring import Keyring


@dataclass(frozen=True, kw_only=True)
class Repository:
    """One repository as a publisher sees it."""

    directory: Path
    settings: Settings
    storage: Storage
    clock: Callable[[], float] = field(default=time.time, repr=False)
    #: Asked for what locks key files and tokens.
    passphrases: Passphrases | None = field(default=None, repr=False)

    @property
    def keys_directory(self) -> Path:
        """Where the private keys are."""
        return (self.directory / self.settings.keys).resolve()

    @cached_property
    def keyring(self) -> Keyring:
        """The private keys; raises `UnusableKeyringError` where there are none."""
        return Keyring.open(self.keys_directory, repository=self.directory, passphrases=self.passphrases)

    @property
    def journal(self) -> Journal:
        """The publishes that have not ended."""
        return Journal(self.storage)

    def now(self) -> datetime:
        """Return the time, to the second, as metadata carries it."""
        return datetime.fromtimestamp(int(self.clock()), UTC)

    def published(self) -> Published:
        """Return what is signed; needs no private key."""
        return read_published(self.storage, now=self.now())

    @contextmanager
    def locked(self, purpose: str) -> Iterator[RepositoryLock]:
        """Hold the repository's lock; remove what a writer that died left half-written."""
        with repository_lock(self.storage, purpose=purpose, clock=self.clock) as lock:
            if isinstance(self.storage, LocalStorage):
                self.storage.sweep()
                self.storage.make_durable()
            yield lock

    @contextmanager
    def work_directory(self) -> Iterator[Path]:
        """Yield an empty directory for big files, on the storage's own file system where it has one.

        Used under the lock only; what a killed writer left in it is removed.
        """
        if not isinstance(self.storage, LocalStorage):
            with TemporaryDirectory(prefix="overhaul-") as name:
                yield Path(name)
            return
        directory = self.storage.root / WORK_FOLDER
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def change(self, lock: RepositoryLock) -> SignedChange:
        """Begin a change of the signed state."""
        return SignedChange(
            storage=self.storage,
            lock=lock,
            keyring=self.keyring,
            now=self.now(),
            lifetimes=self.settings.lifetimes.as_lifetimes(),
        )


def open_repository(directory: Path) -> Repository:
    """Return the repository whose `overhaul.toml` lies in `directory`."""
    settings = read_settings(directory / SETTINGS_FILE)
    return Repository(directory=directory, settings=settings, storage=open_storage(settings.storage, base=directory))
