"""What is to become of each path: bundles made into one list, and two lists compared. Pure decisions, no files."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from overhaul.dialects.swupd.device.repository import Bundle
from overhaul.dialects.swupd.manifest import Entry, deleted_entry


@dataclass(frozen=True)
class Content:
    """All paths of several bundles, each once."""

    entries: Mapping[bytes, Entry]
    #: Paths that two bundles list with different content. Nobody can say which is right, so nobody touches them.
    conflicts: frozenset[bytes] = frozenset()


@dataclass(frozen=True)
class Changes:
    """What an update does, by path."""

    #: New or changed objects.
    put: tuple[Entry, ...]
    #: Paths to remove.
    remove: tuple[Entry, ...]

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


def consolidate(bundles: Iterable[Bundle]) -> Content:
    """Return the content of `bundles` together.

    Of two equal lines the older counts, what is present beats what is deleted, and of two deletions the newer counts.
    """
    entries: dict[bytes, Entry] = {}
    conflicts: set[bytes] = set()
    for bundle in bundles:
        if not entries:
            entries = {entry.name: entry for entry in bundle.entries}
            if len(entries) == len(bundle.entries):
                continue
            entries = {}
        for entry in bundle.entries:
            name = entry.name
            other = entries.get(name)
            if other is None:
                entries[name] = entry
            elif entry.is_present and other.is_present:
                if entry.hash != other.hash or entry.kind != other.kind:
                    conflicts.add(name)
                elif entry.version < other.version:
                    entries[name] = entry
            elif entry.is_present or (not other.is_present and entry.version > other.version):
                entries[name] = entry
    for name in conflicts:
        del entries[name]
    return Content(entries, frozenset(conflicts))


def changes_between(
    current: Content,
    target: Content,
    *,
    version: int,
    leaves_alone: Callable[[Entry], bool],
    is_intact: Callable[[Entry], bool],
) -> Changes:
    """Return what leads from `current` to `target`, the content of `version`.

    A path changes when the target's line is newer than the current one; a builder that changes content raises the
    version, and one that only raises the version has made the same content again, which is fetched only where
    `is_intact` says that the disk has something else.
    """
    put: list[Entry] = []
    remove: list[Entry] = []
    for name, entry in target.entries.items():
        before = current.entries.get(name)
        if before is not None and entry.version <= before.version:
            continue
        if leaves_alone(entry):
            continue
        if not entry.is_present:
            remove.append(entry)
        elif before is None or before.hash != entry.hash or before.kind != entry.kind or not is_intact(entry):
            put.append(entry)
    for name, before in current.entries.items():
        if name in target.entries or name in target.conflicts or not before.is_present:
            continue
        gone = deleted_entry(name, version=version)
        if not leaves_alone(gone):
            remove.append(gone)
    return Changes(_by_name(put), _by_name(remove))


def changes_to_drop(dropped: Content, kept: Content, *, leaves_alone: Callable[[Entry], bool]) -> Changes:
    """Return what removes the content of `dropped` that `kept` does not have, too."""
    gone = [
        entry
        for name, entry in dropped.entries.items()
        if entry.is_present and name not in kept.conflicts and not _present(kept, name) and not leaves_alone(entry)
    ]
    return Changes((), _by_name(gone))


def _present(content: Content, name: bytes) -> bool:
    entry = content.entries.get(name)
    return entry is not None and entry.is_present


def _by_name(entries: list[Entry]) -> tuple[Entry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.name))
