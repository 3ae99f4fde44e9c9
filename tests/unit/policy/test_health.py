"""The sequential test: what it says of counts, and how often it is wrong."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.policy.health import Evidence, Health, SequentialTest, share_bounds

TEST = SequentialTest(acceptable=0.003, harmful=0.02, false_alarm=0.005, missed=0.01)
COUNTS = st.integers(min_value=0, max_value=100_000)


def _ended(*, well: int, lost: int = 0, rolled_back: int = 0) -> Evidence:
    return Evidence(confirmed=well, confirmed_and_settled=well, lost=lost, rolled_back=rolled_back)


@pytest.mark.parametrize(
    ("evidence", "health"),
    [
        (Evidence(), Health.UNDECIDED),
        (_ended(well=100), Health.UNDECIDED),
        (_ended(well=268), Health.HEALTHY),
        (_ended(well=100, lost=2), Health.UNDECIDED),
        (_ended(well=100, lost=4), Health.HARMFUL),
        (_ended(well=100, rolled_back=4), Health.HARMFUL),
        (_ended(well=100, lost=2, rolled_back=2), Health.HARMFUL),
        (_ended(well=2000, lost=6), Health.HEALTHY),
        (_ended(well=2000, lost=40), Health.HARMFUL),
        (_ended(well=0, lost=2), Health.UNDECIDED),
        (_ended(well=0, lost=3), Health.HARMFUL),
        (Evidence(open=5000, not_installed=5000), Health.UNDECIDED),
    ],
)
def test_counts_lead_to_what_the_two_shares_say(evidence: Evidence, health: Health) -> None:
    assert TEST.judge(evidence) is health


def test_a_success_that_could_still_be_matched_by_a_lost_device_does_not_make_a_release_healthy() -> None:
    early = Evidence(confirmed=5000, confirmed_and_settled=0, open=100)

    assert TEST.judge(early) is Health.UNDECIDED
    assert TEST.successes_wanted(early) == 268


def test_a_success_weighs_against_a_halt_at_once() -> None:
    assert TEST.judge(Evidence(confirmed=0, lost=4)) is Health.HARMFUL
    assert TEST.judge(Evidence(confirmed=1000, lost=4)) is Health.UNDECIDED


@given(confirmed=COUNTS, failures=COUNTS)
def test_one_more_failure_never_makes_a_release_look_healthier(confirmed: int, failures: int) -> None:
    order = [Health.HEALTHY, Health.UNDECIDED, Health.HARMFUL]
    before, after = (TEST.judge(_ended(well=confirmed, lost=lost)) for lost in (failures, failures + 1))

    assert order.index(before) <= order.index(after)


@given(confirmed=COUNTS, failures=COUNTS)
def test_as_many_successes_as_are_wanted_make_a_release_healthy(confirmed: int, failures: int) -> None:
    wanted = TEST.successes_wanted(_ended(well=confirmed, lost=failures))

    assert TEST.judge(_ended(well=confirmed + wanted, lost=failures)) is not Health.UNDECIDED or wanted == 0
    if wanted > 1:
        assert TEST.judge(_ended(well=confirmed + wanted - 1, lost=failures)) is not Health.HEALTHY


def _first_verdict(share: float, chance: random.Random) -> Health:
    confirmed = failures = 0
    while True:
        if chance.random() < share:
            failures += 1
        else:
            confirmed += 1
        health = TEST.judge(_ended(well=confirmed, lost=failures))
        if health is not Health.UNDECIDED:
            return health


def test_looked_at_after_every_update_it_errs_as_seldom_as_it_promises() -> None:
    # 500 runs: with the promised 0.5 % and 1 %, more than 10 and 15 have a chance below 1 in 4 000.
    chance = random.Random(20260501)
    harmless = [_first_verdict(0.003, chance) for _ in range(500)]
    harmful = [_first_verdict(0.02, chance) for _ in range(500)]

    assert harmless.count(Health.HARMFUL) <= 10
    assert harmful.count(Health.HEALTHY) <= 15


def test_people_are_shown_bounds_of_the_share() -> None:
    assert share_bounds(failures=0, ended=0) == (0.0, 1.0)
    low, high = share_bounds(failures=10, ended=500)
    assert (round(low, 4), round(high, 4)) == (0.0109, 0.0364)
