"""Every phase against everything the boot loader can tell: the table of `agent.recovery`, row by row."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.agent.recovery import BootView, settle
from overhaul.install.boot import SlotStatus
from overhaul.install.state import DeviceState, EventKind, Phase, SlotContent, Target
from overhaul.release.record import ReleaseId

GOOD, TRIAL, BAD = SlotStatus.GOOD, SlotStatus.TRIAL, SlotStatus.BAD
CONTENT = SlotContent(release=ReleaseId(product="weather", variant="lite", arch="amd64", version="2.0", build_id="b2"))
IN_TARGET, BESIDE = "B", "A"


@dataclass(frozen=True)
class Row:
    phase: Phase
    booted: str
    status: SlotStatus
    becomes: Phase
    event: EventKind | None = None
    refuses: bool = False
    tells: SlotStatus | None = None
    #: Whether the device was started since the target was handed over.
    started: bool = True


ROWS = [
    Row(Phase.INSTALLING, BESIDE, GOOD, Phase.INSTALLING),
    Row(Phase.INSTALLING, BESIDE, BAD, Phase.INSTALLING),
    Row(Phase.INSTALLING, IN_TARGET, BAD, Phase.INSTALLING),
    Row(Phase.INSTALLED, BESIDE, BAD, Phase.INSTALLED),
    Row(Phase.INSTALLED, BESIDE, TRIAL, Phase.AWAITING_REBOOT, tells=TRIAL),
    # A roll back by hand that was interrupted: the slot gone back to is good from before.
    Row(Phase.INSTALLED, BESIDE, GOOD, Phase.INSTALLED),
    Row(Phase.INSTALLED, IN_TARGET, GOOD, Phase.IDLE, EventKind.CONFIRMED, tells=GOOD),
    Row(Phase.INSTALLED, IN_TARGET, TRIAL, Phase.TRIAL),
    Row(Phase.INSTALLED, IN_TARGET, BAD, Phase.TRIAL),
    Row(Phase.AWAITING_REBOOT, BESIDE, TRIAL, Phase.AWAITING_REBOOT, started=False),
    Row(Phase.AWAITING_REBOOT, BESIDE, TRIAL, Phase.IDLE, EventKind.FELL_BACK, refuses=True, tells=BAD),
    Row(Phase.AWAITING_REBOOT, BESIDE, BAD, Phase.IDLE, EventKind.FELL_BACK, refuses=True, tells=BAD),
    Row(Phase.AWAITING_REBOOT, BESIDE, GOOD, Phase.IDLE, EventKind.CONFIRMED),
    Row(Phase.AWAITING_REBOOT, IN_TARGET, TRIAL, Phase.TRIAL),
    Row(Phase.AWAITING_REBOOT, IN_TARGET, BAD, Phase.TRIAL),
    Row(Phase.TRIAL, IN_TARGET, TRIAL, Phase.TRIAL),
    Row(Phase.TRIAL, IN_TARGET, BAD, Phase.TRIAL),
    Row(Phase.TRIAL, IN_TARGET, GOOD, Phase.IDLE, EventKind.CONFIRMED, tells=GOOD),
    Row(Phase.TRIAL, BESIDE, GOOD, Phase.IDLE, EventKind.CONFIRMED),
    Row(Phase.TRIAL, BESIDE, BAD, Phase.IDLE, EventKind.FELL_BACK, refuses=True, tells=BAD),
    Row(Phase.TRIAL, BESIDE, TRIAL, Phase.IDLE, EventKind.FELL_BACK, refuses=True, tells=BAD),
    Row(Phase.GIVING_UP, IN_TARGET, TRIAL, Phase.GIVING_UP, tells=BAD),
    Row(Phase.GIVING_UP, IN_TARGET, BAD, Phase.GIVING_UP, tells=BAD),
    Row(Phase.GIVING_UP, BESIDE, BAD, Phase.IDLE, EventKind.ROLLED_BACK, tells=BAD),
    Row(Phase.GIVING_UP, BESIDE, TRIAL, Phase.IDLE, EventKind.ROLLED_BACK, tells=BAD),
]


def state_in(phase: Phase) -> DeviceState:
    target = Target(slot="B", content=CONTENT, fallback="A", armed_in_boot="before")
    return DeviceState(phase=phase, rollout_id="0" * 32, target=target)


def view(booted: str, status: SlotStatus, *, started: bool = True) -> BootView:
    return BootView(booted=booted, boot_id="now" if started else "before", target_status=status)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.phase}-in-{row.booted}-{row.status}-{row.started}")
def test_each_row_of_the_table(row: Row) -> None:
    settled = settle(state_in(row.phase), view(row.booted, row.status, started=row.started), now=7)
    assert settled.state.phase is row.becomes
    assert (settled.state.target is None) == (row.becomes is Phase.IDLE)
    assert [event.kind for event in settled.state.history] == ([row.event] if row.event else [])
    assert [refused.version for refused in settled.state.refused] == (["2.0"] if row.refuses else [])
    assert settled.tell is row.tells


def test_nothing_under_way_stays_as_it_is() -> None:
    state = DeviceState(rollout_id="0" * 32)
    assert settle(state, BootView(booted="B", boot_id="x", target_status=None), now=7).state is state


@given(
    phase=st.sampled_from([phase for phase in Phase if phase is not Phase.IDLE]),
    booted=st.sampled_from(["A", "B"]),
    status=st.sampled_from(SlotStatus),
    started=st.booleans(),
)
def test_settling_twice_says_nothing_new(phase: Phase, booted: str, status: SlotStatus, started: bool) -> None:
    told = view(booted, status, started=started)
    once = settle(state_in(phase), told, now=7)
    after = BootView(booted=booted, boot_id=told.boot_id, target_status=once.tell or status)
    twice = settle(once.state, after, now=8)
    assert twice.state == once.state
    assert twice.tell in {None, once.tell}


@given(
    phase=st.sampled_from([phase for phase in Phase if phase is not Phase.IDLE]),
    booted=st.sampled_from(["A", "B"]),
    status=st.sampled_from(SlotStatus),
    started=st.booleans(),
)
def test_the_target_is_called_bad_only_when_it_is_given_up(
    phase: Phase, booted: str, status: SlotStatus, started: bool
) -> None:
    settled = settle(state_in(phase), view(booted, status, started=started), now=7)
    assert settled.tell is not SlotStatus.BAD or settled.state.phase in {Phase.IDLE, Phase.GIVING_UP}
