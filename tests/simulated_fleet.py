"""A fleet that is simulated, under a rollout that is not: places, stages, evidence and halts are the product's own.

What is made up is how devices behave. They check in by habit, from every hour to every other week; most restart at
once and announce it, some wait for their hours, some for their owner, who announces nothing. A release bricks a share
of them, which are never heard of again. A background share fails whatever is installed: half of it is never heard of
again, half goes back. Of the rest some report their success hours or days late, and only part of all owners let devices
report at all. How the reports are
counted is what `tests/behaviour/test_update_health.py` holds the server's database to.
"""

import heapq
import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from overhaul.policy.document import PolicyEntry
from overhaul.policy.health import Evidence
from overhaul.policy.rollout import Rollout, bucket
from overhaul.policy.steering import Change, Halt, RolloutPlan, judged_from, steer

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 24 * HOUR_S
START = 1_800_000_000
#: Between two passes of `overhaul policy watch`.
PASS_S = 30 * MINUTE_S


@dataclass(frozen=True, kw_only=True)
class Habits:
    """How devices of the fleet behave."""

    #: Share of the devices, and how often they check in.
    check_ins: tuple[tuple[float, int], ...] = (
        (0.55, 90 * MINUTE_S),
        (0.30, DAY_S),
        (0.12, 3 * DAY_S),
        (0.03, 14 * DAY_S),
    )
    #: Restart when their hours come, and when their owner does it, unannounced.
    waits_for_hours: float = 0.3
    waits_for_owner: float = 0.1
    #: Successes that are told late, and by how much on average.
    late: float = 0.02
    late_s: int = 8 * HOUR_S
    reports: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How one rollout went."""

    #: Devices that installed the release before it was halted, or by the end of the simulation.
    exposed: int
    bricked: int
    halted_at_s: int | None
    #: Seconds after the start at which each stage began, by its percentage.
    stages: dict[float, int]

    @property
    def complete_at_s(self) -> int | None:
        """Seconds after the start at which the release was open to all."""
        return self.stages.get(100.0)


@dataclass
class _Counts:
    """Evidence, kept up to date by what happens; only updates begun since `since` count."""

    since: int = 0
    numbers: dict[str, int] = field(default_factory=dict)

    def add(self, began: int, changes: tuple[tuple[str, int], ...]) -> None:
        if began >= self.since:
            for name, change in changes:
                self.numbers[name] = self.numbers.get(name, 0) + change

    def restart(self, since: int) -> None:
        self.since, self.numbers = since, {}

    @property
    def evidence(self) -> Evidence:
        return Evidence(**self.numbers)


#: (when, when its update began, what it changes in the counts)
_Happening = tuple[int, int, tuple[tuple[str, int], ...]]


@lru_cache(maxsize=16)
def places_of(*, seed: int, devices: int) -> list[float]:
    """Return the places of a fleet's devices for one release, the lowest first."""
    return sorted(bucket(rollout_id=f"device-{number}", seed=f"release-{seed}") for number in range(devices))


def roll_out(
    *,
    seed: int,
    bricks: float,
    background: float,
    plan: RolloutPlan | None = None,
    devices: int = 100_000,
    habits: Habits | None = None,
    days: int = 90,
    fleets: int = 16,
) -> Ended:
    """Roll a release out to one of `fleets`, a pass every half hour, until it is halted, complete, or time is up."""
    return _Run(
        seed=seed,
        bricks=bricks,
        background=background,
        plan=plan or RolloutPlan(),
        devices=devices,
        habits=habits or Habits(),
        fleets=fleets,
    ).run(days)


class _Run:
    def __init__(
        self,
        *,
        seed: int,
        bricks: float,
        background: float,
        plan: RolloutPlan,
        devices: int,
        habits: Habits,
        fleets: int,
    ) -> None:
        # Places take most of the time; as many fleets as here are enough, each with many behaviours.
        self._places = places_of(seed=seed % fleets, devices=devices)
        self._chance = random.Random(seed)
        self._bricks, self._background = bricks, background
        self._plan, self._habits = plan, habits
        self._entry = PolicyEntry(variant="lite", arch="amd64", version="2.0", build_id="1")
        self._reached = 0
        self._begun: list[int] = []
        self._bricked: list[int] = []
        self._coming: list[_Happening] = []

    def run(self, days: int) -> Ended:
        rollout = Rollout(percent=self._plan.stages[0])
        stages = {rollout.percent: 0}
        counts = _Counts(since=START)
        self._expose(rollout.percent, now=START)
        now, end = START, START + days * DAY_S
        while now < end and rollout.percent < 100:
            now += PASS_S
            while self._coming and self._coming[0][0] <= now:
                _at, began, changes = heapq.heappop(self._coming)
                counts.add(began, changes)
            step = steer(self._entry, rollout, self._plan, counts.evidence, now=now, set_at=START)
            if isinstance(step, Halt):
                return self._ended(now, stages, halted_at_s=now - START)
            if isinstance(step, Change):
                rollout = step.rollout
                stages.setdefault(rollout.percent, now - START)
                if judged_from(rollout, set_at=START) != counts.since:
                    counts.restart(judged_from(rollout, set_at=START))
                self._expose(rollout.percent, now=now)
        return self._ended(end, stages, halted_at_s=None)

    def _ended(self, now: int, stages: dict[float, int], *, halted_at_s: int | None) -> Ended:
        return Ended(
            exposed=sum(began <= now for began in self._begun),
            bricked=sum(began <= now for began in self._bricked),
            halted_at_s=halted_at_s,
            stages=stages,
        )

    def _expose(self, percent: float, *, now: int) -> None:
        """Let the devices that the rollout reaches now find it at their next check-in."""
        # As many as `policy.rollout.admits` lets in: those whose place is below the percentage.
        reached = bisect_left(self._places, percent / 100)
        for _device in range(self._reached, reached):
            began, is_bricked, happenings = self._update(now)
            self._begun.append(began)
            if is_bricked:
                self._bricked.append(began)
            if self._chance.random() < self._habits.reports:
                for happening in happenings:
                    heapq.heappush(self._coming, happening)
        self._reached = reached

    def _update(self, now: int) -> tuple[int, bool, list[_Happening]]:
        """Return when a device begins, whether that bricks it, and what the server hears of it."""
        chance, habits = self._chance, self._habits
        shares, intervals = zip(*habits.check_ins, strict=True)
        (interval_s,) = chance.choices(intervals, shares)
        began = now + round(chance.uniform(0, interval_s))
        restarted, lost_at = self._restart(began, interval_s)
        is_bricked = chance.random() < self._bricks
        fails = is_bricked or chance.random() < self._background
        comes_back = not is_bricked and (not fails or chance.random() < 0.5)
        told_at = restarted + 10 * MINUTE_S
        if not fails and chance.random() < habits.late:
            told_at += round(chance.expovariate(1 / habits.late_s))
        ending = None if not comes_back else "rolled_back" if fails else "confirmed"
        return began, is_bricked, list(_heard(began, lost_at, told_at, ending))

    def _restart(self, began: int, interval_s: int) -> tuple[int, int]:
        """Return when the device restarts, and when it counts as lost unless it is heard of again."""
        kind = self._chance.random()
        if kind < self._habits.waits_for_owner:
            restarted = began + round(self._chance.uniform(0, 2 * DAY_S))
            last_word = began + (restarted - began) // interval_s * interval_s
            return restarted, last_word + round(self._plan.silence_grace_hours * HOUR_S)
        waits = kind < self._habits.waits_for_owner + self._habits.waits_for_hours
        restarted = began + (round(self._chance.uniform(0, DAY_S)) if waits else 10 * MINUTE_S)
        return restarted, restarted + round(self._plan.restart_grace_hours * HOUR_S)


def _heard(began: int, lost_at: int, told_at: int, ending: str | None) -> Iterator[_Happening]:
    yield began, began, (("open", 1),)
    if ending is None or told_at > lost_at:
        yield lost_at, began, (("open", -1), ("lost", 1))
    if ending is None:
        return
    before = "open" if told_at <= lost_at else "lost"
    yield told_at, began, ((before, -1), (ending, 1))
    if ending == "confirmed":
        yield max(told_at, lost_at), began, (("confirmed_and_settled", 1),)
