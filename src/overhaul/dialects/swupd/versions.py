"""How a version follows from the one before: which entries keep their version, and what is left of deleted ones.

An entry keeps the version that last changed it, so that devices compare numbers and fetch its full file from where
it was made. What is gone stays in the list as deleted until the next format; a boot file that is gone is ghosted
once: no longer listed, and left on disks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from overhaul.dialects.swupd.deltas import pair_entries
from overhaul.dialects.swupd.eras import Era
from overhaul.dialects.swupd.listing import Listing
from overhaul.dialects.swupd.manifest import Entry, Manifest, deleted_entry, sort_key
from overhaul.dialects.swupd.paths import is_boot_path


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a new version is, apart from its content."""

    version: int
    era: Era
    #: Seconds since 1970 UTC.
    timestamp: int
    #: Every entry older than this is made again; 0 keeps them all.
    minversion: int = 0
    #: Mark boot files that are gone as ghosts; without, they are deleted like everything else.
    ghosts: bool = True
    #: Link what is gone with the new file that resembles it.
    renames: bool = False


def follow(listing: Listing, before: Manifest | None, step: Step) -> Manifest | None:
    """Return the bundle's manifest in the new version; None when nothing changed and the old one stays valid.

    `before` is the bundle's last manifest in the same format, or None.
    """
    old = {} if before is None else {entry.name: entry for entry in before.entries}
    entries: list[Entry] = []
    changed = before is None
    for name, one in listing.objects.items():
        known = old.get(name)
        if known is not None and _is_same(known, one.kind, one.hash) and known.version >= step.minversion:
            entries.append(known)
        else:
            entries.append(Entry(one.kind, ".", ".", ".", one.hash, step.version, name))
            changed = True
    for name, known in old.items():
        if name in listing.objects:
            continue
        if known.is_deleted:
            entries.append(known)
        elif known.is_present:
            ghosted = step.ghosts and step.era.has_ghosts and is_boot_path(name)
            entries.append(deleted_entry(name, version=step.version, ghosted=ghosted))
            changed = True
        else:
            changed = True  # a ghost is shown once
    definition = listing.definition
    also_add = definition.also_add if step.era.has_also_add else ()
    if before is not None:
        changed |= (before.includes, before.also_add, before.status) != (
            definition.includes,
            also_add,
            definition.status,
        )
    if not changed:
        return None
    if step.renames:
        entries = _with_renames(old, entries, step.version)
    return Manifest(
        format=step.era.number,
        version=step.version,
        previous=0 if before is None else before.version,
        timestamp=step.timestamp,
        content_size=step.era.content_size(listing.content_size),
        status=definition.status,
        includes=definition.includes,
        also_add=also_add,
        entries=tuple(sorted(entries, key=sort_key)),
    )


def _with_renames(old: Mapping[bytes, Entry], entries: Sequence[Entry], version: int) -> list[Entry]:
    """Return the entries of a version, both ends of each rename marked and the one that is gone with the other's hash.

    Clients before 3.16 look for what a delta begins with there; all others find it by the name of the delta.
    """
    new = [entry for entry in entries if entry.version == version and entry.name not in old]
    gone = {entry.name: entry for entry in entries if entry.version == version and entry.is_deleted}
    targets = {
        pair.old.name: pair.new.hash
        for pair in pair_entries({name: known for name, known in old.items() if name in gone}, new)
    }
    linked = set(targets.values())
    appeared = {entry.name for entry in new}
    return [
        msgspec.structs.replace(entry, mark="r", hash=targets.get(entry.name, entry.hash))
        if entry.name in targets or (entry.hash in linked and entry.name in appeared)
        else entry
        for entry in entries
    ]


def _is_same(known: Entry, kind: str, digest: str) -> bool:
    return known.is_present and known.hash == digest and known.kind == kind


def unite(manifests: "list[Manifest]", step: Step, *, previous: int) -> Manifest:
    """Return the full manifest: each path of any bundle with its highest version; what is there beats what is not."""
    best: dict[bytes, Entry] = {}
    for manifest in manifests:
        for entry in manifest.entries:
            known = best.get(entry.name)
            if known is None or (entry.is_present, entry.version) > (known.is_present, known.version):
                best[entry.name] = entry
    size = sum(manifest.content_size for manifest in manifests)
    return Manifest(
        format=step.era.number,
        version=step.version,
        previous=previous,
        timestamp=step.timestamp,
        content_size=step.era.content_size(size),
        entries=tuple(sorted(best.values(), key=sort_key)),
    )
