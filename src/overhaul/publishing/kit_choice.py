"""Which releases a kit must carry, so that every device it is for finds in it what the policy offers.

Nothing is chosen here: the channel's own policy is asked, as a device would, from every release that a device may
come from, and what it could offer is followed to the end (checkpoints are stops on the way). An entry that only some
devices get (a rollout that is not open to all, hardware rules) is taken along with what the others get instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from overhaul.errors import InputError
from overhaul.policy.document import Policy, PolicyEntry
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.selection import Offer, decide
from overhaul.release.record import Release, ReleaseId
from overhaul.repository.signed import Published


class NothingToCarryError(InputError):
    """No device that the kit should be for would be offered anything."""

    def __init__(self, *, product: str, channel: str, asked: str) -> None:
        self.product = product
        self.channel = channel
        super().__init__(
            f"Channel {channel} of {product} offers nothing to {asked}; see `overhaul channel list` and name other "
            "sources."
        )


@dataclass(frozen=True, kw_only=True)
class KitRequest:
    """What a kit is for; None and empty mean any."""

    product: str
    channel: str
    variant: str | None = None
    arch: str | None = None
    #: VERSION or VERSION/BUILD of releases that devices run.
    sources: tuple[str, ...] = ()
    #: Take the packs along although there are deltas: a device whose slot is damaged can finish then.
    with_packs: bool = False
    #: Take along what mends a few wrong blocks of a slot, where it was made; a third of what packs take.
    with_mends: bool = False
    #: Sign again, so that devices take the kit for this long.
    valid_days: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a kit carries: the releases, and which may come from which."""

    releases: tuple[Release, ...]
    sources: tuple[Release, ...]
    #: (from, to); from is None for a device whose release is not published.
    steps: tuple[tuple[Release | None, Release], ...]


def choose_releases(published: Published, policy: Policy, request: KitRequest, *, now: int) -> Chosen:
    """Return what a kit for `request` carries.

    Raises:
        NothingToCarryError: A source is unknown, or nothing is offered to any of these devices.
    """
    lines = sorted(
        {
            (entry.variant, entry.arch)
            for entry in policy.entries
            if request.variant in {None, entry.variant} and request.arch in {None, entry.arch}
        }
    )
    sources: dict[ReleaseId, Release] = {}
    steps: dict[tuple[ReleaseId | None, ReleaseId], tuple[Release | None, Release]] = {}
    for variant, arch in lines:
        line = [
            release
            for release in published.releases.values()
            if (release.id.product, release.id.variant, release.id.arch) == (policy.product, variant, arch)
        ]
        starts = [release for release in line if _is_named(release.id, request.sources)]
        sources.update({release.id: release for release in starts})
        begin: list[Release | None] = [*(starts if request.sources else line)]
        if not request.sources:
            begin.append(None)
        _walk(published, policy, begin, variant=variant, arch=arch, now=now, steps=steps)
    named = {text for text in request.sources if any(_is_named(one, (text,)) for one in sources)}
    missing = [text for text in request.sources if text not in named]
    if missing or not steps:
        raise NothingToCarryError(
            product=request.product, channel=request.channel, asked=", ".join(missing) or "these devices"
        )
    releases = {to.id: to for _from, to in steps.values()}
    return Chosen(
        releases=tuple(releases.values()),
        sources=tuple(sources.values()) if request.sources else (),
        steps=tuple(steps.values()),
    )


def _is_named(release: ReleaseId, names: Sequence[str]) -> bool:
    return any(name in {release.version, f"{release.version}/{release.build_id}"} for name in names)


def _walk(
    published: Published,
    policy: Policy,
    begin: Sequence[Release | None],
    *,
    variant: str,
    arch: str,
    now: int,
    steps: dict[tuple[ReleaseId | None, ReleaseId], tuple[Release | None, Release]],
) -> None:
    """Follow what the policy could offer, from each of `begin` to where nothing newer is offered."""
    waiting = list(begin)
    seen: set[ReleaseId | None] = set()
    while waiting:
        running = waiting.pop()
        identity = None if running is None else running.id
        if identity in seen:
            continue
        seen.add(identity)
        for entry in _could_offer(policy, identity, variant=variant, arch=arch, now=now):
            release = published.release(entry.release_id(policy.product))
            if release is None:
                continue
            steps[identity, release.id] = (running, release)
            waiting.append(release)


def _could_offer(
    policy: Policy, running: ReleaseId | None, *, variant: str, arch: str, now: int
) -> Iterator[PolicyEntry]:
    """Yield each entry that some device on `running` is offered, whatever its place in rollouts and its hardware."""
    original = {(entry.version, entry.build_id): entry for entry in policy.entries_for(variant=variant, arch=arch)}
    opened = msgspec.structs.replace(
        policy,
        entries=tuple(msgspec.structs.replace(entry, rollout=None, hardware=None) for entry in policy.entries),
    )
    facts = DeviceFacts(
        product=policy.product,
        variant=variant,
        arch=arch,
        channel=policy.channel,
        version="0" if running is None else running.version,
        build_id="0" if running is None else running.build_id,
        rollout_id="kit",
    )
    while isinstance(decision := decide(opened, facts, now), Offer):
        entry = original[decision.entry.version, decision.entry.build_id]
        yield entry
        if entry.hardware is None and (entry.rollout is None or entry.rollout.percent_at(now) >= 100):
            return
        # Refused, and not taken out: a checkpoint that some devices pass bars the way of the others.
        facts = msgspec.structs.replace(facts, refused=(*facts.refused, (entry.version, entry.build_id)))
