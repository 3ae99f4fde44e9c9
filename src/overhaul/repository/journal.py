"""The journal of publishes that have not ended: what is stored already, so that a rerun need not do it again.

Everything a publish writes before the timestamp moves has a name nobody refers to yet, and a name that follows
from its content. So a publish that died needs no undoing: running it again does the same steps, and this journal
lets it skip those whose result is in the storage. One JSON document for each release, removed when the release
is published; `prune` leaves the files it names alone until it is old.
"""

import hashlib

import msgspec

from overhaul.release.record import DeltaRef, FileRef, PackRef, ReleaseId
from overhaul.repository.layout import JOURNAL_PREFIX, journal_key
from overhaul.repository.storage import MissingObjectError, Storage

_JOURNAL_FORMAT = 1


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one running or dead publish."""

    format: int = _JOURNAL_FORMAT
    release: ReleaseId
    channel: str
    #: Seconds since 1970 UTC.
    started_at: int
    #: Of the image's index; a rerun with another image starts afresh.
    index: FileRef | None = None
    #: Set once the index and all these packs are stored.
    packs: tuple[PackRef, ...] = ()
    #: Those that are stored.
    deltas: tuple[DeltaRef, ...] = ()

    @property
    def id(self) -> str:
        """The name of the document."""
        return hashlib.sha256(str(self.release).encode()).hexdigest()[:32]

    @property
    def files(self) -> tuple[FileRef, ...]:
        """Every content file it names."""
        index = () if self.index is None else (self.index,)
        packs = (ref for pack in self.packs for ref in pack.files)
        return (*index, *packs, *(delta.file for delta in self.deltas))


class Journal:
    """The journal documents of one repository; written under its lock only."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def entries(self) -> list[JournalEntry]:
        """Return all publishes that have not ended; a document that cannot be read tells nothing and is left out."""
        found = []
        for stored in self._storage.list_objects(JOURNAL_PREFIX):
            entry = self._read(stored.key)
            if entry is not None:
                found.append(entry)
        return found

    def find(self, release: ReleaseId) -> JournalEntry | None:
        """Return what an earlier run left of the publish of `release`."""
        wanted = JournalEntry(release=release, channel="", started_at=0)
        entry = self._read(journal_key(wanted.id))
        return entry if entry is not None and entry.release == release else None

    def write(self, entry: JournalEntry) -> None:
        """Remember how far the publish has come."""
        self._storage.put(journal_key(entry.id), msgspec.json.encode(entry))

    def close(self, entry: JournalEntry) -> None:
        """Forget a publish that has ended."""
        self._storage.delete(journal_key(entry.id))

    def _read(self, key: str) -> JournalEntry | None:
        try:
            entry = msgspec.json.decode(self._storage.read(key), type=JournalEntry)
        except (MissingObjectError, msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        return entry if entry.format == _JOURNAL_FORMAT else None
