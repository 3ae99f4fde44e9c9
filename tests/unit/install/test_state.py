"""The state file: kept whole, bounded, and never silently begun anew."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.install.state import (
    MAX_EVENTS,
    MAX_REFUSED,
    DeviceState,
    Event,
    EventKind,
    Phase,
    RefusedVersion,
    SlotContent,
    StateFile,
    Target,
    fresh_state,
    with_event,
    with_refused,
)
from overhaul.install.statefile import StateUnreadableError
from overhaul.release.record import ReleaseId

CONTENT = SlotContent(
    release=ReleaseId(product="weather", variant="lite", arch="amd64", version="2.0", build_id="b2"),
    index_sha256="ab" * 32,
    image_size=4096,
)


def event(number: int) -> Event:
    return Event(at=number, kind=EventKind.STARTED, slot="A", version="1.0", build_id=str(number))


def refused(version: str, *, at: int = 0) -> RefusedVersion:
    return RefusedVersion(version=version, build_id="b", reason="sick", at=at)


def test_the_first_run_makes_a_random_rollout_id_and_keeps_it(tmp_path: Path) -> None:
    first = StateFile(tmp_path / "one").load()
    assert StateFile(tmp_path / "one").load() == first
    assert StateFile(tmp_path / "two").load().rollout_id != first.rollout_id


def test_a_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    states = StateFile(tmp_path)
    state = DeviceState(
        phase=Phase.INSTALLING,
        rollout_id="0" * 32,
        slots={"A": CONTENT},
        target=Target(slot="B", content=CONTENT, fallback="A"),
        refused=(refused("1.5"),),
        history=(event(1),),
    )
    states.save(state)
    assert states.load() == state
    assert states.path.stat().st_mode & 0o777 == 0o600


def test_the_history_and_the_memory_of_refused_versions_are_bounded() -> None:
    state = fresh_state()
    for number in range(MAX_EVENTS + 10):
        state = with_event(state, event(number))
        state = with_refused(state, refused(f"1.{number}"))
    assert [kept.at for kept in state.history] == list(range(10, MAX_EVENTS + 10))
    assert len(state.refused) == MAX_REFUSED
    assert state.refused[-1].version == f"1.{MAX_EVENTS + 9}"


def test_a_version_is_refused_once_with_its_last_reason() -> None:
    state = with_refused(with_refused(fresh_state(), refused("2.0", at=1)), refused("2.0", at=2))
    assert [kept.at for kept in state.refused] == [2]


@given(st.data())
def test_a_damaged_state_is_refused_and_left_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    states = StateFile(tmp_path_factory.mktemp("state"))
    states.save(DeviceState(rollout_id="0" * 32, slots={"A": CONTENT}))
    whole = states.path.read_bytes().rstrip()
    damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    states.path.write_bytes(damaged)
    with pytest.raises(StateUnreadableError, match="state file"):
        states.load()
    assert states.path.read_bytes() == damaged


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"phase": "trial"}, {"phase": "flying"}, {"rollout_id": "me"}, {"refused": [{"version": "1"}]}],
)
def test_a_state_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    states = StateFile(tmp_path)
    state = msgspec.to_builtins(DeviceState(rollout_id="0" * 32))
    states.path.write_bytes(msgspec.json.encode({**state, **change}))
    with pytest.raises(StateUnreadableError) as caught:
        states.load()
    assert caught.value.exit_code == 6
