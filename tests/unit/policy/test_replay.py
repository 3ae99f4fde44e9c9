"""Replays: they answer as every device would, at every check-in, and count nothing twice."""

import itertools
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policy.building import NOW, device, entry, policy, recall, situations

from overhaul.policy.document import Policy
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.replay import (
    Decider,
    Move,
    RecordedDevice,
    Replayed,
    UnreadableFleetError,
    read_fleet,
    replay,
    running_now,
)
from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.policy.selection import Cause, Decision, Hold, Offer, UpToDate, decide

HOUR_S = 3600
MOMENTS = st.one_of(st.just(0), st.integers(0, 10_000), st.integers(NOW - 10_000, NOW + 10_000))


def _essence(decision: Decision) -> object:
    """All of a decision but its words, which tell the place of a device."""
    reasons = [(reason.cause, reason.release) for reason in decision.reasons]
    chosen = (decision.entry, decision.goes_back) if isinstance(decision, Offer) else None
    return type(decision), chosen, reasons


@given(situations(), st.lists(st.tuples(st.text("ab", min_size=1, max_size=3), MOMENTS), max_size=6))
def test_every_answer_is_the_one_that_the_device_itself_would_find(
    situation: tuple[Policy, DeviceFacts], asking: list[tuple[str, int]]
) -> None:
    document, facts = situation
    decider = Decider(document)
    for rollout_id, moment in asking:
        asked = msgspec.structs.replace(facts, rollout_id=rollout_id)
        found = decider.decide(asked, decider.openings(asked), moment)

        assert _essence(found) == _essence(decide(document, asked, moment))


@given(situations(), st.lists(MOMENTS, min_size=1, max_size=8), st.integers(NOW - 9000, NOW + 9000))
def test_a_device_moves_when_asking_again_and_again_would_have_moved_it(
    situation: tuple[Policy, DeviceFacts], times: list[int], begin: int
) -> None:
    document, facts = situation
    times = sorted(set(times))
    end = begin + 5000
    found = _replay(document, [RecordedDevice(facts=facts, times=tuple(times))], begin=begin, end=end)

    walked: list[tuple[object, object]] = []
    for moment in times:
        decision = decide(document, facts, moment)
        if begin <= moment < end and isinstance(decision, Offer):
            walked.append(((facts.version, facts.build_id), (decision.entry.version, decision.entry.build_id)))
            facts = running_now(facts, decision.entry)
    assert sum(move.devices for move in found.moves) == len(walked)
    assert {(move.from_release, move.to_release) for move in found.moves} == set(walked)


def _replay(
    document: Policy,
    fleet: list[RecordedDevice],
    *,
    begin: int = NOW,
    end: int = NOW + 10 * HOUR_S,
    slice_s: int = HOUR_S,
    size: int | None = 1000,
) -> Replayed:
    return replay(document, fleet, begin=begin, end=end, slice_s=slice_s, sizes=lambda *_: size)


def _hourly(facts: DeviceFacts, *, first: int = NOW) -> RecordedDevice:
    return RecordedDevice(facts=facts, first=first, every_s=HOUR_S)


@given(
    first=st.integers(NOW - 10**5, NOW + 10**5),
    every_s=st.integers(1000, 10**5),
    begin=st.integers(NOW - 10**5, NOW + 10**5),
    length=st.integers(1, 10**5),
    slice_s=st.integers(600, 10**5),
)
def test_check_ins_are_counted_as_if_each_were_written_down(
    first: int, every_s: int, begin: int, length: int, slice_s: int
) -> None:
    end = begin + length
    times = tuple(itertools.takewhile(lambda moment: moment < end, itertools.count(first, every_s)))
    facts = device("1.0")
    fleets = [[RecordedDevice(facts=facts, first=first, every_s=every_s)]]
    if times:
        fleets.append([RecordedDevice(facts=facts, times=times)])
    found = [_replay(policy(), fleet, begin=begin, end=end, slice_s=slice_s) for fleet in fleets]

    assert all(one == found[0] for one in found)
    assert found[0].check_ins == sum(begin <= moment < end for moment in times)
    for one in found[0].slices:
        following = min(end, one.begin + slice_s)
        assert one.check_ins == sum(one.begin <= moment < following for moment in times)


def test_devices_come_in_as_the_steps_of_a_rollout_open() -> None:
    rollout = Rollout(percent=10, steps=(RolloutStep(since=NOW + 3 * HOUR_S, percent=50),))
    fleet = [_hourly(device("1.0", rollout_id=f"device-{number}"), first=NOW + number) for number in range(2000)]
    found = _replay(policy(entry("1.0"), entry("1.1", rollout=rollout)), fleet)

    exposed = [one.exposed.get("lite/amd64 1.1 (1)", 0) / 2000 for one in found.slices]
    assert exposed[0] == pytest.approx(0.1, abs=0.02)
    assert exposed[2] == exposed[0]
    assert exposed[3] == pytest.approx(0.5, abs=0.03)
    assert exposed[-1] == exposed[3]
    moved = round(exposed[-1] * 2000)
    assert found.moves == (
        Move(
            from_release=("1.0", "1"),
            to_release=("1.1", "1"),
            variant="lite",
            arch="amd64",
            devices=moved,
            bytes_each=1000,
            bytes_total=1000 * moved,
            goes_back=False,
        ),
    )
    assert (found.check_ins, found.up_to_date, found.bytes_total) == (20_000, moved, 1000 * moved)
    (stuck,) = found.stuck
    assert (stuck.cause, stuck.devices, stuck.release) == (Cause.ROLLOUT, 2000 - moved, ("1.1", "1"))


def test_few_questions_are_decided_for_many_devices() -> None:
    fleet = [_hourly(device("1.0", rollout_id=f"device-{number}")) for number in range(500)]
    found = _replay(policy(entry("1.0"), entry("1.1", rollout=Rollout(percent=50))), fleet)

    assert found.decisions == 3


def test_a_device_passes_a_checkpoint_first_and_goes_on_at_its_next_check_in() -> None:
    document = policy(entry("1.0"), entry("2.0", checkpoint=True), entry("3.0"))
    found = _replay(document, [_hourly(device("1.0"))])

    assert [(move.from_release[0], move.to_release[0]) for move in found.moves] == [("1.0", "2.0"), ("2.0", "3.0")]
    assert [one.updates for one in found.slices[:3]] == [1, 1, 0]


def test_who_is_stuck_is_told_with_the_cause_and_the_words() -> None:
    document = policy(entry("2.0", checkpoint=True, recall=recall("it burns")), entry("3.0"))
    fleet = [_hourly(device("1.0", rollout_id=f"device-{number}")) for number in range(3)]
    (stuck,) = _replay(document, fleet).stuck

    assert (stuck.cause, stuck.devices, stuck.running) == (Cause.CHECKPOINT, 3, ("1.0", "1"))
    assert "it burns" in stuck.example or "recalled" in stuck.example


def test_devices_that_never_ask_or_follow_another_channel_are_told_apart() -> None:
    fleet = [
        RecordedDevice(facts=device("1.0"), times=(NOW - 5,)),
        _hourly(device("1.0", channel="beta")),
        RecordedDevice(facts=device("1.0"), times=(NOW + 5,)),
    ]
    found = _replay(policy(entry("1.1", rollout=Rollout(percent=0))), fleet)

    assert (found.devices, found.silent, found.elsewhere) == (3, 1, 1)
    assert sum(stuck.devices for stuck in found.stuck) == 1


def test_what_opens_after_the_last_check_in_is_due() -> None:
    rollout = Rollout(percent=0, steps=(RolloutStep(since=NOW + 2 * HOUR_S, percent=100),))
    found = _replay(policy(entry("1.1", rollout=rollout)), [RecordedDevice(facts=device("1.0"), times=(NOW + HOUR_S,))])

    assert (found.due, found.moves) == (1, ())


def test_moves_whose_size_is_not_known_are_told_and_left_out_of_the_sum() -> None:
    found = _replay(policy(entry("1.1")), [_hourly(device("1.0"))], size=None)

    assert (found.bytes_total, found.moves_of_unknown_size) == (0, 1)
    assert found.moves[0].bytes_total is None


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[",
        b'{"facts": %s}',
        b'{"facts": %s, "times": [2, 1]}',
        b'{"facts": %s, "first": 1}',
        b'{"facts": %s, "first": 1, "every_s": 0}',
        b'{"facts": %s, "first": 1, "every_s": 60, "times": [1]}',
        b'{"facts": %s, "times": [-1]}',
    ],
)
def test_a_line_that_is_no_device_is_refused_by_its_number(line: bytes) -> None:
    facts = msgspec.json.encode(device("1.0"))
    good = b'{"facts": %s, "times": [1]}' % facts
    with pytest.raises(UnreadableFleetError, match="Line 3"):
        list(read_fleet([good, b"\n", line % facts if b"%s" in line else line]))


def test_lines_come_back_as_they_were_written() -> None:
    chance = random.Random(5)
    fleet = [
        RecordedDevice(facts=device("1.0", rollout_id=str(number)), first=NOW, every_s=chance.randrange(60, 9999))
        for number in range(20)
    ]

    assert list(read_fleet(map(msgspec.json.encode, fleet))) == fleet


def test_an_end_at_which_nothing_is_newer_counts_as_up_to_date() -> None:
    found = _replay(policy(entry("1.0")), [_hourly(device("1.0"))])

    assert isinstance(decide(policy(entry("1.0")), device("1.0"), NOW), UpToDate)
    assert not isinstance(decide(policy(entry("1.0")), device("1.0"), NOW), Hold)
    assert found.up_to_date == 1
