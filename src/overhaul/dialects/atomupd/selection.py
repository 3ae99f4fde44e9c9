"""Which images a device is offered under the rules of branches and numbered checkpoints.

A device is always led to the newest image of one branch that it can reach, through the checkpoints in between, all of
that branch. Its *level* is the last checkpoint it passed: an image that requires another level is out of its reach
until checkpoints bring it there, and the level never falls. A device that changes to a less advanced branch, runs an
image that was withdrawn, or whose variant has ended, is led to the newest image even when that is older.

What does not depend on the device is worked out once for each list, so that an answer costs a few comparisons.
"""

from collections.abc import Sequence
from enum import Enum
from functools import cached_property

import msgspec

from overhaul.dialects.atomupd.candidates import NO_UPDATE, Candidate, Update, UpdatePath
from overhaul.dialects.atomupd.catalogue import Catalogue, Entry, ListKey, UnusablePoolError
from overhaul.dialects.atomupd.manifest import Image
from overhaul.dialects.atomupd.ordering import is_below, is_same, sorted_entries


class Kind(Enum):
    """What is asked for."""

    #: What follows the device's image.
    STANDARD = "standard"
    #: The same, where the server does not know the image.
    FALLBACK = "fallback"
    #: The last image but one.
    PENULTIMATE = "penultimate"
    #: The newest image, newer or not.
    FORCED = "forced"


class Selection:
    """Answers questions about one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._support = catalogue.support
        self._fourth_number = not catalogue.support.strict_compatibility
        self._views: dict[ListKey, tuple[_View, _View]] = {}
        #: One record for each distinct answer, so that it is also encoded once.
        self._updates: dict[tuple[str, tuple[Entry, ...], str], Update] = {}

    def answer(self, image: Image, *, branch: str, kind: Kind) -> Update:
        """Return what a device on `image` that follows `branch` is offered.

        Raises:
            UnusablePoolError: There is nothing to offer anybody, and the configuration calls that an error.
        """
        variant = image.variant
        replacement = self._support.replacements.get(variant, "")
        if replacement:
            variant = replacement
            kind = kind if kind is Kind.PENULTIMATE else Kind.FORCED
        every, same = self._views_of((image.product, image.arch, image.release, variant, branch))
        chosen = every.pick(image, kind) or same.pick(image, kind)
        if not chosen and kind in (Kind.FALLBACK, Kind.PENULTIMATE):
            if kind is Kind.FALLBACK and not every.entries and self._support.strict_pool:
                name = f"{image.product}/{image.release}/{image.arch}/{variant}/{branch}"
                raise UnusablePoolError((f"there is no image for {name}",))
            return NO_UPDATE
        if not chosen and (kind is Kind.FORCED or self._is_forced(image, branch)):
            chosen = every.pick(image, Kind.FORCED) or same.pick(image, Kind.FORCED)
        if not chosen:
            return NO_UPDATE
        return self._update(image.release, chosen, replacement)

    def _is_forced(self, image: Image, branch: str) -> bool:
        if image.skip:
            return True
        if branch == image.branch:
            return False
        considered = self._support.considered
        return (
            branch in considered.get(image.branch, ())
            or image.branch not in considered.get(branch, ())
            or image.version.is_snapshot
        )

    def _views_of(self, key: ListKey) -> "tuple[_View, _View]":
        views = self._views.get(key)
        if views is None:
            lists, branch = self._catalogue.lists, key[-1]
            entries = list(lists.get(key, ()))
            for other in self._support.considered.get(branch, ()):
                listed = lists.get((*key[:-1], other), ())
                entries += [entry for entry in listed if not entry.image.version.is_snapshot]
            everything = sorted_entries(entries, fourth_number=self._fourth_number)
            same = [entry for entry in everything if entry.image.branch == branch]
            every_view = _View(everything, fourth_number=self._fourth_number)
            views = every_view, _View(same, fourth_number=self._fourth_number)
            # Strangers may ask for names without end; there is nothing to remember about those.
            if everything:
                self._views[key] = views
        return views

    def _update(self, release: str, chosen: "tuple[Entry, ...]", replacement: str) -> Update:
        known = self._updates.get((release, chosen, replacement))
        if known is None:
            ordered = sorted_entries(chosen, fourth_number=self._fourth_number)
            candidates = tuple(
                Candidate(image=entry.image, update_path=entry.update_path, chunks_store_path=entry.chunks_store_path)
                for entry in ordered
            )
            path = UpdatePath(release=release, candidates=candidates, replacement_eol_variant=replacement)
            known = self._updates[release, chosen, replacement] = Update(minor=path)
        return known


class _View:
    """One sorted list, and what can be known about it before anybody asks."""

    def __init__(self, entries: Sequence[Entry], *, fourth_number: bool) -> None:
        self.entries = entries
        self._fourth_number = fourth_number
        self._ways: dict[tuple[Kind, int], tuple[Entry, ...]] = {}

    @cached_property
    def _real(self) -> list[Entry]:
        return [entry for entry in self.entries if not entry.image.shadow_checkpoint]

    def pick(self, image: Image, kind: Kind) -> tuple[Entry, ...]:
        """Return the way from `image` to the end of the list, or nothing when there is none."""
        last = 2 if kind is Kind.PENULTIMATE else 1
        if len(self._real) < last:
            return ()
        target = self._real[-last]
        if image.level > target.image.requires_checkpoint:
            return ()
        if kind is Kind.STANDARD and not is_below(image, target.image, fourth_number=self._fourth_number):
            return ()
        # The way depends on the device's level only.
        key = (Kind.PENULTIMATE if last == 2 else Kind.STANDARD, image.level)
        way = self._ways.get(key)
        if way is None:
            way = self._ways[key] = self._way(target, image.level)
        if kind in (Kind.STANDARD, Kind.FORCED) and any(is_same(entry.image, image) for entry in way):
            return ()
        return way

    def _way(self, target: Entry, level: int) -> tuple[Entry, ...]:
        way: list[Entry] = []
        for entry in self.entries:
            image = entry.image
            if image.introduces_checkpoint <= 0 or image.branch != target.image.branch:
                continue
            if not is_below(image, target.image, fourth_number=self._fourth_number):
                continue
            if level == image.requires_checkpoint <= target.image.requires_checkpoint:
                level = image.introduces_checkpoint
                if not image.shadow_checkpoint:
                    way.append(entry)
        if level != target.image.requires_checkpoint:
            return ()
        return (*way, target)


def with_known_facts(image: Image, catalogue_image: Image | None) -> Image:
    """Return `image` as a device describes it, withdrawn when the pool says so."""
    if catalogue_image is None or not catalogue_image.skip or image.skip:
        return image
    return msgspec.structs.replace(image, skip=True)
