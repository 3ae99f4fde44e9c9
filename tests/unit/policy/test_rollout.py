"""Rollouts: stable for one device, even over many, independent between releases, and only ever adding."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policy.building import NOW, rollouts

from overhaul.policy.rollout import Rollout, RolloutStep, UnusableRolloutError, admits, bucket

DEVICES = [f"{random.Random(seed).getrandbits(128):032x}" for seed in range(20_000)]


def _places(seed: str) -> list[float]:
    return [bucket(rollout_id=device, seed=seed) for device in DEVICES]


def _chi_square(counts: list[int], expected: float) -> float:
    return sum((count - expected) ** 2 / expected for count in counts)


@given(st.text(min_size=1, max_size=64), st.text(max_size=64))
def test_a_place_is_stable_and_below_one(rollout_id: str, seed: str) -> None:
    place = bucket(rollout_id=rollout_id, seed=seed)

    assert 0 <= place < 1
    assert place == bucket(rollout_id=rollout_id, seed=seed)
    assert admits(percent=100, place=place)
    assert not admits(percent=0, place=place)


def test_the_places_are_a_published_function() -> None:
    """Devices of every version must agree, so these may never change."""
    assert bucket(rollout_id="device-1", seed="weather/lite/amd64 2.0 (1)") == 0.28080687262726967
    assert bucket(rollout_id="é", seed="") == 0.8353807073622093


def test_the_id_and_the_seed_cannot_run_into_each_other() -> None:
    assert bucket(rollout_id="ab", seed="c") != bucket(rollout_id="a", seed="bc")


def test_places_are_spread_evenly() -> None:
    """Chi-square over 100 cells: 99 degrees of freedom, 148.2 is exceeded once in a thousand."""
    counts = [0] * 100
    for place in _places("weather/lite/amd64 2.0 (1)"):
        counts[int(place * 100)] += 1

    assert _chi_square(counts, len(DEVICES) / 100) < 148.2


@pytest.mark.parametrize("other", ["weather/lite/amd64 2.0 (2)", "weather/lite/amd64 2.1 (1)", "x"])
def test_places_for_two_releases_have_nothing_to_do_with_each_other(other: str) -> None:
    """Chi-square over a 10 by 10 table of both places: 99 degrees of freedom again, and the correlation is none."""
    first, second = _places("weather/lite/amd64 2.0 (1)"), _places(other)
    counts = [0] * 100
    for a, b in zip(first, second, strict=True):
        counts[int(a * 10) * 10 + int(b * 10)] += 1
    covariance = sum((a - 0.5) * (b - 0.5) for a, b in zip(first, second, strict=True)) / len(DEVICES)

    assert _chi_square(counts, len(DEVICES) / 100) < 148.2
    assert abs(covariance * 12) < 4 / math.sqrt(len(DEVICES))


@pytest.mark.parametrize("percent", [0.5, 5, 25, 50, 90])
def test_a_percentage_reaches_that_part_of_the_devices(percent: float) -> None:
    share = percent / 100
    reached = sum(admits(percent=percent, place=place) for place in _places("weather/lite/amd64 2.0 (1)"))

    deviation = math.sqrt(len(DEVICES) * share * (1 - share))
    assert abs(reached - len(DEVICES) * share) < 4 * deviation


@given(st.text(min_size=1, max_size=8), st.floats(0, 100), st.floats(0, 100))
def test_raising_the_percentage_only_adds_devices(rollout_id: str, one: float, other: float) -> None:
    place = bucket(rollout_id=rollout_id, seed="release")

    assert not admits(percent=min(one, other), place=place) or admits(percent=max(one, other), place=place)


@given(rollouts(), st.integers(NOW - 12, NOW + 12), st.integers(0, 12))
def test_a_rollout_never_falls_as_time_goes_on(rollout: Rollout, now: int, later: int) -> None:
    assert rollout.percent_at(now) <= rollout.percent_at(now + later)
    assert rollout.percent_at(0) == rollout.percent


@given(rollouts(), st.floats(0, 0.999))
def test_the_time_at_which_a_device_is_admitted_is_the_first(rollout: Rollout, place: float) -> None:
    opens_at = rollout.opens_at(place)

    if opens_at is None:
        assert admits(percent=rollout.percent, place=place) or not admits(
            percent=rollout.percent_at(NOW + 100), place=place
        )
    else:
        assert admits(percent=rollout.percent_at(opens_at), place=place)
        earlier = [step.percent for step in rollout.steps if step.since < opens_at]
        assert not any(admits(percent=percent, place=place) for percent in earlier)


@pytest.mark.parametrize("percent", [-0.1, 100.1, float("nan"), float("inf")])
def test_a_percentage_is_between_0_and_100(percent: float) -> None:
    with pytest.raises(UnusableRolloutError, match="is not between 0 and 100"):
        Rollout(percent=percent)
    with pytest.raises(UnusableRolloutError, match="is not between 0 and 100"):
        RolloutStep(since=NOW, percent=percent)


def test_steps_come_in_the_order_of_their_times() -> None:
    steps = (RolloutStep(since=NOW + 1, percent=10), RolloutStep(since=NOW, percent=20))

    with pytest.raises(UnusableRolloutError, match="not in the order of their times"):
        Rollout(percent=5, steps=steps)


def test_a_rollout_does_not_fall() -> None:
    with pytest.raises(UnusableRolloutError, match="falls from 50 to 10 percent"):
        Rollout(percent=50, steps=(RolloutStep(since=NOW, percent=10),))
