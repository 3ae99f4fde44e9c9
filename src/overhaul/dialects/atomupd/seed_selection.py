"""Which images a device is offered under the seed rules: boolean checkpoints, one release and the next.

Of the images newer than the device's, every checkpoint and the newest are offered, in the device's own release
(`minor`) and in the one that follows it in the configuration (`major`).
"""

from collections.abc import Sequence
from operator import attrgetter

from overhaul.dialects.atomupd.candidates import NO_UPDATE, Candidate, Update, UpdatePath
from overhaul.dialects.atomupd.catalogue import Catalogue, Entry
from overhaul.dialects.atomupd.manifest import Image
from overhaul.dialects.atomupd.ordering import is_below_seed


class SeedSelection:
    """Answers questions about one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._support = catalogue.support
        self._lists = {key: _sorted(entries) for key, entries in catalogue.lists.items()}

    def answer(self, image: Image, *, wants_unstable: bool) -> Update:
        """Return what a device on `image` is offered; its wish counts where the configuration leaves it to clients."""
        if image.version.is_snapshot != self._support.snapshots:
            return NO_UPDATE
        only_stable = self._support.unstable is None and not wants_unstable and not image.version.is_snapshot
        minor = self._path(image, image.release, only_stable=only_stable)
        major = None
        releases = self._support.releases
        if image.release in releases[:-1]:
            following = releases[releases.index(image.release) + 1]
            major = self._path(image, following, only_stable=only_stable)
        return Update(minor=minor, major=major)

    def _path(self, image: Image, release: str, *, only_stable: bool) -> UpdatePath | None:
        listed = self._lists.get((image.product, image.arch, release, image.variant, ""), ())
        newer = [
            entry
            for entry in listed
            if is_below_seed(image, entry.image) and (not only_stable or entry.image.version.is_stable)
        ]
        if not newer:
            return None
        offered = [entry for entry in newer[:-1] if entry.image.checkpoint]
        candidates = tuple(
            Candidate(image=entry.image, update_path=entry.update_path) for entry in (*offered, newer[-1])
        )
        return UpdatePath(release=release, candidates=candidates)


def _sorted(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    if entries and entries[0].image.version.is_snapshot:
        return tuple(sorted(entries, key=lambda entry: (entry.image.release, entry.image.build_id)))
    return tuple(sorted(entries, key=attrgetter("image.version.precedence")))
