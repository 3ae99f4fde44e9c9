"""What an operator can do to a channel, as values: looked at before it is done, and the same as a command. Pure.

An act names the revision of the policy that was looked at. Everything that can be said before it is done (what changes,
for which share of the devices, which command does the same) is a function of the signed policies and the act.
"""

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import msgspec

from overhaul.errors import InputError
from overhaul.policy import edit
from overhaul.policy.document import Policy, PolicyEntry, Recall
from overhaul.policy.edit import UnknownReleaseError
from overhaul.policy.rollout import Rollout, RolloutStep, as_utc
from overhaul.release.names import Name, Token
from overhaul.release.record import ReleaseId


class ActKind(StrEnum):
    """What is done."""

    PROMOTE = "promote"
    ROLLOUT = "rollout"
    PAUSE = "pause"
    RECALL = "recall"


class UnusableActError(InputError):
    """An act that says too little or too much."""


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One act, complete."""

    kind: ActKind
    product: Name
    variant: Name
    arch: Name
    version: Token
    build_id: Token
    #: The channel whose policy changes.
    channel: Name
    #: For promoting: the channel that holds the release.
    source: Name | None = None
    #: Of the devices, for promoting and rollouts; None for all of them.
    percent: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None
    steps: Annotated[tuple[RolloutStep, ...], msgspec.Meta(max_length=16)] = ()
    #: For recalls.
    reason: Annotated[str, msgspec.Meta(max_length=500)] = ""
    allow_lower: bool = False
    #: The revision of the channel's policy that was looked at; 0 when it has none yet.
    revision: Annotated[int, msgspec.Meta(ge=0)]

    @property
    def release(self) -> ReleaseId:
        """The release it is about."""
        return ReleaseId(
            product=self.product, variant=self.variant, arch=self.arch, version=self.version, build_id=self.build_id
        )

    @property
    def release_text(self) -> str:
        """The release as commands name it."""
        return "/".join((self.product, self.variant, self.arch, self.version, self.build_id))

    @property
    def subject(self) -> str:
        """The release and the channel, for people."""
        return f"{self.release_text} in {self.channel}"

    def rollout_after(self, held: Rollout | None) -> Rollout | None:
        """Return the rollout it leads to; the devices that come first stay those of `held`."""
        seed = "" if held is None else held.seed
        if self.kind is ActKind.PAUSE:
            return Rollout(percent=0, seed=seed)
        if self.percent is None or (self.percent >= 100 and not self.steps):
            return None
        return Rollout(percent=self.percent, steps=self.steps, seed=seed)

    def order(self, *, now: int) -> Recall:
        """Return what a recall says."""
        return Recall(reason=self.reason, since=now, allow_lower=self.allow_lower)


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What an act will change."""

    act: Act
    #: Entries of the release in the channel, before and after; before is None when it is not there yet.
    before: PolicyEntry | None
    after: PolicyEntry
    revision: int
    changes: bool
    percent_before: float
    percent_after: float
    #: The same as a command.
    command: str
    #: What speaks against opening it further, in a sentence; empty when nothing is known.
    warning: str = ""

    @property
    def added_percent(self) -> float:
        """The part of the devices that is newly exposed; 0 when none is."""
        return max(0.0, self.percent_after - self.percent_before)

    @property
    def words(self) -> str:
        """What changes, in one line."""
        return f"{entry_words(self.before)} → {entry_words(self.after)}"


def preview(act: Act, policies: dict[str, Policy], *, now: int, repository: str) -> Preview:
    """Return what `act` will change in `policies` (by channel), by the very functions that will change it.

    Raises:
        InputError: It cannot be done.
    """
    policy = policies.get(act.channel)
    revision = 0 if policy is None else policy.revision
    before = None if policy is None else policy.entry(act.release)
    after = changed(act, policies, now=now).entry(act.release)
    assert after is not None  # noqa: S101 - every act leaves the entry there
    return Preview(
        act=act,
        before=before,
        after=after,
        revision=revision,
        changes=after != before,
        percent_before=_percent(before, now),
        percent_after=_percent(after, now),
        command=command(act, repository=repository),
        warning=_warning(act, policies, now=now),
    )


def _warning(act: Act, policies: dict[str, Policy], *, now: int) -> str:
    """Return why the release is shut where it is now, when `act` opens it there or elsewhere."""
    if act.kind not in {ActKind.PROMOTE, ActKind.ROLLOUT}:
        return ""
    channel = act.source or act.channel
    policy = policies.get(channel)
    entry = None if policy is None else policy.entry(act.release)
    rollout = None if entry is None else entry.rollout
    if rollout is None or (not rollout.halted and rollout.percent_at(now) > 0):
        return ""
    if rollout.halted:
        return f"In {channel} it was halted by what devices reported: {rollout.halted}"
    return f"In {channel} it is held at 0 %" if act.kind is ActKind.PROMOTE else ""


def changed(act: Act, policies: dict[str, Policy], *, now: int) -> Policy:
    """Return the channel's policy after `act`; nothing is signed or written."""
    policy = policies.get(act.channel) or edit.new_policy(product=act.product, channel=act.channel, now=now)
    match act.kind:
        case ActKind.PROMOTE:
            source = policies.get(act.source or "")
            if source is None:
                raise UnknownReleaseError(release=act.release, channel=act.source or "")
            return edit.promote(source, policy, act.release, rollout=act.rollout_after(None), now=now)
        case ActKind.RECALL:
            return edit.recall(policy, act.release, act.order(now=now), now=now)
        case _:
            held = policy.entry(act.release)
            rollout = act.rollout_after(None if held is None else held.rollout)
            return edit.set_rollout(policy, act.release, rollout, now=now)


def command(act: Act, *, repository: str) -> str:
    """Return the command that does the same."""
    percent = "all" if act.percent is None or (act.percent >= 100 and not act.steps) else f"{act.percent:g}"
    match act.kind:
        case ActKind.PROMOTE:
            words = ["release", "promote", act.release_text, "--from", act.source or "", "--to", act.channel]
            words += ["--rollout", percent]
        case ActKind.RECALL:
            words = ["release", "recall", act.release_text, "--channel", act.channel, "--reason", act.reason]
            words += ["--allow-lower"] if act.allow_lower else []
        case ActKind.PAUSE:
            words = ["channel", "rollout", act.release_text, "0", "--channel", act.channel]
        case ActKind.ROLLOUT:
            words = ["channel", "rollout", act.release_text, percent, "--channel", act.channel]
            for step in act.steps:
                moment = datetime.fromtimestamp(step.since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                words += ["--step", f"{moment}={step.percent:g}"]
    return shlex.join(["overhaul", *words, "--repository", repository])


def parse_steps(text: str) -> tuple[RolloutStep, ...]:
    """Return the steps in lines of `TIME PERCENT`, such as `2026-05-02 08:00 10`; times are UTC unless they say so.

    Raises:
        UnusableActError: A line cannot be read.
    """
    steps = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        moment, _space, percent = line.replace("=", " ").rpartition(" ")
        try:
            written = datetime.fromisoformat(moment.strip())
            number = 100.0 if percent == "all" else float(percent.removesuffix("%"))
            aware = written if written.tzinfo is not None else written.replace(tzinfo=UTC)
            steps.append(RolloutStep(since=int(aware.timestamp()), percent=number))
        except (ValueError, OverflowError, InputError) as error:
            raise UnusableActError(
                f"{line!r} is not a step; write a time and a percentage, such as 2026-05-02 08:00 10."
            ) from error
    return tuple(steps)


def entry_words(entry: PolicyEntry | None) -> str:
    """Return where a release stands in a channel, in words that an audit log can keep."""
    if entry is None:
        return "not in the channel"
    if entry.recall is not None:
        return f"recalled: {entry.recall.sentence_end}"
    if entry.rollout is None:
        return "open to all"
    steps = "".join(f", {step.percent:g} % from {as_utc(step.since)}" for step in entry.rollout.steps)
    return f"{entry.rollout.percent:g} %{steps}"


def _percent(entry: PolicyEntry | None, now: int) -> float:
    if entry is None or entry.recall is not None:
        return 0.0
    return 100.0 if entry.rollout is None else entry.rollout.percent_at(now)
