"""What the JSON interface and the status page show: plain records made from a catalogue at a given time. Pure."""

from enum import StrEnum

import msgspec

from overhaul.policy.document import Policy, PolicyEntry
from overhaul.policy.hardware import facts_asked
from overhaul.release.record import Release
from overhaul.server.catalogue import Catalogue


class EntryState(StrEnum):
    """Where a release stands in a channel."""

    OPEN = "open"
    ROLLING_OUT = "rolling-out"
    PAUSED = "paused"
    RECALLED = "recalled"


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """From a time on, the part of the devices that a release is open to."""

    since: int
    percent: float


class RecallView(msgspec.Struct, frozen=True, kw_only=True):
    """Why and since when a release is not offered any more."""

    reason: str
    since: int
    allow_lower: bool
    replaced_by: tuple[str, str] | None


class EntryView(msgspec.Struct, frozen=True, kw_only=True):
    """One release in a channel."""

    variant: str
    arch: str
    version: str
    build_id: str
    state: EntryState
    #: The part of the devices it is open to now.
    percent: float
    #: The steps still to come.
    steps: tuple[StepView, ...]
    checkpoint: bool
    urgent: bool
    requires: str | None
    #: Names of the hardware facts that decide which devices it is meant for.
    hardware: tuple[str, ...]
    recall: RecallView | None
    #: Why the rollout was halted by what devices reported; empty when it was not.
    halted: str
    notes_url: str


class FloorView(msgspec.Struct, frozen=True, kw_only=True):
    """The lower bounds of one variant and arch."""

    variant: str
    arch: str
    support: str | None
    minimum: str | None


class ChannelView(msgspec.Struct, frozen=True, kw_only=True):
    """One channel of one product."""

    product: str
    channel: str
    revision: int
    signed_at: int
    floors: tuple[FloorView, ...]
    #: The newest first within a variant and arch.
    entries: tuple[EntryView, ...]


class DeltaView(msgspec.Struct, frozen=True, kw_only=True):
    """A way from an older release to this one."""

    source_version: str
    source_build_id: str
    size: int


class ReleaseView(msgspec.Struct, frozen=True, kw_only=True):
    """One published release."""

    product: str
    variant: str
    arch: str
    version: str
    build_id: str
    published_at: int
    channels: tuple[str, ...]
    recalled_in: tuple[str, ...]
    checkpoint: bool
    filesystem: str
    image_size: int
    #: Size of the pack made for this release: what it added to the repository.
    pack_size: int
    deltas: tuple[DeltaView, ...]
    notes: str


def channel_views(catalogue: Catalogue, *, now: int) -> tuple[ChannelView, ...]:
    """Return every channel as it stands at `now`."""
    return tuple(_channel(policy, now) for policy in catalogue.policies)


def release_views(catalogue: Catalogue) -> tuple[ReleaseView, ...]:
    """Return every release, with the channels that list it."""
    return tuple(_release(catalogue, release) for release in catalogue.releases)


def _channel(policy: Policy, now: int) -> ChannelView:
    groups = sorted({(entry.variant, entry.arch) for entry in policy.entries})
    return ChannelView(
        product=policy.product,
        channel=policy.channel,
        revision=policy.revision,
        signed_at=policy.signed_at,
        floors=tuple(
            FloorView(variant=floor.variant, arch=floor.arch, support=floor.support, minimum=floor.minimum)
            for floor in policy.floors
        ),
        entries=tuple(
            _entry(entry, now) for variant, arch in groups for entry in policy.entries_for(variant=variant, arch=arch)
        ),
    )


def _entry(entry: PolicyEntry, now: int) -> EntryView:
    percent = 100.0 if entry.rollout is None else entry.rollout.percent_at(now)
    coming = () if entry.rollout is None else entry.rollout.steps
    recall = entry.recall
    if recall is not None:
        state = EntryState.RECALLED
    elif percent >= 100:
        state = EntryState.OPEN
    else:
        state = EntryState.ROLLING_OUT if percent > 0 else EntryState.PAUSED
    return EntryView(
        variant=entry.variant,
        arch=entry.arch,
        version=entry.version,
        build_id=entry.build_id,
        state=state,
        percent=0.0 if recall is not None else percent,
        steps=tuple(StepView(since=step.since, percent=step.percent) for step in coming if step.since > now),
        checkpoint=entry.checkpoint,
        urgent=entry.urgent,
        requires=entry.requires,
        hardware=() if entry.hardware is None else facts_asked(entry.hardware),
        recall=None
        if recall is None
        else RecallView(
            reason=recall.reason,
            since=recall.since,
            allow_lower=recall.allow_lower,
            replaced_by=recall.replaced_by,
        ),
        halted="" if entry.rollout is None else entry.rollout.halted,
        notes_url=entry.notes_url,
    )


def _release(catalogue: Catalogue, release: Release) -> ReleaseView:
    listed = {
        policy.channel: entry
        for policy in catalogue.policies
        if policy.product == release.id.product and (entry := policy.entry(release.id)) is not None
    }
    return ReleaseView(
        product=release.id.product,
        variant=release.id.variant,
        arch=release.id.arch,
        version=release.id.version,
        build_id=release.id.build_id,
        published_at=release.published_at,
        channels=tuple(listed),
        recalled_in=tuple(channel for channel, entry in listed.items() if entry.recall is not None),
        checkpoint=release.checkpoint or any(entry.checkpoint for entry in listed.values()),
        filesystem=release.image.filesystem,
        image_size=release.image.size,
        pack_size=release.image.own_pack_bytes,
        deltas=tuple(
            DeltaView(source_version=delta.source_version, source_build_id=delta.source_build_id, size=delta.file.size)
            for delta in release.image.deltas
        ),
        notes=release.notes,
    )
