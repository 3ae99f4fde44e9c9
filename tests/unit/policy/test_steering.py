"""What becomes of a rollout: it waits, goes on, or is halted; and no news never opens it far."""

import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policy.building import NOW, entry

from overhaul.policy.health import Evidence, Health
from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.policy.steering import (
    Change,
    Halt,
    RolloutPlan,
    Step,
    UnusablePlanError,
    Wait,
    is_steered,
    judged_from,
    steer,
    told,
)

PLAN = RolloutPlan()
RELEASE = entry("1.1")
DAY_S = 24 * 3600
NOTHING = Evidence()
GOOD = Evidence(confirmed=900, confirmed_and_settled=900, lost=1)
BAD = Evidence(confirmed=80, confirmed_and_settled=80, lost=5, rolled_back=1)


def _at(percent: float, *, since: int = NOW, judged: int = NOW - DAY_S) -> Rollout:
    return Rollout(percent=percent, since=since, judged_from=judged)


def _step(rollout: Rollout, evidence: Evidence, *, plan: RolloutPlan = PLAN, now: int = NOW + DAY_S) -> Step:
    return steer(RELEASE, rollout, plan, evidence, now=now, set_at=NOW - 7)


def test_a_rollout_that_nobody_looked_after_is_taken_over_as_it_was_signed() -> None:
    taken = _step(Rollout(percent=0.1), NOTHING)

    assert isinstance(taken, Change)
    assert taken.rollout == Rollout(percent=0.1, since=NOW - 7, judged_from=NOW - 7)
    assert judged_from(Rollout(percent=0.1), set_at=NOW - 7) == NOW - 7


def test_a_stage_lasts_its_time() -> None:
    assert isinstance(_step(_at(0.1), GOOD, now=NOW + DAY_S - 1), Wait)
    assert isinstance(_step(_at(0.1), GOOD, now=NOW + DAY_S), Change)


@pytest.mark.parametrize(
    ("evidence", "bounds"), [(NOTHING, "0 to 100 %"), (GOOD, "0.02 to 0.63 %"), (Evidence(rolled_back=5), "to 100 %")]
)
def test_shares_are_told_as_people_write_them(evidence: Evidence, bounds: str) -> None:
    assert bounds in told(evidence)
    assert "e" not in told(evidence).rpartition(",")[2]


def test_small_stages_follow_one_another_without_a_proof_and_are_judged_together() -> None:
    on = _step(_at(0.1), NOTHING)

    assert isinstance(on, Change)
    assert on.rollout == Rollout(percent=0.5, since=NOW + DAY_S, judged_from=NOW - DAY_S)


@pytest.mark.parametrize("evidence", [NOTHING, Evidence(confirmed=900, open=900), Evidence(open=10**6)])
def test_beyond_the_limit_no_rollout_goes_without_proof_however_long_it_waits(evidence: Evidence) -> None:
    held = _step(_at(0.9), evidence, now=NOW + 365 * DAY_S)

    assert isinstance(held, Wait)
    assert held.health is Health.UNDECIDED
    assert "more updates must end well" in held.text


def test_a_proof_opens_the_next_stage_and_begins_a_new_test() -> None:
    on = _step(_at(0.9), GOOD)

    assert isinstance(on, Change)
    assert on.rollout == Rollout(percent=5, since=NOW + DAY_S, judged_from=NOW + DAY_S)


def test_the_last_stage_stays() -> None:
    done = _step(_at(100), GOOD)

    assert isinstance(done, Wait)
    assert "open to all" in done.text


@pytest.mark.parametrize("percent", [0.1, 0.9, 25, 100])
def test_harm_closes_a_rollout_at_every_stage_and_at_once(percent: float) -> None:
    halt = _step(_at(percent), BAD, now=NOW + 1)

    assert isinstance(halt, Halt)
    assert (halt.rollout.percent, halt.rollout.steps, halt.recalls) == (0, (), False)
    assert "6 of 86 updates failed (5 devices did not come back, 1 went back)" in halt.rollout.halted


def test_harm_stops_steps_that_would_open_by_themselves() -> None:
    stepping = Rollout(percent=1, steps=(RolloutStep(since=NOW + 9 * DAY_S, percent=100),), since=NOW, judged_from=NOW)

    assert isinstance(_step(stepping, GOOD), Wait)
    halt = _step(stepping, BAD)
    assert isinstance(halt, Halt)
    assert halt.rollout.percent_at(NOW + 99 * DAY_S) == 0


def test_what_is_halted_stays_so_whatever_is_reported_later() -> None:
    halt = _step(_at(5), BAD)
    assert isinstance(halt, Halt)

    later = _step(halt.rollout, GOOD, now=NOW + 99 * DAY_S)

    assert isinstance(later, Wait)
    assert later.halted


def test_what_an_operator_opens_again_is_judged_by_what_follows() -> None:
    again = _step(Rollout(percent=5), NOTHING)

    assert isinstance(again, Change)
    assert again.rollout.judged_from == NOW - 7


def test_a_plan_may_ask_for_a_recall() -> None:
    halt = _step(_at(5), BAD, plan=RolloutPlan(when_harmful="recall"))

    assert isinstance(halt, Halt)
    assert halt.recalls


def test_a_rollout_that_is_open_to_nobody_is_the_operators() -> None:
    assert isinstance(_step(_at(0), NOTHING, now=NOW + 99 * DAY_S), Wait)


def test_a_percentage_between_two_stages_goes_on_to_the_higher_one() -> None:
    on = _step(_at(0.3), NOTHING)

    assert isinstance(on, Change)
    assert on.rollout.percent == 0.5


def test_only_rollouts_under_way_are_looked_after() -> None:
    assert is_steered(entry("1.1", rollout=Rollout(percent=1)))
    assert not is_steered(entry("1.1"))


@given(
    percent=st.sampled_from([0.1, 0.5, 0.9, 5, 25, 100]),
    good=st.integers(0, 3000),
    settled=st.integers(0, 3000),
    bad=st.integers(0, 100),
    passed=st.integers(0, 10 * DAY_S),
)
def test_no_step_opens_a_rollout_by_more_than_one_stage_or_without_need(
    percent: float, good: int, settled: int, bad: int, passed: int
) -> None:
    evidence = Evidence(confirmed=good + settled, confirmed_and_settled=settled, lost=bad)
    step = _step(_at(percent), evidence, now=NOW + passed)

    if isinstance(step, Change):
        assert step.rollout.percent == PLAN.stage_after(percent)
        assert passed >= DAY_S
        assert step.health is not Health.HARMFUL
        assert step.rollout.percent <= 1 or step.health is Health.HEALTHY


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stages": [1, 1, 100]}, "must rise"),
        ({"stages": [5, 1, 100]}, "must rise"),
        ({"stages": [1, 50]}, "last stage must be 100"),
        ({"acceptable_percent": 2}, "must be below"),
    ],
)
def test_a_plan_that_cannot_be_meant_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises((UnusablePlanError, msgspec.ValidationError), match=said):
        msgspec.convert(changes, RolloutPlan)


def test_a_misspelt_key_of_a_plan_is_refused_by_name() -> None:
    with pytest.raises(msgspec.ValidationError, match="soak_hour"):
        msgspec.convert({"soak_hour": 1}, RolloutPlan)


def test_the_plan_in_the_how_to_shows_every_key_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/roll-out-and-halt.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    written = tomllib.loads(block)["products"]["kiosk"]["rollout"]

    assert msgspec.convert(written, RolloutPlan) == RolloutPlan()
    assert set(written) == {field.name for field in msgspec.structs.fields(RolloutPlan)}
