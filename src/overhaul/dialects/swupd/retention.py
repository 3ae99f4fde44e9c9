"""Which versions of a published tree devices can still need, and why.

A device that has version V needs V's manifests and, to become any newer version, what that lists: full files lie
where their object changed last, so old versions are needed long after nobody runs them. Kept are the newest
versions of each format, everything their MoMs and manifests point at, and the last version of each older format
with what it needs, because devices that slept since must pass through it.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.build import building
from overhaul.dialects.swupd.manifest import Manifest
from overhaul.dialects.swupd.published import PublishedTree


@dataclass(frozen=True, kw_only=True)
class Needed:
    """One version that stays."""

    version: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What is needed and what is not."""

    needed: tuple[Needed, ...]
    unneeded: tuple[int, ...]
    #: Bytes of the versions that are not needed.
    freed_bytes: int


def prune(web: Path, *, keep: int, remove: bool) -> Pruned:
    """Find the versions that no device can need; with `remove` remove them.

    `keep` newest versions of each format may still be on devices; channels' pointers keep theirs in any case.
    """
    with building(web):
        tree = PublishedTree(web)
        reasons = _reasons(tree, keep)
        unneeded = tuple(version for version in tree.versions() if version not in reasons)
        freed = sum(_size(tree.path(str(version))) for version in unneeded)
        if remove:
            for version in unneeded:
                # Out of sight first: a version is there whole or not at all.
                hidden = web / f".removing-{version}"
                tree.path(str(version)).rename(hidden)
                shutil.rmtree(hidden)
        needed = tuple(Needed(version=version, reason=reasons[version]) for version in sorted(reasons))
    return Pruned(needed=needed, unneeded=unneeded, freed_bytes=freed)


def _reasons(tree: PublishedTree, keep: int) -> dict[int, str]:
    moms = {version: tree.mom(version) for version in tree.versions()}
    by_format: dict[int, list[int]] = {}
    for version, mom in moms.items():
        by_format.setdefault(mom.format, []).append(version)
    newest_format = max(by_format, default=0)
    reasons: dict[int, str] = {}
    for number, versions in by_format.items():
        for version in sorted(versions)[-keep if number == newest_format else -1 :]:
            said = (
                f"one of the newest of format {number}"
                if number == newest_format
                else f"the way out of format {number}"
            )
            reasons[version] = said
    for pointer, version in _pointers(tree.web):
        if version in moms:
            reasons.setdefault(version, f"{pointer} names it")
    for version in sorted(reasons, reverse=True):
        for bundle, manifest in sorted(tree.bundles(moms[version]).items()):
            _add_objects(reasons, version, bundle, manifest)
    return reasons


def _add_objects(reasons: dict[int, str], version: int, bundle: str, manifest: Manifest) -> None:
    reasons.setdefault(manifest.version, f"version {version} has the bundle {bundle} from it")
    for entry in manifest.entries:
        if entry.is_present and entry.version not in reasons:
            shown = entry.name.decode(errors="backslashreplace")
            reasons[entry.version] = f"version {version} has {shown} from it"


def _pointers(web: Path) -> Iterator[tuple[str, int]]:
    roots = [web, *sorted(web.glob("channels/*"))]
    for root in roots:
        for number, version in PublishedTree(root).latest().items():
            yield f"{(root / 'version').relative_to(web)}/format{number}/latest", version


def _size(directory: Path) -> int:
    return sum((Path(folder) / name).stat().st_size for folder, _, names in os.walk(directory) for name in names)
