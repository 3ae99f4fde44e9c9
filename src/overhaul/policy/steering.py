"""What becomes of a rollout next, by how the devices it reached fare: wait, go on, or halt.

A plan has stages. The first ones are small, and after some time at each the rollout goes on by itself unless the
release was found harmful. Beyond `proof_above_percent` it goes on only when the release was found healthy, so what
harms devices never gets there by a lack of reports: no news holds a rollout where it is.

Every stage beyond the proof has a test of its own, with its part of the errors, so that a long healthy past cannot
outweigh what begins late. A halt closes the rollout to everybody it has not reached; only an operator opens it again,
and is then not halted by what was reported before.

Nothing here reads a clock: equal arguments give equal steps. The stage a rollout is at stands in the signed policy,
so whoever steers it keeps no state and can be killed and run again.
"""

from typing import Annotated, Literal

import msgspec

from overhaul.errors import InputError
from overhaul.policy.document import PolicyEntry
from overhaul.policy.health import Evidence, Health, SequentialTest, share_bounds
from overhaul.policy.rollout import Percent, Rollout

_HOUR_S = 3600
_Hours = Annotated[float, msgspec.Meta(ge=0, le=24 * 365)]
_Share = Annotated[float, msgspec.Meta(gt=0, lt=100)]


class UnusablePlanError(InputError):
    """Stages or shares that can never be meant."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The rollout plan cannot be used: {reason}.")


class RolloutPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How releases of a product are rolled out; `[products.NAME.rollout]` in overhaul.toml."""

    #: Percentages, one after the other; the last is 100.
    stages: Annotated[tuple[Percent, ...], msgspec.Meta(min_length=1, max_length=64)] = (0.1, 0.5, 0.9, 5, 25, 100)
    #: How long a stage lasts at least.
    soak_hours: _Hours = 24
    #: Beyond this percentage a rollout goes on only with a release that was found healthy.
    proof_above_percent: Percent = 1
    #: The share of updates that may come to nothing without anybody's fault, and the one that is never accepted.
    acceptable_percent: _Share = 0.3
    harmful_percent: _Share = 2
    #: How often a release with the acceptable share may be halted in a whole rollout...
    false_alarm_percent: _Share = 2
    #: ...and how often one with the harmful share may pass a test.
    missed_percent: _Share = 1
    #: How long a device may take to come back from the restart it announced...
    restart_grace_hours: _Hours = 24
    #: ...and how long one that waits for its restart may be silent.
    silence_grace_hours: _Hours = 96
    #: Close the rollout, or recall the release too.
    when_harmful: Literal["halt", "recall"] = "halt"

    def __post_init__(self) -> None:
        if list(self.stages) != sorted(set(self.stages)):
            raise UnusablePlanError(f"its stages must rise, and are {', '.join(f'{stage:g}' for stage in self.stages)}")
        if self.stages[-1] != 100:
            raise UnusablePlanError(f"its last stage must be 100, and is {self.stages[-1]:g}")
        if self.acceptable_percent >= self.harmful_percent:
            raise UnusablePlanError(
                f"the acceptable share ({self.acceptable_percent:g} %) must be below the harmful one "
                f"({self.harmful_percent:g} %)"
            )

    @property
    def test(self) -> SequentialTest:
        """The test of one stage, with its part of the false alarms of the whole rollout."""
        tests = 1 + sum(stage > self.proof_above_percent for stage in self.stages)
        return SequentialTest(
            acceptable=self.acceptable_percent / 100,
            harmful=self.harmful_percent / 100,
            false_alarm=self.false_alarm_percent / 100 / tests,
            missed=self.missed_percent / 100,
        )

    def stage_after(self, percent: float) -> float | None:
        """Return the next stage, or None after the last."""
        return next((stage for stage in self.stages if stage > percent), None)

    def wants_proof(self, stage: float) -> bool:
        """Whether the release must be healthy to get to `stage`."""
        return stage > self.proof_above_percent


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """What every step tells."""

    health: Health
    #: One sentence for people.
    text: str


class Wait(Act, frozen=True, kw_only=True, tag_field="step", tag="wait"):
    """Leave everything as it is."""

    #: The rollout was halted before.
    halted: bool = False


class Change(Act, frozen=True, kw_only=True, tag_field="step", tag="change"):
    """Give the release this rollout: it is taken over, or goes on."""

    rollout: Rollout


class Halt(Act, frozen=True, kw_only=True, tag_field="step", tag="halt"):
    """Close the rollout, and recall the release when the plan says so; the rollout's `halted` says why."""

    rollout: Rollout
    recalls: bool


Step = Wait | Change | Halt


def is_steered(entry: PolicyEntry) -> bool:
    """Whether the entry's rollout is one to look after; what is open to all without one, or recalled, is not."""
    return entry.rollout is not None and entry.recall is None


def steer(
    entry: PolicyEntry, rollout: Rollout, plan: RolloutPlan, evidence: Evidence, *, now: int, set_at: int
) -> Step:
    """Return what becomes of `rollout`, the one of `entry`.

    Args:
        entry: The release.
        rollout: Where it is.
        plan: Where it shall get to, and by what it is judged.
        evidence: How updates begun since `judged_from(rollout, set_at=set_at)` ended.
        now: Seconds since 1970 UTC.
        set_at: When the policy was signed; a rollout that does not say since when it stands was set by then.
    """
    if rollout.halted:
        return Wait(health=Health.HARMFUL, text=f"{entry.name} is halted: {rollout.halted}.", halted=True)
    test = plan.test
    health = test.judge(evidence)
    percent = rollout.percent_at(now)
    if health is Health.HARMFUL:
        reason = f"{told(evidence)}, where {plan.acceptable_percent:g} % is acceptable"
        closed = msgspec.structs.replace(rollout, percent=0, steps=(), since=now, halted=reason)
        return Halt(
            health=health,
            text=f"{entry.name} is halted: {reason}.",
            rollout=closed,
            recalls=plan.when_harmful == "recall",
        )
    if not rollout.since:
        known = msgspec.structs.replace(rollout, since=set_at, judged_from=judged_from(rollout, set_at=set_at))
        return Change(health=health, text=f"{entry.name} is looked after from now on.", rollout=known)
    return _onwards(entry, rollout, plan, evidence, health, percent=percent, now=now)


def judged_from(rollout: Rollout, *, set_at: int) -> int:
    """Return since when updates count for a rollout; see `steer`."""
    return rollout.judged_from or rollout.since or set_at


def told(evidence: Evidence) -> str:
    """Return the evidence as people read it."""
    low, high = share_bounds(failures=evidence.failures, ended=evidence.ended)
    return (
        f"{evidence.failures} of {evidence.ended} updates failed ({evidence.lost} devices did not come back, "
        f"{evidence.rolled_back} went back), {_percent(low)} to {_percent(high)} %"
    )


def _percent(share: float) -> str:
    """Return two digits of a share; `g` alone would write a hundred as 1e+02."""
    return f"{float(f'{share * 100:.2g}'):g}"


def _onwards(
    entry: PolicyEntry,
    rollout: Rollout,
    plan: RolloutPlan,
    evidence: Evidence,
    health: Health,
    *,
    percent: float,
    now: int,
) -> Step:
    following = plan.stage_after(percent)
    if rollout.steps and rollout.steps[-1].since > now:
        return Wait(health=health, text=f"{entry.name} follows its own steps, at {percent:g} % now.")
    if percent == 0:
        return Wait(health=health, text=f"{entry.name} is open to nobody; open it with `overhaul channel rollout`.")
    if following is None:
        return Wait(health=health, text=f"{entry.name} is open to all devices; {told(evidence)}.")
    left_s = rollout.since + plan.soak_hours * _HOUR_S - now
    if left_s > 0:
        return Wait(
            health=health,
            text=f"{entry.name} stays at {percent:g} % for another {left_s / _HOUR_S:.1f} h; {told(evidence)}.",
        )
    if plan.wants_proof(following) and health is not Health.HEALTHY:
        wanted = plan.test.successes_wanted(evidence)
        return Wait(
            health=health,
            text=(
                f"{entry.name} stays at {percent:g} % until it is known to be healthy: {wanted} more updates must "
                f"end well; {told(evidence)}."
            ),
        )
    further = msgspec.structs.replace(
        rollout,
        percent=following,
        steps=(),
        since=now,
        # A proof ends a test, and what comes next is judged by itself.
        judged_from=now if plan.wants_proof(following) else rollout.judged_from,
    )
    text = f"{entry.name} goes on from {percent:g} to {following:g} %; {told(evidence)}."
    return Change(health=health, text=text, rollout=further)
