"""From root file system trees to a version: one tree divided into bundles, or a tree for each bundle.

Every file is read once. `VersionFromTree` is fed by whoever reads the tree for several dialects at once; `build_trees`
reads for itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from overhaul.content.tree import TreeEntry, read_files, scan_tree
from overhaul.dialects.swupd.build import Build, BuiltVersion
from overhaul.dialects.swupd.bundles import BundleDefinition
from overhaul.dialects.swupd.completing import Wanted, complete_bundle
from overhaul.dialects.swupd.gathering import divide
from overhaul.dialects.swupd.listing import Listing

#: Files that decide what a version still needs, and are small.
_LOOKED_INTO = 1 << 20


@dataclass
class VersionFromTree:
    """One tree that holds everything, divided by the patterns of the bundles or by lists of paths."""

    build: Build
    root: Path
    entries: Sequence[TreeEntry]
    definitions: Sequence[BundleDefinition]
    #: Paths of each bundle where they are listed; those of bundles without a list follow the patterns.
    contents: Mapping[str, frozenset[bytes]] | None = None

    def __post_init__(self) -> None:
        self.listed = self.build.gathering.listed(self.entries)
        self._paths = {entry.path for entry in self.listed}

    def take(self, entry: TreeEntry, content: memoryview) -> None:
        """Take a regular file while its bytes are in memory."""
        if entry.path in self._paths:
            self.build.gathering.take(0, entry, content)

    def finish(self, notes: Mapping[str, bytes]) -> BuiltVersion:
        """Write the version."""
        gathering = self.build.gathering
        for entry in self.listed:
            if not entry.is_file:
                gathering.take(0, entry, b"")
        names = [b"/" + entry.path for entry in self.listed]
        objects = gathering.objects(0, names)
        if self.contents is None:
            listings = divide(self.definitions, names, objects)
        else:
            listings = [
                Listing(
                    definition=one,
                    objects={name: objects[name] for name in names if name in self.contents.get(one.name, ())},
                )
                for one in self.definitions
            ]
        done = [complete(self.build, listing, 0, self.root) for listing in listings]
        return self.build.finish(done, notes=notes)


def build_trees(
    build: Build, trees: Sequence[tuple[BundleDefinition, Path]], *, notes: Mapping[str, bytes]
) -> BuiltVersion:
    """Build a version of which every bundle has a tree of its own."""
    gathering = build.gathering
    listings = []
    for number, (definition, root) in enumerate(trees):
        listed = gathering.listed(scan_tree(root))
        take = partial(gathering.take, number)
        read_files(root, listed, [take], workers=build.options.workers, progress=build.progress)
        for entry in listed:
            if not entry.is_file:
                gathering.take(number, entry, b"")
        objects = gathering.objects(number, [b"/" + entry.path for entry in listed])
        listings.append(complete(build, Listing(definition=definition, objects=objects), number, root))
    return build.finish(listings, notes=notes)


def complete(build: Build, listing: Listing, number: int, root: Path) -> Listing:
    """Return a bundle with what clients need and its tree lacks."""
    if not build.options.complete:
        return listing

    def read(name: bytes) -> bytes | None:
        one = listing.objects.get(name)
        path = root / name.decode("utf-8", "surrogateescape").lstrip("/")
        if one is None or one.kind != "F" or one.size > _LOOKED_INTO:
            return None
        return path.read_bytes()

    bundle = listing.definition.name
    made = complete_bundle(bundle, listing.objects.keys(), read, wanted(build))
    for name, packed in made.items():
        build.gathering.put(number, name, packed)
    objects = {**listing.objects, **build.gathering.objects(number, made)}
    return Listing(definition=listing.definition, objects=objects, stated_size=listing.stated_size)


def wanted(build: Build) -> Wanted:
    """Return what the files that clients read must say in this version."""
    request = build.request
    return Wanted(
        version=request.content_version or request.version,
        format=request.content_format or build.options.format,
        timestamp=request.timestamp,
        options=build.options,
    )
