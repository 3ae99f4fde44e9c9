"""The decision: what one device may move to now, and why not to anything else.

`decide` looks at every release of the device's variant and arch, from the newest to the oldest, and collects what
speaks against each. The answer is an offer of the newest release that nothing speaks against; else the device is
up to date, or it is on hold. The rules:

    direction    Only releases newer than the running one count. If the running one is recalled and the recall
                 allows it, older ones count as well; the newest that is free is still the one that is taken.
    recall       A recalled release is never offered.
    floor        Nothing below the minimum version is offered, nor below the highest the device was told before.
    hardware     The release's rules must be known to fit (see `policy.hardware`).
    rollout      The device's place must lie below the percentage of the moment (see `policy.rollout`).
    memory       A release that failed on this device is not offered to it again.
    origin       The running version must be at least the one the release requires.
    checkpoints  A checkpoint cannot be jumped over: while it lies between the running release and another, only
                 the checkpoint itself is open, or what lies below it. When the checkpoint cannot be taken (it is
                 recalled, not rolled out this far...), everything above waits. A recalled checkpoint may name
                 another that stands in for it: who has passed either has passed both. Nor is one crossed on the
                 way back, unless it is the running release itself and its recall allows to go back.

A device is up to date when every newer release is recalled or known not to be meant for its hardware, and its own
is not recalled; a hold always has a cause that a later policy, the clock or the device's owner can remove.

Every answer tells its reasons: first the answer itself, then each release of this variant and arch, newest first.
Nothing here reads a clock or keeps anything: equal arguments give equal answers, in whatever order the entries stand.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from overhaul.policy.checkpoints import Candidate, Checkpoint, checkpoints_among
from overhaul.policy.document import Floor, Policy, PolicyEntry, VersionAndBuild
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.hardware import Verdict, facts_asked, judge
from overhaul.policy.rollout import admits, as_utc, bucket
from overhaul.release.versions import ReleaseOrder, Version, release_order_key


class Cause(StrEnum):
    """What a reason is about."""

    OFFERED = "offered"
    UP_TO_DATE = "up_to_date"
    HELD = "held"
    RUNNING = "running"
    NOT_NEWER = "not_newer"
    SUPERSEDED = "superseded"
    RECALLED = "recalled"
    BELOW_FLOOR = "below_floor"
    HARDWARE = "hardware"
    HARDWARE_UNKNOWN = "hardware_unknown"
    ROLLOUT = "rollout"
    REFUSED = "refused"
    REQUIRES = "requires"
    CHECKPOINT = "checkpoint"
    OTHER_DEVICES = "other_devices"
    OTHER_POLICY = "other_policy"


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One link of the chain: what was found, of which release when it is about one."""

    cause: Cause
    text: str
    release: VersionAndBuild | None = None


class Offer(msgspec.Struct, frozen=True, kw_only=True, tag_field="decision", tag="offer"):
    """The device may install this release now."""

    entry: PolicyEntry
    #: It is older than the running release; only a recall that allows it leads here.
    goes_back: bool
    reasons: tuple[Reason, ...]


class Hold(msgspec.Struct, frozen=True, kw_only=True, tag_field="decision", tag="hold"):
    """There is something for the device, but it must wait."""

    reasons: tuple[Reason, ...]


class UpToDate(msgspec.Struct, frozen=True, kw_only=True, tag_field="decision", tag="up_to_date"):
    """There is nothing newer for the device."""

    reasons: tuple[Reason, ...]


Decision = Offer | Hold | UpToDate


def decide(policy: Policy, facts: DeviceFacts, now: int) -> Decision:
    """Return what the device may do at `now`, in seconds since 1970 UTC, with all reasons."""
    if (policy.product, policy.channel) != (facts.product, facts.channel):
        return Hold(reasons=(_other_policy(policy, facts),))
    candidates = tuple(map(Candidate.of, policy.entries_for(variant=facts.variant, arch=facts.arch)))
    situation = _Situation.of(candidates, facts, policy.floor(variant=facts.variant, arch=facts.arch), now)
    found = [_Found(candidate, tuple(_against(candidate, situation))) for candidate in candidates]
    chosen = next((each for each in found if not each.reasons), None)
    chain = _chain(found, chosen, others=len(policy.entries) - len(candidates))
    if chosen is not None:
        goes_back = chosen.candidate.order < situation.running
        return Offer(
            entry=chosen.candidate.entry,
            goes_back=goes_back,
            reasons=(_offered(chosen.candidate.entry, facts, goes_back=goes_back), *chain),
        )
    return _without_offer(found, situation, chain)


@dataclass(frozen=True)
class _Found:
    """A candidate and what speaks against it."""

    candidate: Candidate
    reasons: tuple[Reason, ...]

    @property
    def causes(self) -> frozenset[Cause]:
        return frozenset(reason.cause for reason in self.reasons)

    @property
    def may_open(self) -> bool:
        """Whether it can still become open: it is neither recalled nor known to be for other hardware."""
        return not self.causes & {Cause.RECALLED, Cause.HARDWARE}


@dataclass(frozen=True)
class _Situation:
    """The device among the candidates, worked out once."""

    facts: DeviceFacts
    now: int
    running: ReleaseOrder
    running_entry: PolicyEntry | None
    #: The running release is recalled, and the recall allows older ones.
    may_go_back: bool
    minimum: str | None
    refused: frozenset[ReleaseOrder]
    #: Checkpoints above the running release that it has not passed, and those at or below it that it may not leave
    #: downwards; the oldest first.
    ahead: tuple[Checkpoint, ...]
    behind: tuple[Checkpoint, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], facts: DeviceFacts, floor: Floor, now: int) -> "_Situation":
        running = release_order_key(facts.version, facts.build_id)
        same = next((candidate.entry for candidate in candidates if candidate.order == running), None)
        may_go_back = same is not None and same.recall is not None and same.recall.allow_lower
        checkpoints = checkpoints_among(candidates)
        return cls(
            facts=facts,
            now=now,
            running=running,
            running_entry=same,
            may_go_back=may_go_back,
            minimum=max(
                (minimum for minimum in (floor.minimum, facts.minimum) if minimum is not None),
                key=Version,
                default=None,
            ),
            refused=frozenset(release_order_key(*refused) for refused in facts.refused),
            ahead=tuple(
                each for each in checkpoints if each.candidate.order > running and not each.is_passed_at(running)
            ),
            behind=tuple(
                each
                for each in checkpoints
                if each.candidate.order < running or (each.candidate.order == running and not may_go_back)
            ),
        )

    @property
    def running_name(self) -> str:
        return f"{self.facts.version} ({self.facts.build_id})"

    @property
    def is_recalled(self) -> bool:
        return self.running_entry is not None and self.running_entry.recall is not None


def _against(candidate: Candidate, situation: _Situation) -> Iterator[Reason]:
    """Yield all that speaks against moving to `candidate`."""
    entry = candidate.entry
    if candidate.order == situation.running:
        recalled = f" and was recalled: {entry.recall.sentence_end}" if entry.recall else ""
        yield _reason(Cause.RUNNING, candidate, f"{entry.name} is what the device runs{recalled}.")
        return
    if candidate.order < situation.running and not situation.may_go_back:
        yield _reason(Cause.NOT_NEWER, candidate, f"{entry.name} is older than the running {situation.running_name}.")
        return
    if entry.recall is not None:
        yield _reason(Cause.RECALLED, candidate, f"{entry.name} was recalled: {entry.recall.sentence_end}.")
    if situation.minimum is not None and Version(entry.version) < Version(situation.minimum):
        yield _reason(
            Cause.BELOW_FLOOR, candidate, f"{entry.name} is below the lowest version to install, {situation.minimum}."
        )
    yield from _against_hardware(candidate, situation.facts)
    yield from _against_rollout(candidate, situation)
    if candidate.order in situation.refused:
        yield _reason(Cause.REFUSED, candidate, f"{entry.name} failed on this device before and was rolled back.")
    if entry.requires is not None and situation.running[0] < Version(entry.requires):
        yield _reason(
            Cause.REQUIRES,
            candidate,
            f"{entry.name} can be reached from version {entry.requires} on, and the device runs "
            f"{situation.facts.version}.",
        )
    yield from _against_checkpoints(candidate, situation)


def _against_hardware(candidate: Candidate, facts: DeviceFacts) -> Iterator[Reason]:
    rules = candidate.entry.hardware
    verdict = judge(rules, facts.hardware)
    if rules is None or verdict is Verdict.MEANT:
        return
    asked = facts_asked(rules)
    known = ", ".join(f"{fact}={facts.hardware[fact]}" for fact in asked if fact in facts.hardware) or "nothing"
    if verdict is Verdict.EXCLUDED:
        text = (
            f"{candidate.entry.name} is not meant for this hardware (it asks for {', '.join(asked)}; known: {known})."
        )
        yield _reason(Cause.HARDWARE, candidate, text)
    else:
        text = (
            f"{candidate.entry.name} may not be meant for this hardware: it asks for {', '.join(asked)}, and the "
            f"device knows {known}."
        )
        yield _reason(Cause.HARDWARE_UNKNOWN, candidate, text)


def _against_rollout(candidate: Candidate, situation: _Situation) -> Iterator[Reason]:
    rollout = candidate.entry.rollout
    if rollout is None:
        return
    percent = rollout.percent_at(situation.now)
    place = bucket(rollout_id=situation.facts.rollout_id, seed=rollout_seed(situation.facts.product, candidate.entry))
    if admits(percent=percent, place=place):
        return
    if rollout.halted:
        yield _reason(Cause.ROLLOUT, candidate, f"{candidate.entry.name} was halted: {rollout.halted}.")
        return
    opens_at = rollout.opens_at(place)
    turn = f"; its turn comes at {as_utc(opens_at)}" if opens_at is not None else ""
    share = f"{candidate.entry.name} is open to {percent:g} % of the devices"
    yield _reason(Cause.ROLLOUT, candidate, f"{share}; this one's place is {place * 100:.2f} %{turn}.")


def rollout_seed(product: str, entry: PolicyEntry) -> str:
    """Return what a device's place for this release is drawn from, beside its rollout id."""
    named = entry.rollout.seed if entry.rollout is not None else ""
    return named or str(entry.release_id(product))


def _against_checkpoints(candidate: Candidate, situation: _Situation) -> Iterator[Reason]:
    name = candidate.entry.name
    if candidate.order > situation.running:
        before = (each for each in situation.ahead if each.candidate.order < candidate.order)
        barrier = next((each for each in before if not each.accepts(candidate)), None)
        if barrier is not None:
            yield _reason(Cause.CHECKPOINT, candidate, f"{name} lies behind {barrier.as_barrier}.")
    else:
        crossed = next((each for each in situation.behind if each.candidate.order > candidate.order), None)
        if crossed is not None:
            text = f"{name} lies below checkpoint {crossed.candidate.entry.name}, which the device has passed."
            yield _reason(Cause.CHECKPOINT, candidate, text)


def _chain(found: Sequence[_Found], chosen: _Found | None, *, others: int) -> list[Reason]:
    chain: list[Reason] = []
    for each in found:
        name = each.candidate.entry.name
        if each is chosen:
            chain.append(_reason(Cause.OFFERED, each.candidate, f"{name} is open to this device."))
        elif not each.reasons and chosen is not None:
            newer = chosen.candidate.entry.name
            chain.append(_reason(Cause.SUPERSEDED, each.candidate, f"{name} is open too, and {newer} is newer."))
        else:
            chain.extend(each.reasons)
    if others:
        text = f"{others} more in this channel are for other variants or architectures."
        chain.append(Reason(cause=Cause.OTHER_DEVICES, text=text))
    return chain


def _without_offer(found: Sequence[_Found], situation: _Situation, chain: list[Reason]) -> Hold | UpToDate:
    facts, running = situation.facts, situation.running_name
    if not found:
        text = f"This channel holds no release for {facts.variant}/{facts.arch}."
        return Hold(reasons=(Reason(cause=Cause.HELD, text=text), *chain))
    if situation.is_recalled:
        text = f"The running {running} was recalled, and there is nothing this device may move to."
        return Hold(reasons=(Reason(cause=Cause.HELD, text=text), *chain))
    waiting = [each for each in found if each.candidate.order > situation.running and each.may_open]
    if waiting:
        # What lies behind a checkpoint waits only because the checkpoint does.
        direct = (each for each in waiting if Cause.CHECKPOINT not in each.causes)
        first = next(direct, waiting[0])
        text = f"The device must wait on {running}: {first.reasons[0].text}"
        return Hold(reasons=(_reason(Cause.HELD, first.candidate, text), *chain))
    text = f"The device runs {running}, and there is nothing newer for it."
    return UpToDate(reasons=(Reason(cause=Cause.UP_TO_DATE, text=text), *chain))


def _offered(entry: PolicyEntry, facts: DeviceFacts, *, goes_back: bool) -> Reason:
    running = f"{facts.version} ({facts.build_id})"
    text = (
        f"The device may go back to {entry.name}: the running {running} was recalled and nothing newer is open."
        if goes_back
        else f"The device may move from {running} to {entry.name}."
    )
    return Reason(cause=Cause.OFFERED, text=text, release=(entry.version, entry.build_id))


def _other_policy(policy: Policy, facts: DeviceFacts) -> Reason:
    text = (
        f"This is the policy of {policy.product} {policy.channel}, and the device follows {facts.product} "
        f"{facts.channel}."
    )
    return Reason(cause=Cause.OTHER_POLICY, text=text)


def _reason(cause: Cause, candidate: Candidate, text: str) -> Reason:
    return Reason(cause=cause, text=text, release=candidate.identity)
