"""Which of the images found in a pool count, by the server's configuration; everything else is named with its reason.

Under strict compatibility a single problem makes the whole pool unusable, as in the servers before; otherwise the
good images stay.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from overhaul.dialects.atomupd.manifest import Image
from overhaul.dialects.atomupd.pool import BUNDLE_SUFFIX, FoundImage, FoundPool
from overhaul.dialects.atomupd.server_configuration import Support
from overhaul.errors import OperatorError

#: Product, architecture, release, variant and branch; the last is empty under the seed rules.
ListKey = tuple[str, str, str, str, str]


class UnusablePoolError(OperatorError):
    """A pool that cannot be served as a whole; `problems` are sentences that name the files."""

    exit_code = 1

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"The image pool cannot be used: {problems[0]}{more}.")


@dataclass(frozen=True, eq=False, slots=True)
class Entry:
    """One image of the pool. Each is equal only to itself."""

    image: Image
    #: Empty for shadow checkpoints.
    update_path: str
    #: Where it lies in the pool, without suffix.
    stem: str = ""
    chunks_store_path: str = ""
    has_details: bool = False


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The images that count."""

    support: Support
    #: All of them, in the order of the walk; skipped ones too.
    recorded: tuple[Entry, ...]
    #: Those that may be offered or lead the way, in the order of the walk.
    lists: dict[ListKey, tuple[Entry, ...]]
    #: What is wrong, by name.
    problems: tuple[str, ...] = ()
    #: What is strange, but no reason to leave anything out.
    warnings: tuple[str, ...] = ()

    def without(self, hidden: frozenset[Entry]) -> "Catalogue":
        """Return the catalogue of a device that may not have the `hidden` images."""
        return Catalogue(
            support=self.support,
            recorded=self.recorded,
            lists={key: tuple(one for one in entries if one not in hidden) for key, entries in self.lists.items()},
        )


def list_key(image: Image) -> ListKey:
    """Return the list an image belongs to."""
    return image.product, image.arch, image.release, image.variant, image.branch


def make_catalogue(found: FoundPool, support: Support) -> Catalogue:
    """Return the images of `found` that count.

    Raises:
        UnusablePoolError: Strict compatibility is asked for, and something is wrong.
    """
    problems = list(found.problems)
    warnings = [f"{one.manifest} has the unknown field {name!r}" for one in found.images for name in one.unknown_fields]
    if support.has_branches:
        entries = _with_branches(found, support, problems, warnings)
        if support.strict_compatibility and problems:
            raise UnusablePoolError(tuple(problems))
    else:
        entries = tuple(_seed(found, support, problems))
    return assemble(entries, support, problems=problems, warnings=warnings)


def assemble(
    entries: Iterable[Entry], support: Support, *, problems: Iterable[str] = (), warnings: Iterable[str] = ()
) -> Catalogue:
    """Return the catalogue of `entries`, which are taken as they are."""
    recorded = tuple(entries)
    lists: dict[ListKey, list[Entry]] = {}
    for entry in recorded:
        if not entry.image.skip:
            lists.setdefault(list_key(entry.image), []).append(entry)
    return Catalogue(
        support=support,
        recorded=recorded,
        lists={key: tuple(listed) for key, listed in lists.items()},
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def is_supported(image: Image, support: Support) -> bool:
    """Whether the configuration lists everything the image is."""
    return (
        image.product in support.products
        and image.release in support.releases
        and image.variant in support.variants
        and image.arch in support.archs
        and (not support.has_branches or image.branch in support.branches)
    )


def _with_branches(found: FoundPool, support: Support, problems: list[str], warnings: list[str]) -> tuple[Entry, ...]:
    strict = support.strict_compatibility
    seen: dict[tuple[object, ...], str] = {}
    checkpoints: dict[tuple[object, ...], str] = {}
    entries: list[Entry] = []
    for one in found.images:
        image = one.image
        if image is None:
            problems.append(f"{one.manifest}: {one.problem}")
            continue
        identity: tuple[object, ...] = (image.version.text, image.release, image.build_id)
        if not strict:
            identity += (image.product, image.arch, image.shown_variant, image.branch)
        reason = "" if image.skip or image.shadow_checkpoint else _what_is_missing(one)
        if not reason and (first := seen.setdefault(identity, one.manifest)) != one.manifest:
            reason = f"it has the same version and build id as {first}"
        if reason:
            problems.append(f"{one.manifest}: {reason}")
            continue
        if not image.skip and (not is_supported(image, support) or not (image.version.is_stable or support.unstable)):
            continue
        reason = _checkpoint_problem(image, one.manifest, checkpoints, strict=strict)
        if reason:
            problems.append(f"{one.manifest}: {reason}")
            continue
        # Nobody whom the configuration leaves out asks for a skipped image's answers; strictly they are written.
        if image.skip and not strict and not is_supported(image, support):
            continue
        path = "" if image.shadow_checkpoint else one.stem + BUNDLE_SUFFIX
        entries.append(Entry(image, path, one.stem, has_details=one.has_details))
    _warn_of_retired(entries, warnings)
    return tuple(entries)


def _what_is_missing(one: FoundImage) -> str:
    if not one.has_bundle:
        return "there is no bundle (.raucb) beside it"
    return "" if one.has_store else "there is no chunk store (.castr) beside it"


def _checkpoint_problem(image: Image, manifest: str, known: dict[tuple[object, ...], str], *, strict: bool) -> str:
    number = image.introduces_checkpoint
    if image.shadow_checkpoint and number < 1:
        return "it is a shadow checkpoint without the number of the checkpoint it introduces"
    if image.shadow_checkpoint and image.skip:
        return "it is a shadow checkpoint and is skipped, which contradict each other"
    if 0 < number <= image.requires_checkpoint:
        return f"it introduces checkpoint {number} and requires {image.requires_checkpoint}, which is not below"
    if number < 1 or image.skip:
        return ""
    place: tuple[object, ...] = (image.shadow_checkpoint, number, image.variant, image.branch)
    if not strict:
        place += (image.product, image.arch, image.release)
    first = known.setdefault(place, manifest)
    kind = "shadow checkpoint" if image.shadow_checkpoint else "checkpoint"
    return f"{first} introduces {kind} {number} too" if first != manifest else ""


def _warn_of_retired(entries: list[Entry], warnings: list[str]) -> None:
    live = {
        (entry.image.variant, entry.image.branch, entry.image.introduces_checkpoint)
        for entry in entries
        if not entry.image.skip and not entry.image.shadow_checkpoint
    }
    for entry in entries:
        image = entry.image
        place = (image.variant, image.branch, image.introduces_checkpoint)
        if image.skip and image.introduces_checkpoint > 0 and place not in live:
            warnings.append(
                f"{entry.stem}: checkpoint {image.introduces_checkpoint} is skipped, and no other image introduces it"
            )


def _seed(found: FoundPool, support: Support, problems: list[str]) -> Iterator[Entry]:
    for one in found.images:
        image = one.image
        if image is None:
            problems.append(f"{one.manifest}: {one.problem}")
            continue
        if not (one.has_bundle and one.has_store) or image.version.is_snapshot != support.snapshots:
            continue
        if not is_supported(image, support) or (support.unstable is False and not image.version.is_stable):
            continue
        yield Entry(image, one.stem + BUNDLE_SUFFIX, one.stem, has_details=one.has_details)
