"""The static form of all answers: which files there are, and what stands in them.

For every image of a pool and every branch there are three files (see `paths`), worked out before any is written, so
that a pool that cannot be served leaves the old tree as it was. Images come newest first; where several share a file
the newest decides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from overhaul.dialects.atomupd.candidates import Update, encode_file
from overhaul.dialects.atomupd.catalogue import Catalogue, Entry
from overhaul.dialects.atomupd.ordering import sorted_entries
from overhaul.dialects.atomupd.paths import REMOTE_INFO, answer_paths, remote_info_directory
from overhaul.dialects.atomupd.selection import Kind, Selection
from overhaul.dialects.atomupd.server_configuration import RemoteInfo

#: Sizes are estimated for devices on so many of the newest images, and on checkpoints.
ESTIMATED_IMAGES = 150

#: Returns the bytes a device on the first image downloads to install the second; 0 when that is not known.
Estimate = Callable[[Entry, Entry], int]


def no_estimate(_old: Entry, _new: Entry) -> int:
    """Return that the size is unknown."""
    return 0


class StaticAnswer(NamedTuple):
    """What one file holds."""

    #: With every size 0.
    data: bytes
    update: Update
    #: Between these the size of the first candidate is to be estimated; None: of nothing.
    between: tuple[Entry, Entry] | None = None

    def with_sizes(self, estimate: Estimate) -> bytes:
        """Return the bytes of the file with the size that can be estimated."""
        size = estimate(*self.between) if self.between is not None else 0
        minor = self.update.minor
        if size <= 0 or minor is None:
            return self.data
        first, *rest = minor.candidates
        image = msgspec.structs.replace(first.image, estimated_size=size)
        candidates = (msgspec.structs.replace(first, image=image), *rest)
        return encode_file(Update(minor=msgspec.structs.replace(minor, candidates=candidates)))


@dataclass(frozen=True, kw_only=True)
class StaticTree:
    """Every file of one tree, by relative path."""

    answers: Mapping[str, StaticAnswer]
    #: Files that are written as they are.
    others: Mapping[str, bytes]
    #: Files that must not be there: the answers for images that became shadow checkpoints.
    forbidden: frozenset[str]


def static_tree(
    catalogue: Catalogue, *, offered: Catalogue | None = None, remote_info: Mapping[str, RemoteInfo]
) -> StaticTree:
    """Return the tree of `catalogue`; `offered` is it without what is not open to everybody.

    Raises:
        UnusablePoolError: A branch holds no image for anybody, and the configuration calls that an error.
    """
    support = catalogue.support
    selection = Selection(offered or catalogue)
    entry_of_path = {entry.update_path: entry for entry in catalogue.recorded if entry.update_path}
    real = [entry for entry in catalogue.recorded if not entry.image.shadow_checkpoint]
    ordered = sorted_entries(real, fourth_number=not support.strict_compatibility, newest_first=True)
    named_twice = _named_twice(real)
    encoded: dict[int, tuple[Update, bytes]] = {}
    answers: dict[str, StaticAnswer] = {}

    #: Names and levels whose devices the server need not know have their files already.
    answered: set[tuple[str, ...]] = set()

    def put(path: str, entry: Entry, branch: str, kind: Kind, *, estimated: bool = False) -> None:
        if path in answers:
            return
        update = selection.answer(entry.image, branch=branch, kind=kind)
        known = encoded.get(id(update))
        if known is None:
            update = _without_sizes(update)
            known = encoded[id(update)] = (update, encode_file(update))
        between = None
        if estimated and update.minor is not None:
            between = entry, entry_of_path[update.minor.candidates[0].update_path]
        answers[path] = StaticAnswer(known[1], known[0], between)

    for place, entry in enumerate(ordered):
        estimated = place < ESTIMATED_IMAGES or entry.image.introduces_checkpoint > 0
        group = _group(entry)
        for branch in support.branches:
            asking = named_twice.get((*_identity(entry), branch), entry) if named_twice else entry
            paths = answer_paths(entry.image, branch=branch)
            put(paths.standard, asking, branch, Kind.STANDARD, estimated=estimated)
            if group not in answered:
                put(paths.fallback, entry, branch, Kind.FALLBACK)
                put(paths.penultimate, entry, branch, Kind.PENULTIMATE)
        answered.add(group)
    forbidden = {
        answer_paths(entry.image, branch=branch).standard
        for entry in catalogue.recorded
        if entry.image.shadow_checkpoint
        for branch in support.branches
    }
    return StaticTree(
        answers=answers,
        others=_remote_info_files(catalogue, remote_info),
        forbidden=frozenset(forbidden - answers.keys()),
    )


def _identity(entry: Entry) -> tuple[str, ...]:
    image = entry.image
    names = image.product, image.arch, image.release, image.shown_variant
    return *names, image.version.text, str(image.build_id)


def _group(entry: Entry) -> tuple[str, ...]:
    """Return what all images have in common whose fallback files are the same."""
    image = entry.image
    # Legacy files name the version, and not the release.
    own = image.version.text if image.legacy_variant else image.release
    return image.product, image.arch, own, image.variant, image.legacy_variant[:1], str(image.level)


def _named_twice(entries: list[Entry]) -> dict[tuple[str, ...], Entry]:
    """Return the images that stand in several branches under one name, by name and branch.

    Their answers share files. A device that asks for a branch its image stands in has not left it.
    """
    by_identity: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        by_identity.setdefault(_identity(entry), []).append(entry)
    return {
        (*identity, entry.image.branch): entry
        for identity, twins in by_identity.items()
        if len(twins) > 1
        for entry in twins
    }


def _without_sizes(update: Update) -> Update:
    if update.minor is None or not any(candidate.image.estimated_size for candidate in update.minor.candidates):
        return update
    candidates = tuple(
        msgspec.structs.replace(candidate, image=msgspec.structs.replace(candidate.image, estimated_size=0))
        for candidate in update.minor.candidates
    )
    return Update(minor=msgspec.structs.replace(update.minor, candidates=candidates))


def _remote_info_files(catalogue: Catalogue, remote_info: Mapping[str, RemoteInfo]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    ended = catalogue.support.replacements
    for entry in catalogue.recorded:
        image = entry.image
        info = remote_info.get(image.arch)
        path = f"{remote_info_directory(image)}/{REMOTE_INFO}"
        if info is None or path in files:
            continue
        variants = [name for name in info.variants if name not in ended or name == image.variant]
        lines = ["[Server]", f"Variants = {';'.join(variants)}", f"Branches = {';'.join(info.branches)}"]
        if info.dev_branches:
            lines.append(f"BranchesDev = {';'.join(info.dev_branches)}")
        files[path] = ("\n".join(lines) + "\n\n").encode()
    return files
