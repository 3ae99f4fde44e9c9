"""The ways to a published version are gone as devices go them: packs unpacked, deltas applied, everything hashed.

A device that updates a bundle makes the new manifest of its old one by a delta, asks for the pack from its version,
applies the deltas in it to what it has, and writes an object only where the entry's version is higher than its own.
Each of that is done here for every pack that the version has, also the one for fresh installations. What a pack
lacks is taken from full files, which `checking` reads.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from overhaul.dialects.swupd.bsdiff import MalformedDeltaFileError, apply_delta, read_delta_header
from overhaul.dialects.swupd.deltas import pair_entries
from overhaul.dialects.swupd.eras import Era
from overhaul.dialects.swupd.fullfiles import DamagedFullfileError, FullfileStore, hash_member
from overhaul.dialects.swupd.hash import hash_file
from overhaul.dialects.swupd.manifest import Entry, MalformedManifestError, Manifest, entries_by_name, parse_manifest
from overhaul.dialects.swupd.names import manifest_delta_path, manifest_path, pack_path, parse_delta_name
from overhaul.dialects.swupd.packing import MalformedCompressionError
from overhaul.dialects.swupd.packs import unpack_piece
from overhaul.dialects.swupd.published import PublishedTree
from overhaul.dialects.swupd.tars import MalformedTarError, Member
from overhaul.progress import Progress

_NOTHING = Manifest(format=0, version=0)


@dataclass
class Ways:
    """The packs and deltas that lead to bundles of one tree, and what was found about them."""

    tree: PublishedTree
    store: FullfileStore
    progress: Progress
    problems: list[str] = field(default_factory=list)
    #: File deltas that were applied.
    applied: int = 0
    #: Those that begin with an object that is not kept any more: devices may have it, and nobody can try it here.
    untried: int = 0

    def go(self, bundle: str, manifest: Manifest) -> None:
        """Go every way to a bundle's manifest."""
        data = self.tree.manifest_bytes(manifest.version, bundle)
        for old in sorted({*self._packs(bundle, manifest.version), manifest.previous, 0}):
            before, before_data = _NOTHING, b""
            if old:
                if not self.tree.path(manifest_path(old, bundle)).is_file():
                    continue  # Without it no device of that version can begin an update.
                before_data = self.tree.manifest_bytes(old, bundle)
                try:
                    before = parse_manifest(before_data, name=bundle)
                except MalformedManifestError as error:
                    self.problems.append(str(error))
                    continue
                self._apply_manifest_delta(bundle, manifest.version, old, before_data, data)
            way = _Way.of(bundle, before, manifest)
            self.problems += way.unseen_changes()
            self._open_pack(way)

    def _packs(self, bundle: str, version: int) -> Iterator[int]:
        prefix, suffix = f"pack-{bundle}-from-", ".tar"
        for name in os.listdir(self.tree.path(str(version))):
            old = name.removeprefix(prefix).removesuffix(suffix)
            if name == f"{prefix}{old}{suffix}" and old.isdigit():
                yield int(old)

    def _apply_manifest_delta(self, bundle: str, version: int, old: int, before: bytes, after: bytes) -> None:
        place = self.tree.path(manifest_delta_path(version, bundle, old=old))
        if place.is_file():
            try:
                made = apply_delta(place.read_bytes(), before)
            except MalformedDeltaFileError as error:
                self.problems.append(f"{place} cannot be applied: {error}")
                return
            if made != after:
                self.problems.append(f"{place} makes another manifest than Manifest.{bundle} of {version}.")

    def _open_pack(self, way: "_Way") -> None:
        place = self.tree.path(pack_path(way.after.version, way.bundle, old=way.before.version))
        if not place.is_file():
            return
        try:
            with place.open("rb") as stream:
                for member, content in unpack_piece(stream, name=str(place)):
                    folder, _, name = member.name.partition("/")
                    if folder == "staged" and name:
                        self._take_object(place, way, name, member, content)
                    elif folder == "delta" and name:
                        self._apply_delta(place, way, name, bytes(content))
                    self.progress.advance(len(content))
        except (MalformedCompressionError, MalformedTarError) as error:
            self.problems.append(str(error))

    def _take_object(self, place: Path, way: "_Way", name: str, member: Member, content: memoryview) -> None:
        entry = way.wanted.get(name)
        path = None
        if way.hashes_directory_paths and entry is not None and entry.kind == "D":
            path = entry.name
        elif way.hashes_directory_paths and entry is None and stat.S_ISDIR(member.mode):
            return  # Left over from an older pack, and of no use to devices: nobody knows its path.
        if hash_member(member, content, path=path) != name:
            self.problems.append(f"{place} holds another object under the name {name}.")

    def _apply_delta(self, place: Path, way: "_Way", name: str, delta: bytes) -> None:
        old = way.source(name)
        hashes = parse_delta_name(name)
        if old is None or hashes is None:
            self.problems.append(f"{place} holds the delta {name}, which fits nothing that its devices have and want.")
            return
        if not self.store.place(old.version, old.hash).is_file():
            self.untried += 1
            return
        try:
            begun = self.store.read(old.version, old.hash)
            header, made = read_delta_header(delta), apply_delta(delta, begun.content)
        except (DamagedFullfileError, MalformedDeltaFileError) as error:
            self.problems.append(f"The delta {name} of {place} cannot be applied: {error}")
            return
        # A delta carries no extended attributes: the new file keeps the old one's.
        xattrs = begun.member.xattrs
        if hash_file(made, mode=header.mode, uid=header.uid, gid=header.gid, xattrs=xattrs) != hashes[1]:
            self.problems.append(f"The delta {name} of {place} makes another file than it says.")
        self.applied += 1


@dataclass(frozen=True)
class _Way:
    """From what a device has of a bundle to what it shall have."""

    bundle: str
    before: Manifest
    after: Manifest
    #: What the device has, at each path and by hash.
    had: Mapping[bytes, Entry]
    had_hashes: Mapping[str, Entry]
    #: What the new version has, by hash.
    wanted: Mapping[str, Entry]
    #: Without the old hash in a delta's name, what it begins with: by the new hash.
    sources: Mapping[str, Entry]

    @classmethod
    def of(cls, bundle: str, before: Manifest, after: Manifest) -> "_Way":
        had = entries_by_name(before.entries)
        had_hashes, wanted = (
            {entry.hash: entry for entry in manifest.entries if entry.is_present} for manifest in (before, after)
        )
        pairs = () if Era(after.format).names_both_hashes else pair_entries(had, wanted.values())
        return cls(bundle, before, after, had, had_hashes, wanted, {pair.new.hash: pair.old for pair in pairs})

    @property
    def hashes_directory_paths(self) -> bool:
        return Era(self.after.format).hashes_directory_paths

    def unseen_changes(self) -> Iterator[str]:
        """Yield a sentence for each change that no device would make, because it compares versions."""
        for entry in self.after.entries:
            old = self.had.get(entry.name)
            if old is None or not (entry.is_present and old.is_present) or entry.hash == old.hash:
                continue
            if entry.version <= old.version:
                shown = entry.name.decode(errors="backslashreplace")
                yield (
                    f"{shown} of {self.bundle} changed after version {self.before.version}, and its line still says "
                    f"{entry.version}: devices keep what they have."
                )

    def source(self, delta: str) -> Entry | None:
        """Return the object that a delta of this name begins with, when the device has it and wants the result."""
        hashes = parse_delta_name(delta)
        if hashes is None or hashes[1] not in self.wanted:
            return None
        if hashes[0] is None:
            return self.sources.get(hashes[1])
        return self.had_hashes.get(hashes[0])
