"""Content that was published is published again under a higher version: the only way back for swupd's clients.

Nothing is read but manifests and a few small files: every object has a full file already, and only what names the
version is made anew.
"""

from collections.abc import Mapping

from overhaul.dialects.swupd.build import Build, BuiltVersion
from overhaul.dialects.swupd.bundles import BundleDefinition, check_bundles
from overhaul.dialects.swupd.completing import complete_bundle
from overhaul.dialects.swupd.listing import Listed, Listing
from overhaul.dialects.swupd.manifest import Manifest, entries_by_name
from overhaul.dialects.swupd.trees import wanted

#: Files that decide what a version still needs are smaller than this.
_LOOKED_INTO = 1 << 20


def build_again(build: Build, version: int, *, notes: Mapping[str, bytes]) -> BuiltVersion:
    """Build the version of `build` with the content of the published `version`."""
    mom = build.tree.mom(version)
    manifests = build.tree.bundles(mom)
    experimental = {entry.name.decode() for entry in mom.entries if entry.status == "e"}
    definitions = check_bundles(
        [
            BundleDefinition(
                name=name,
                includes=manifest.includes,
                also_add=manifest.also_add,
                status="Experimental" if name in experimental else manifest.status,
            )
            for name, manifest in manifests.items()
        ],
        place=f"version {version}",
    )
    listings = [_listing(build, number, one, manifests[one.name]) for number, one in enumerate(definitions)]
    return build.finish(listings, notes=notes)


def _listing(build: Build, number: int, definition: BundleDefinition, manifest: Manifest) -> Listing:
    entries = {name: one for name, one in entries_by_name(manifest.entries).items() if one.is_present}
    # Sizes are not in manifests; the whole is.
    objects = {name: Listed(one.kind, one.hash, 0) for name, one in entries.items()}

    def read(name: bytes) -> bytes | None:
        entry = entries.get(name)
        if entry is None or entry.kind != "F":
            return None
        content = build.store.read(entry.version, entry.hash).content
        return content if len(content) <= _LOOKED_INTO else None

    if build.options.complete:
        made = complete_bundle(definition.name, entries.keys(), read, wanted(build))
        for name, packed in made.items():
            build.gathering.put(number, name, packed)
        objects |= {name: Listed(one.kind, one.hash, 0) for name, one in build.gathering.objects(number, made).items()}
    return Listing(definition=definition, objects=objects, stated_size=manifest.content_size)
