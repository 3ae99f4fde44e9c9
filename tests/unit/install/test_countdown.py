"""Properties of the counting rules: whatever is done in whatever order, a good slot is never lost by starting."""

from hypothesis import given
from hypothesis import strategies as st

from overhaul.install.boot import SlotStatus
from overhaul.install.countdown import (
    BootVariables,
    after_boot,
    chosen_slot,
    first_variables,
    slot_state,
    with_bad,
    with_good,
    with_trial,
)

SLOTS = ("A", "B", "C")
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("bad"), st.sampled_from(SLOTS), st.just(0)),
        st.tuples(st.just("good"), st.sampled_from(SLOTS), st.just(0)),
        st.tuples(st.just("try"), st.sampled_from(SLOTS), st.integers(1, 9)),
        st.tuples(st.just("boot"), st.just(""), st.just(0)),
    ),
    max_size=12,
)


def after(actions: list[tuple[str, str, int]]) -> BootVariables:
    variables = first_variables(SLOTS)
    for action, slot, attempts in actions:
        match action:
            case "bad":
                variables = with_bad(variables, slot)
            case "good":
                variables = with_good(variables, slot)
            case "try":
                variables = with_trial(variables, slot, attempts=attempts)
            case _:
                variables = after_boot(variables)
    return variables


@given(ACTIONS)
def test_every_slot_stays_in_the_order_once(actions: list[tuple[str, str, int]]) -> None:
    assert sorted(after(actions).order) == list(SLOTS)


@given(ACTIONS)
def test_a_bad_slot_is_chosen_only_when_all_are_bad(actions: list[tuple[str, str, int]]) -> None:
    variables = after(actions)
    if slot_state(variables, chosen_slot(variables)).status is SlotStatus.BAD:
        assert all(slot_state(variables, slot).status is SlotStatus.BAD for slot in SLOTS)


@given(ACTIONS)
def test_starting_often_enough_ends_on_a_good_slot_when_there_is_one(actions: list[tuple[str, str, int]]) -> None:
    variables = after(actions)
    good = {slot for slot in SLOTS if slot_state(variables, slot).status is SlotStatus.GOOD}
    for _ in range(9 * len(SLOTS)):
        variables = after_boot(variables)
    assert {slot for slot in SLOTS if slot_state(variables, slot).status is SlotStatus.GOOD} == good
    if good:
        assert chosen_slot(variables) in good


@given(ACTIONS, st.sampled_from(SLOTS), st.integers(1, 9))
def test_a_trial_is_started_exactly_as_often_as_it_may(
    actions: list[tuple[str, str, int]], slot: str, attempts: int
) -> None:
    variables = with_trial(after(actions), slot, attempts=attempts)
    started = []
    for _ in range(attempts):
        started.append(chosen_slot(variables))
        variables = after_boot(variables)
    assert started == [slot] * attempts
    assert slot_state(variables, slot).status is SlotStatus.BAD
