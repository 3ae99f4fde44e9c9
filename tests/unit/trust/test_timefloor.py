"""What is learned about the earliest possible time, and what is forgotten."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.trust.timefloor import TimeFloor

_NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
_LATER = _NOON + timedelta(days=2)


def _at(moment: datetime) -> int:
    return int(moment.timestamp())


def test_a_floor_holds_up_a_clock_behind_it_and_leaves_one_ahead_alone() -> None:
    floor = TimeFloor().learn("timestamp", claim=_at(_NOON), expires=_LATER, keyids=["k"])

    assert floor.reference(datetime(1970, 1, 1, tzinfo=UTC)) == _NOON
    assert floor.reference(_LATER) == _LATER


@pytest.mark.parametrize("claim", [None, "1780315200", True, 1.5, 0, -1, _at(_LATER), _at(_LATER) + 1, 2**80])
def test_a_claim_that_makes_no_sense_teaches_nothing(claim: object) -> None:
    assert TimeFloor().learn("timestamp", claim=claim, expires=_LATER, keyids=["k"]) == TimeFloor()


def test_a_witness_counts_only_while_all_its_keys_are_trusted() -> None:
    floor = TimeFloor().learn("timestamp", claim=_at(_NOON), expires=_LATER, keyids=["a", "b"])

    assert floor.trusting({"timestamp": ["b", "a", "c"]}) == floor
    assert floor.trusting({"timestamp": ["a", "c"]}) == TimeFloor()
    assert floor.trusting({"snapshot": ["a", "b"]}) == TimeFloor()


@given(st.lists(st.tuples(st.sampled_from(["root", "timestamp"]), st.integers(1, 4_000_000_000)), max_size=8))
def test_a_floor_never_sinks_while_keys_stay(claims: list[tuple[str, int]]) -> None:
    floor, end = TimeFloor(), datetime(2150, 1, 1, tzinfo=UTC)
    for role, claim in claims:
        raised = floor.learn(role, claim=claim, expires=end, keyids=["k"])
        assert raised.moment >= floor.moment
        floor = raised

    assert floor.moment == datetime.fromtimestamp(max((claim for _role, claim in claims), default=0), UTC)
