"""The tree becomes objects: each file is hashed, and packed into its full file if it is new, in one reading.

Whether an object is new is known as soon as its hash is: the version before is in memory. Packing happens in the
thread that read the file, while its bytes are in the processor's cache; full files that a killed run left and that
are right are not made again.
"""

import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from overhaul.content.tree import TreeEntry
from overhaul.dialects.swupd.bundles import Assignment, BundleDefinition
from overhaul.dialects.swupd.fullfiles import (
    MAX_OBJECT_BYTES,
    FullfileStore,
    PackedObject,
    encode_fullfile,
    hash_entry,
    hash_member,
    member_of,
)
from overhaul.dialects.swupd.listing import Listed, Listing
from overhaul.dialects.swupd.manifest import Manifest
from overhaul.dialects.swupd.names import CORE_BUNDLE
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.paths import why_left_out
from overhaul.dialects.swupd.tars import Member
from overhaul.errors import InputError

#: No more warnings of one kind are repeated one by one.
_WARNINGS_SHOWN = 20


class TooLargeObjectError(InputError):
    """A file beyond what any client can install."""

    def __init__(self, *, path: bytes, size: int) -> None:
        self.path = path
        self.size = size
        super().__init__(f"{path.decode(errors='backslashreplace')!r} has {size} bytes; no swupd client takes that.")


@dataclass
class Gathering:
    """The objects of one version while they come in; `take` is called from several threads at once."""

    store: FullfileStore
    version: int
    options: BuildOptions
    #: Path -> hashes it has in the bundles of the version before, as far as those entries stay valid.
    known: Mapping[bytes, frozenset[str]]
    warnings: list[str] = field(default_factory=list)
    _hashes: dict[tuple[int, bytes], Listed] = field(default_factory=dict)
    #: Time of the object that each full file is made of.
    _held: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _naming: threading.Lock = field(default_factory=threading.Lock)

    def listed(self, entries: Iterable[TreeEntry]) -> list[TreeEntry]:
        """Return the entries that manifests can list, without the root, and remember why others are left out."""
        kept = []
        left_out: dict[str, list[bytes]] = {}
        banned = () if self.options.debug else self.options.debug_directories
        for entry in entries:
            if not entry.path:
                continue
            reason = why_left_out(entry, stateless=self.options.stateless, banned=banned)
            if reason is None:
                kept.append(entry)
            else:
                left_out.setdefault(reason, []).append(entry.path)
            if entry.is_file and entry.size > MAX_OBJECT_BYTES:
                raise TooLargeObjectError(path=entry.path, size=entry.size)
        for reason, paths in left_out.items():
            shown = [path.decode(errors="backslashreplace") for path in paths[:_WARNINGS_SHOWN]]
            self.warnings += [f"/{path} is left out: {reason}" for path in shown]
            if len(paths) > len(shown):
                self.warnings.append(f"{len(paths) - len(shown)} more are left out: {reason}")
        return kept

    def take(self, tree: int, entry: TreeEntry, content: memoryview | bytes) -> None:
        """Take one object of the tree number `tree`; `content` is empty for what is no file."""
        name = b"/" + entry.path
        path = name if self.options.era.hashes_directory_paths else None
        digest = hash_entry(entry, content, path=path, with_xattrs=self.options.xattrs)
        kind = "F" if entry.is_file else "D" if entry.is_directory else "L"
        self._hashes[tree, name] = Listed(kind, digest, 0 if kind == "D" else entry.size)
        if digest not in self.known.get(name, ()):
            self._hold(member_of(entry, digest, with_xattrs=self.options.xattrs), content, digest, path)

    def put(self, tree: int, name: bytes, made: PackedObject) -> None:
        """Put an object that is in no tree at the absolute path `name`, in place of what the tree has there."""
        path = name if self.options.era.hashes_directory_paths else None
        digest = hash_member(made.member, made.content, path=path)
        kind = "D" if stat.S_ISDIR(made.member.mode) else "F"
        self._hashes[tree, name] = Listed(kind, digest, len(made.content))
        if digest not in self.known.get(name, ()):
            self._hold(msgspec.structs.replace(made.member, name=digest), made.content, digest, path)

    def _hold(self, member: Member, content: memoryview | bytes, digest: str, path: bytes | None) -> None:
        # Objects of one hash differ in their time only. The oldest is published, whichever thread comes first, so
        # that the same tree always makes the same bytes.
        with self._lock:
            if self._held.get(digest, member.mtime + 1) <= member.mtime:
                return
            self._held[digest] = member.mtime
        if self.store.holds_right(self.version, digest, path=path, mtime=member.mtime):
            return
        options = self.options
        data = encode_fullfile(member, content, how=options.compression, level=options.fullfile_level)
        with self.store.holding(self.version, digest, data) as name_it, self._naming:
            if self._held[digest] == member.mtime:
                name_it()

    def objects(self, tree: int, names: Iterable[bytes]) -> dict[bytes, Listed]:
        """Return what was taken of a tree at the absolute paths `names`."""
        return {name: self._hashes[tree, name] for name in names if (tree, name) in self._hashes}

    def all_names(self, tree: int) -> list[bytes]:
        """Return the absolute paths of a tree that were taken or put."""
        return [name for number, name in self._hashes if number == tree]


def known_objects(before: Iterable[Manifest], *, minversion: int) -> dict[bytes, frozenset[str]]:
    """Return which hash of which path needs no new full file: it stays valid in every bundle that lists the path."""
    hashes: dict[bytes, frozenset[str]] = {}
    for manifest in before:
        for entry in manifest.entries:
            here = frozenset((entry.hash,)) if entry.is_present and entry.version >= minversion else frozenset()
            hashes[entry.name] = hashes[entry.name] & here if entry.name in hashes else here
    return hashes


def divide(
    definitions: Sequence[BundleDefinition], names: Iterable[bytes], objects: Mapping[bytes, Listed]
) -> list[Listing]:
    """Return the bundles of one tree, decided by the patterns of their definitions."""
    assignment = Assignment(definitions)
    taken: dict[str, dict[bytes, Listed]] = {one.name: {} for one in definitions}
    for name in names:
        for bundle in assignment.bundles_of(name):
            taken[bundle][name] = objects[name]
            if bundle == CORE_BUNDLE:
                continue
            folder = name.rpartition(b"/")[0]
            while folder and folder not in taken[bundle] and folder in objects:
                taken[bundle][folder] = objects[folder]
                folder = folder.rpartition(b"/")[0]
    return [Listing(definition=one, objects=taken[one.name]) for one in definitions]
