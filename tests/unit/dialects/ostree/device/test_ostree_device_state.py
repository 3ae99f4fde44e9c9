"""What the updater remembers means after a restart: every line of the table in `state`, and the file itself."""

from pathlib import Path

import pytest

from overhaul.dialects.ostree.device.bootentry import BootEntry
from overhaul.dialects.ostree.device.state import (
    EventKind,
    Phase,
    StateFile,
    Target,
    UpdateState,
    refusing,
    settle,
    with_event,
)
from overhaul.dialects.ostree.device.sysroot import Deployment, merge_deployment
from overhaul.install.statefile import StateUnreadableError

OLD, NEW = "a" * 64, "b" * 64


def deployment(commit: str, *, booted: bool = False, serial: int = 0, osname: str = "example") -> Deployment:
    entry = BootEntry(title="x", version=1, arguments=(), linux="/x")
    return Deployment(
        osname=osname, commit=commit, serial=serial, entry=entry, boot_checksum="c" * 64, origin=None, is_booted=booted
    )


def state(phase: Phase) -> UpdateState:
    is_deployed = phase is not Phase.FETCHED
    target = Target(
        osname="example",
        commit=NEW,
        deployment=f"{NEW}.0" if is_deployed else "",
        fallback=f"{OLD}.0" if is_deployed else "",
        armed_in_boot="first" if is_deployed else "",
    )
    return UpdateState(phase=phase, target=target)


NEW_RUNS = (deployment(NEW, booted=True), deployment(OLD))
OLD_RUNS = (deployment(NEW), deployment(OLD, booted=True))
OLD_FIRST = (deployment(OLD, booted=True), deployment(NEW))
OLD_FIRST_NEW_RUNS = (deployment(OLD), deployment(NEW, booted=True))
NEW_GONE = (deployment(OLD, booted=True),)
NOTHING_RUNS = (deployment(NEW), deployment(OLD))


@pytest.mark.parametrize(
    ("phase", "deployments", "boot_id", "expected", "wanted"),
    [
        (Phase.FETCHED, NEW_GONE, "first", Phase.FETCHED, None),
        (Phase.FETCHED, OLD_RUNS, "first", Phase.DEPLOYED, None),
        (Phase.FETCHED, NEW_RUNS, "second", Phase.DEPLOYED, None),
        (Phase.FETCHED, OLD_FIRST, "first", Phase.FETCHED, None),
        (Phase.DEPLOYED, OLD_RUNS, "first", Phase.DEPLOYED, None),
        (Phase.DEPLOYED, OLD_RUNS, "second", Phase.DEPLOYED, None),
        (Phase.DEPLOYED, NEW_RUNS, "second", Phase.DEPLOYED, None),
        (Phase.DEPLOYED, OLD_FIRST, "first", Phase.IDLE, None),
        (Phase.DEPLOYED, NEW_GONE, "first", Phase.IDLE, None),
        (Phase.READY, OLD_RUNS, "first", Phase.READY, None),
        (Phase.READY, NEW_RUNS, "first", Phase.READY, None),
        (Phase.READY, NEW_RUNS, "second", Phase.TRIAL, None),
        (Phase.READY, OLD_RUNS, "second", Phase.GIVING_UP, f"{OLD}.0"),
        (Phase.READY, OLD_FIRST, "second", Phase.IDLE, None),
        (Phase.READY, NOTHING_RUNS, "second", Phase.READY, None),
        (Phase.TRIAL, NEW_RUNS, "second", Phase.TRIAL, None),
        (Phase.TRIAL, OLD_RUNS, "third", Phase.GIVING_UP, f"{OLD}.0"),
        (Phase.GIVING_UP, NEW_RUNS, "second", Phase.GIVING_UP, f"{OLD}.0"),
        (Phase.GIVING_UP, OLD_RUNS, "third", Phase.GIVING_UP, f"{OLD}.0"),
        (Phase.LEAVING, OLD_FIRST_NEW_RUNS, "second", Phase.LEAVING, None),
        (Phase.LEAVING, NEW_RUNS, "second", Phase.GIVING_UP, f"{OLD}.0"),
        (Phase.LEAVING, OLD_FIRST, "third", Phase.IDLE, None),
        (Phase.LEAVING, NEW_GONE, "third", Phase.IDLE, None),
    ],
)
def test_each_line_of_the_table(
    phase: Phase, deployments: tuple[Deployment, ...], boot_id: str, expected: Phase, wanted: str | None
) -> None:
    settled = settle(state(phase), deployments, boot_id=boot_id, now=1)
    assert (settled.state.phase, settled.wanted_default) == (expected, wanted)
    assert settled.wanted_hooks is None
    assert (settled.state.target is None) == (expected is Phase.IDLE)
    fell_back = phase in {Phase.READY, Phase.TRIAL} and (wanted is not None or expected is Phase.IDLE)
    is_judged = fell_back and not (phase is Phase.READY and deployments is OLD_FIRST)
    assert (settled.state.refusal(NEW) is not None) == is_judged


@pytest.mark.parametrize("deployments", [OLD_FIRST_NEW_RUNS, OLD_FIRST, NEW_GONE])
def test_going_back_is_not_done_before_the_hooks_have_run(deployments: tuple[Deployment, ...]) -> None:
    settled = settle(state(Phase.GIVING_UP), deployments, boot_id="third", now=1)
    assert settled.state == state(Phase.GIVING_UP)
    assert (settled.wanted_default, settled.wanted_hooks) == (None, f"{OLD}.0")


def test_what_did_not_stay_up_is_refused_and_the_hooks_run_for_the_old_one() -> None:
    settled = settle(state(Phase.TRIAL), OLD_FIRST, boot_id="third", now=1)
    assert (settled.state.phase, settled.wanted_hooks) == (Phase.GIVING_UP, f"{OLD}.0")
    assert settled.state.refusal(NEW) is not None


@pytest.mark.parametrize("phase", [phase for phase in Phase if phase is not Phase.IDLE])
@pytest.mark.parametrize("deployments", [NEW_RUNS, OLD_RUNS, OLD_FIRST, OLD_FIRST_NEW_RUNS, NEW_GONE, NOTHING_RUNS])
def test_settling_what_is_settled_changes_nothing(phase: Phase, deployments: tuple[Deployment, ...]) -> None:
    once = settle(state(phase), deployments, boot_id="second", now=1)
    assert settle(once.state, deployments, boot_id="second", now=2) == once


def test_nothing_under_way_stays_so() -> None:
    assert settle(UpdateState(), OLD_RUNS, boot_id="x", now=1).state == UpdateState()


def test_a_state_is_read_as_it_was_stored(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "made")
    assert file.load() == UpdateState()
    stored = refusing(state(Phase.READY), Target(osname="example", commit=OLD), reason="sick", now=3)
    file.save(stored)
    assert file.load() == stored
    assert file.load().refusal(OLD) == "sick"


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b'{"format": 2}', b'{"phase": "trial"}', b"[" * 100_000, b'{"target": 1}']
)
def test_a_damaged_state_is_never_begun_anew_silently(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "state.json").write_bytes(data)
    with pytest.raises(StateUnreadableError, match=r"state\.json"):
        StateFile(tmp_path).load()


def test_a_commit_is_refused_once_with_the_last_reason_and_the_history_is_bounded() -> None:
    held = UpdateState()
    target = Target(osname="example", commit=NEW)
    for number in range(200):
        held = with_event(refusing(held, target, reason=str(number), now=number), EventKind.FETCHED, NEW, now=number)
    assert [one.reason for one in held.refused] == ["199"]
    assert len(held.history) == 100


def test_configuration_comes_from_what_runs_and_else_from_what_boots_next() -> None:
    other = deployment(OLD, osname="other", booted=True)
    first, second = deployment(NEW), deployment(OLD)
    assert merge_deployment((first, second, other), "example") is first
    running = deployment(OLD, booted=True)
    assert merge_deployment((first, running), "example") is running
    assert merge_deployment((other,), "example") is None
