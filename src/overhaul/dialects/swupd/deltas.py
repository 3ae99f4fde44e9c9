"""File deltas: which are worth having between two versions of a bundle, made once, proved, and kept.

A delta lies in the directory of the version that its new content belongs to, under a name that says what it turns
into what, so every later pack that needs it takes it from there. It is made from the object the device has at the
same path; or, for a new path, at one that went away and differs only in digits and dots, as libraries with
versions in their names do.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.delta.matching import find_covers
from overhaul.dialects.swupd.bsdiff import MIN_NEW_SIZE, apply_delta, make_delta
from overhaul.dialects.swupd.fullfiles import DamagedFullfileError, FullfileStore
from overhaul.dialects.swupd.manifest import Entry
from overhaul.dialects.swupd.names import delta_name
from overhaul.dialects.swupd.options import BuildOptions

#: A delta must be so much smaller than the full file to be worth the device's work.
_WORTHWHILE = 1.05
_VERSION_MARKS = re.compile(rb"[0-9.]+")
_HEX_MARKS = re.compile(rb"[0-9a-f.]+")


@dataclass(frozen=True)
class Pair:
    """An object a device has, and the one that takes its place."""

    old: Entry
    new: Entry


def pair_entries(old: Mapping[bytes, Entry], wanted: Iterable[Entry]) -> Iterator[Pair]:
    """Yield, for each file of `wanted` that resembles one of the device's, what it resembles."""
    gone: dict[bytes, Entry] | None = None
    wanted = list(wanted)
    listed = {entry.name for entry in wanted}
    for new in wanted:
        if new.kind != "F" or not new.is_present:
            continue
        before = old.get(new.name)
        if before is None or not before.is_present:
            if gone is None:
                gone = _by_alike_name(entry for entry in old.values() if entry.name not in listed)
            before = next((gone[key] for key in _alike_names(new.name) if key in gone), None)
        if before is not None and before.kind == "F" and before.is_present and before.hash != new.hash:
            yield Pair(before, new)


def _by_alike_name(entries: Iterable[Entry]) -> dict[bytes, Entry]:
    return {key: entry for entry in entries if entry.kind == "F" for key in _alike_names(entry.name)}


def _alike_names(name: bytes) -> Iterator[bytes]:
    for sign, marks in ((b"#", _VERSION_MARKS), (b"?", _HEX_MARKS)):
        alike = marks.sub(sign, name)
        if alike != name:
            yield alike


@dataclass(frozen=True)
class DeltaStore:
    """The deltas of all versions; those of the version that is made are written."""

    store: FullfileStore
    options: BuildOptions
    version: int

    def find(self, pair: Pair) -> Path | None:
        """Return the file of a delta when there is one."""
        name = self._name(pair)
        for version in dict.fromkeys((pair.new.version, self.version)):
            place = self._directory(version) / name
            if place.is_file():
                return place
        return None

    def make(self, pair: Pair) -> bool:
        """Make the delta of a pair unless it is there or does not pay; return whether it is there now."""
        if self.find(pair) is not None:
            return True
        try:
            new = self.store.read(pair.new.version, pair.new.hash)
            if not MIN_NEW_SIZE <= len(new.content) <= self.options.delta_max_bytes:
                return False
            old = self.store.read(pair.old.version, pair.old.hash)
        except DamagedFullfileError:
            # Of a version that was removed meanwhile: devices that have it get the whole file.
            return False
        # A delta carries no extended attributes.
        if len(old.content) > self.options.delta_max_bytes or old.member.xattrs != new.member.xattrs:
            return False
        mode, uid, gid = new.member.mode, new.member.uid, new.member.gid
        delta = make_delta(old.content, new.content, mode=mode, uid=uid, gid=gid, find_covers=find_covers)
        if delta is None or _WORTHWHILE * len(delta) >= self.store.size(pair.new.version, pair.new.hash):
            return False
        if apply_delta(delta, old.content) != new.content:
            raise AssertionError(f"the delta {self._name(pair)} does not make what it was made for")
        self._write(pair, delta)
        return True

    def _write(self, pair: Pair, delta: bytes) -> None:
        place = self._directory(self.version) / self._name(pair)
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        temporary.write_bytes(delta)
        temporary.rename(place)

    def _directory(self, version: int) -> Path:
        return self.store.place(version, "x").parent.parent / "delta"

    def _name(self, pair: Pair) -> str:
        return delta_name(
            old_version=pair.old.version,
            version=pair.new.version,
            old_hash=pair.old.hash,
            new_hash=pair.new.hash,
            both_hashes=self.options.era.names_both_hashes,
        )

    def member_name(self, pair: Pair) -> str:
        """Return how a delta is called inside a pack."""
        return f"delta/{self._name(pair)}"
