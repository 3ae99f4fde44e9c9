"""The journal remembers what is stored, and a page nobody can read is a page nobody wrote."""

import msgspec
import pytest
from tests.unit.publishing.building import release_id

from overhaul.release.record import FileRef, PackRef
from overhaul.repository.journal import Journal, JournalEntry
from overhaul.repository.layout import ContentKind, content_ref_of, journal_key
from overhaul.repository.memory import MemoryStorage


def _ref(kind: ContentKind) -> FileRef:
    return content_ref_of(kind, kind.encode())


@pytest.fixture
def entry() -> JournalEntry:
    pack = PackRef(pack=_ref(ContentKind.PACK), frames=_ref(ContentKind.FRAMES))
    return JournalEntry(
        release=release_id(), channel="stable", started_at=7, index=_ref(ContentKind.INDEX), packs=(pack,)
    )


def test_an_entry_is_found_by_its_release_until_it_is_closed(entry: JournalEntry) -> None:
    journal = Journal(MemoryStorage())
    journal.write(entry)
    assert journal.find(release_id()) == entry
    assert journal.find(release_id("2.0")) is None
    assert journal.entries() == [entry]

    journal.close(entry)
    assert journal.find(release_id()) is None
    assert journal.entries() == []


def test_it_names_every_file(entry: JournalEntry) -> None:
    kinds = [ref.path.split("/")[1] for ref in entry.files]

    assert kinds == ["indexes", "packs", "frames"]


def test_a_page_that_cannot_be_read_counts_as_none(entry: JournalEntry) -> None:
    storage = MemoryStorage()
    journal = Journal(storage)
    data = msgspec.json.encode(entry)
    for length in range(0, len(data), 7):
        storage.put(journal_key(entry.id), data[:length])
        assert journal.find(release_id()) is None
    storage.put(journal_key(entry.id), msgspec.json.encode(msgspec.structs.replace(entry, format=2)))
    assert journal.entries() == []
