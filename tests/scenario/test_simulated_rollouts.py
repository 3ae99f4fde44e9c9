"""100 000 simulated devices under the default plan: whom each stage reaches, and how far harm gets.

`python -m benchmarks.rollout_halts` does more runs, with figures.
"""

import random

import pytest
from tests.simulated_fleet import DAY_S, HOUR_S, START, Ended, places_of, roll_out

from overhaul.policy.document import Policy, PolicyEntry
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.replay import RecordedDevice, replay
from overhaul.policy.rollout import Rollout, admits
from overhaul.policy.steering import RolloutPlan
from overhaul.publishing.simulating import as_planned

DEVICES = 100_000
PLAN = RolloutPlan()


@pytest.mark.parametrize("seed", range(3))
def test_every_stage_reaches_its_share_of_the_devices_within_half_a_point(seed: int) -> None:
    places = places_of(seed=seed, devices=DEVICES)

    for percent in (*PLAN.stages, 1, 10, 33.3, 50, 75):
        reached = 100 * sum(admits(percent=percent, place=place) for place in places) / DEVICES
        assert abs(reached - percent) < 0.5


def test_devices_that_decide_for_themselves_are_as_many_as_each_stage_says() -> None:
    chance = random.Random(20260501)
    release = PolicyEntry(variant="lite", arch="amd64", version="2.0", build_id="1", rollout=Rollout(percent=0.1))
    older = PolicyEntry(variant="lite", arch="amd64", version="1.0", build_id="1")
    policy = Policy(product="weather", channel="stable", revision=1, signed_at=START, entries=(older, release))
    fleet = (
        RecordedDevice(
            facts=DeviceFacts(
                product="weather",
                variant="lite",
                arch="amd64",
                channel="stable",
                version="1.0",
                build_id="1",
                rollout_id=f"{chance.getrandbits(128):032x}",
            ),
            first=START - chance.randrange(2 * HOUR_S),
            every_s=chance.randrange(HOUR_S, 2 * HOUR_S),
        )
        for _device in range(DEVICES)
    )
    found = replay(
        as_planned(policy, PLAN, now=START),
        fleet,
        begin=START,
        end=START + len(PLAN.stages) * DAY_S,
        slice_s=DAY_S,
        sizes=lambda *_: None,
    )

    exposed = [100 * part.exposed["lite/amd64 2.0 (1)"] / DEVICES for part in found.slices]
    assert len(exposed) == len(PLAN.stages)
    for reached, percent in zip(exposed, PLAN.stages, strict=True):
        assert abs(reached - percent) < 0.5
    assert exposed[-1] == 100


def test_a_release_that_bricks_two_percent_never_gets_to_one_percent_of_the_fleet() -> None:
    # Were it to happen in more than 5 % of rollouts, 59 without it would have a chance below 5 %.
    ended = [roll_out(seed=seed, bricks=0.02, background=0.002, devices=DEVICES, fleets=8) for seed in range(59)]

    assert max(one.exposed for one in ended) < DEVICES / 100
    # Most are halted outright; the others wait at their stage for a proof that does not come.
    assert sum(one.halted_at_s is not None for one in ended) >= 0.9 * len(ended)


def test_the_worse_a_release_is_the_fewer_devices_get_it() -> None:
    def median(bricks: float) -> int:
        return sorted(roll_out(seed=seed, bricks=bricks, background=0.002, fleets=8).exposed for seed in range(9))[4]

    assert median(1.0) <= median(0.2) <= median(0.02)
    assert median(1.0) <= 200


def test_a_healthy_release_gets_to_all_devices_within_two_weeks() -> None:
    # A false halt is to happen in 2 % of rollouts at most; of 6, more than 1 have a chance of 1 in 150.
    ended: list[Ended] = [roll_out(seed=seed, bricks=0.0, background=0.002, fleets=8) for seed in range(6)]
    complete = sorted(one.complete_at_s for one in ended if one.complete_at_s is not None)

    assert len(complete) >= 5
    assert complete[len(complete) // 2] <= 14 * DAY_S
    assert all(list(one.stages) == list(PLAN.stages) for one in ended if one.complete_at_s is not None)


def test_without_a_single_report_a_rollout_stays_below_one_percent() -> None:
    from tests.simulated_fleet import Habits

    ended = roll_out(seed=1, bricks=0.0, background=0.0, habits=Habits(reports=0.0))

    assert ended.complete_at_s is None
    assert max(ended.stages) == 0.9
    assert ended.exposed < DEVICES / 100
