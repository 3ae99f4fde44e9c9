"""What a repository no longer needs, and why it needs the rest.

A release is kept when a channel lists it, when it is a checkpoint, or when its version is at or above the support
floor of a channel, because devices may run it. Any other release leaves the product's signed record. Files that
nothing signed names, and no unfinished publish, are not removed at once: a device may still follow an answer it
got before. They are noted in `private/unreferenced.json` with the time at which they were first seen so, and
removed when the grace period is over.

Pruning holds the repository's lock, and does nothing at all when any signed file is missing or wrong, because then
it cannot know what is needed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from overhaul.policy.document import Policy
from overhaul.release.record import Release, ReleaseId
from overhaul.release.versions import Version, release_order_key
from overhaul.repository.casync import casync_chunks, casync_index
from overhaul.repository.journal import Journal
from overhaul.repository.layout import PUBLIC, UNREFERENCED_KEY, files_of, own_files
from overhaul.repository.signed import SignedChange, check_trusted, read_published
from overhaul.repository.storage import MissingObjectError, Storage, StoredObject

_DAY_SECONDS = 86400.0


class Need(StrEnum):
    """Why a release is kept."""

    LISTED = "a channel lists it"
    CHECKPOINT = "it is a checkpoint"
    SUPPORTED = "devices at or above the support floor may run it"
    NO_FLOOR = "no channel sets a support floor above it"


@dataclass(frozen=True, kw_only=True)
class KeptRelease:
    """A release that stays."""

    release: ReleaseId
    need: Need
    channels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class WaitingFile:
    """A file that nothing names any more and that is removed once its grace period is over."""

    path: str
    size: int
    #: Seconds since 1970 UTC.
    removed_after: float


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What was, or with a dry run would be, done."""

    kept: tuple[KeptRelease, ...]
    dropped: tuple[ReleaseId, ...]
    #: Releases nobody needs that stay because the keys to sign their removal are not here.
    unsigned: tuple[ReleaseId, ...]
    removed: tuple[StoredObject, ...]
    waiting: tuple[WaitingFile, ...]
    #: Dead publishes that were forgotten.
    forgotten: tuple[ReleaseId, ...]
    dry_run: bool

    @property
    def freed_bytes(self) -> int:
        """Bytes of the removed files."""
        return sum(one.size for one in self.removed)


def need_of(release: Release, policies: Iterable[Policy]) -> KeptRelease | None:
    """Return why `release` is needed under the policies of its product, or None when nobody needs it."""
    identity = release.id
    held = [policy for policy in policies if policy.product == identity.product]
    listing = tuple(sorted(policy.channel for policy in held if policy.entry(identity) is not None))
    if listing:
        return KeptRelease(release=identity, need=Need.LISTED, channels=listing)
    if release.checkpoint:
        return KeptRelease(release=identity, need=Need.CHECKPOINT, channels=())
    supporting: list[str] = []
    floors = 0
    for policy in held:
        support = policy.floor(variant=identity.variant, arch=identity.arch).support
        if support is None and not policy.entries_for(variant=identity.variant, arch=identity.arch):
            continue
        floors += support is not None
        if support is None or Version(identity.version) >= Version(support):
            supporting.append(policy.channel)
    if supporting:
        return KeptRelease(release=identity, need=Need.SUPPORTED, channels=tuple(sorted(supporting)))
    if not floors:
        return KeptRelease(release=identity, need=Need.NO_FLOOR, channels=())
    return None


def prune(
    change: SignedChange, *, now: float, grace_days: float, can_drop: Callable[[str], bool], dry_run: bool
) -> PruneReport:
    """Drop releases nobody needs, and remove files whose grace period is over.

    `can_drop` tells whether the keys are here that sign the releases of a product; without them its releases are
    only kept. Call it under the lock.

    Raises:
        TrustError: A signed file is missing or wrong; nothing was removed.
    """
    storage = change.storage
    published = read_published(storage, now=change.now)
    check_trusted(published)
    needs = {one.id: need_of(one, published.policies.values()) for one in _in_order(published.releases.values())}
    unneeded = [identity for identity, need in needs.items() if need is None]
    dropped = [identity for identity in unneeded if can_drop(identity.product)]
    if dropped and not dry_run:
        for identity in dropped:
            change.editor.remove_target(identity.target_path)
        change.commit()
        published = read_published(storage, now=change.now)
        check_trusted(published)
    journal = Journal(storage)
    dead = [entry for entry in journal.entries() if now - entry.started_at > grace_days * _DAY_SECONDS]
    alive = [entry for entry in journal.entries() if entry not in dead]
    stored = own_files(storage.list_objects(PUBLIC))
    staying = [release for release in published.releases.values() if release.id not in dropped]
    needed = set(published.report.referenced) | {ref.path for entry in alive for ref in entry.files}
    for release in staying:
        needed |= {ref.path for ref in files_of(release)} | _casync_files(storage, release, stored)
    since = _unreferenced_since(storage, stored, needed, now=now)
    over = sorted(path for path, begun in since.items() if now - begun > grace_days * _DAY_SECONDS)
    waiting = {path: since[path] for path in since.keys() - set(over)}
    if not dry_run:
        _write_since(storage, since)
        for path in over:
            change.lock.check()
            storage.delete(stored[path].key)
        _write_since(storage, waiting)
        for entry in dead:
            journal.close(entry)
    return PruneReport(
        kept=tuple(need for need in needs.values() if need is not None),
        dropped=tuple(dropped),
        unsigned=tuple(identity for identity in unneeded if identity not in dropped),
        removed=tuple(stored[path] for path in over),
        waiting=tuple(
            WaitingFile(path=path, size=stored[path].size, removed_after=begun + grace_days * _DAY_SECONDS)
            for path, begun in sorted(waiting.items())
        ),
        forgotten=tuple(entry.release for entry in dead),
        dry_run=dry_run,
    )


def _in_order(releases: Iterable[Release]) -> list[Release]:
    return sorted(
        releases,
        key=lambda one: (
            one.id.product,
            one.id.variant,
            one.id.arch,
            release_order_key(one.id.version, one.id.build_id),
        ),
    )


def _casync_files(storage: Storage, release: Release, stored: Mapping[str, StoredObject]) -> set[str]:
    path = casync_index(release, stored)
    return set() if path is None else {path, *casync_chunks(storage, release)}


def _unreferenced_since(
    storage: Storage, stored: Mapping[str, StoredObject], needed: set[str], *, now: float
) -> dict[str, float]:
    """Return since when each file is known to be named by nothing; a file written later counts from then."""
    try:
        known = msgspec.json.decode(storage.read(UNREFERENCED_KEY), type=dict[str, float])
    except (MissingObjectError, msgspec.MsgspecError, UnicodeError, RecursionError):
        known = {}
    return {
        path: max(known[path], one.modified_at) if path in known else now
        for path, one in stored.items()
        if path not in needed
    }


def _write_since(storage: Storage, since: Mapping[str, float]) -> None:
    storage.put(UNREFERENCED_KEY, msgspec.json.encode(dict(sorted(since.items()))))
