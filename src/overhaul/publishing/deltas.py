"""Which older releases get a delta to a new one, and the making of it."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.index import read_index
from overhaul.content.readback import is_zero_chunk
from overhaul.errors import InputError
from overhaul.policy.document import Policy
from overhaul.progress import Progress
from overhaul.publishing.content import StoredImage
from overhaul.publishing.delta_reports import write_delta_report
from overhaul.release.names import check_token
from overhaul.release.record import DeltaRef, Release, ReleaseId
from overhaul.release.versions import release_order_key
from overhaul.repository.layout import ContentKind, content_ref, public_key
from overhaul.repository.packs import places_in, read_checked, restore_image
from overhaul.repository.storage import Storage


class UnknownSourceError(InputError):
    """A release to make a delta from that is not published."""

    def __init__(self, *, wanted: str, known: Sequence[ReleaseId]) -> None:
        self.wanted = wanted
        self.known = tuple(known)
        listed = ", ".join(f"{one.version}/{one.build_id}" for one in known) or "none"
        super().__init__(
            f"There is no older release {wanted!r} of this variant and arch to make a delta from (there are: "
            f"{listed}); name one as VERSION or VERSION/BUILD."
        )


@dataclass(frozen=True, kw_only=True)
class MadeDeltaReport:
    """A delta that was made and stored."""

    source: ReleaseId
    #: What a device fetches that can pack again every file that can be.
    size: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SkippedDelta:
    """A delta that was not made, and why."""

    source: ReleaseId
    reason: str


def named_sources(releases: Iterable[Release], target: ReleaseId, names: Iterable[str]) -> list[Release]:
    """Return the releases of the target's variant and arch that `names` (VERSION or VERSION/BUILD) mean.

    Raises:
        UnknownSourceError: A name means none.
    """
    same = _same_line(releases, target)
    found: dict[ReleaseId, Release] = {}
    for name in names:
        version, slash, build_id = name.partition("/")
        check_token("version", version)
        matching = [one for one in same if one.id.version == version and (not slash or one.id.build_id == build_id)]
        if not matching:
            raise UnknownSourceError(wanted=name, known=[one.id for one in same])
        found.update({one.id: one for one in matching})
    return list(found.values())


def latest_sources(releases: Iterable[Release], target: ReleaseId, policy: Policy, *, count: int) -> list[Release]:
    """Return the newest releases older than `target` that the channel holds, the newest first.

    `count` of them are not recalled, since that is what devices run or go back to. Of the recalled ones between them,
    which some devices run as well, there are at most as many.
    """
    order = release_order_key(target.version, target.build_id)
    is_recalled = {entry.release_id(policy.product): entry.recall is not None for entry in policy.entries}
    left = {False: count, True: count}
    found: list[Release] = []
    for one in _same_line(releases, target):
        if not left[False]:
            break
        if one.id not in is_recalled or release_order_key(one.id.version, one.id.build_id) >= order:
            continue
        if left[is_recalled[one.id]]:
            left[is_recalled[one.id]] -= 1
            found.append(one)
    return found


def store_delta(
    storage: Storage,
    *,
    source: Release,
    image: Path,
    stored: StoredImage,
    work: Path,
    workers: int,
    progress: Progress,
) -> tuple[DeltaRef, MadeDeltaReport]:
    """Make the delta from `source` to `image`, whose chunks are `stored`, and store it.

    Raises:
        UnsuitableImageError: One of the images is of a kind no delta can be made for.
    """
    from overhaul.content.delta.make import make_delta

    begun = time.monotonic()
    old = work / f"source-{source.image.index.sha256[:16]}.img"
    made_file = work / "new.delta"
    try:
        restore_image(storage, source.image, old, progress=progress)
        made = make_delta(old, image, made_file, workers=workers, progress=progress)
        ref = content_ref(ContentKind.DELTA, sha256=made.sha256, size=made.size)
        storage.put_file(public_key(ref.path), made_file)
        write_delta_report(storage, made)
    finally:
        old.unlink(missing_ok=True)
        made_file.unlink(missing_ok=True)
    delta = DeltaRef(
        source_index=source.image.index.sha256,
        source_version=source.id.version,
        source_build_id=source.id.build_id,
        file=ref,
        header_size=made.header_size,
        header_sha256=made.header_sha256,
        coders=tuple(made.coders),
        rebuilds=made.rebuilds,
        written_size=made.written_size,
        chunks_size=_chunks_size(storage, source, stored),
    )
    smallest = delta.fetched_size(range(len(delta.rebuilds)))
    return delta, MadeDeltaReport(source=source.id, size=smallest, seconds=time.monotonic() - begun)


def _chunks_size(storage: Storage, source: Release, stored: StoredImage) -> int:
    held = {chunk.id for chunk in read_index(read_checked(storage, source.image.index))}
    wanted = {chunk.id for chunk in read_index(read_checked(storage, stored.index)) if not is_zero_chunk(chunk)}
    places = places_in(storage, stored.packs)
    return sum(places[identity].frame.size for identity in wanted - held)


def _same_line(releases: Iterable[Release], target: ReleaseId) -> list[Release]:
    """Return the other releases of the target's variant and arch, the newest first."""
    same = [
        one
        for one in releases
        if (one.id.product, one.id.variant, one.id.arch) == (target.product, target.variant, target.arch)
        and one.id != target
    ]
    return sorted(same, key=lambda one: release_order_key(one.id.version, one.id.build_id), reverse=True)


__all__ = [
    "MadeDeltaReport",
    "SkippedDelta",
    "UnknownSourceError",
    "UnsuitableImageError",
    "latest_sources",
    "named_sources",
    "store_delta",
]
