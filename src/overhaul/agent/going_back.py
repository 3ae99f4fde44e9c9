"""Rolling back by hand: away from what runs, or from what was about to."""

import msgspec

from overhaul.agent.beginning import Session, running_release, session
from overhaul.agent.confirming import give_up
from overhaul.agent.outcomes import RolledBack
from overhaul.agent.ports import Device
from overhaul.agent.recovery import event_of
from overhaul.agent.reporting import ReportOutcome
from overhaul.agent.restarting import ask_for_restart
from overhaul.agent.updating import arm, call_off, report_target
from overhaul.errors import DeviceError
from overhaul.install.boot import SlotStatus
from overhaul.install.state import (
    DeviceState,
    EventKind,
    Phase,
    RefusedVersion,
    SlotContent,
    Target,
    with_event,
    with_refused,
)
from overhaul.release.record import ReleaseId

_BY_HAND = "rolled back by hand"


class NowhereToGoBackError(DeviceError):
    """No other slot holds a confirmed system."""

    def __init__(self, *, booted: str) -> None:
        self.booted = booted
        super().__init__(
            f"Slot {booted} runs, and no other slot holds a confirmed system to go back to; "
            "`overhaul device status` shows them."
        )


def roll_back(device: Device) -> RolledBack:
    """Go back to the other confirmed slot, or call off an update that has not run yet.

    The version that is left is refused from now on. The slot gone back to must pass its health check as after an
    update; should it not come up, the device returns by itself to the slot that runs now. Asked again before the
    restart, it goes on with what was asked.

    Raises:
        NowhereToGoBackError: There is no other confirmed slot.
    """
    with session(device) as opened:
        booted, target, phase = opened.view.booted, opened.state.target, opened.state.phase
        running = running_release(device, opened.state, booted=booted)
        if target is not None and target.slot == booted and phase in {Phase.TRIAL, Phase.GIVING_UP}:
            report_target(opened, target, ReportOutcome.ROLLED_BACK)
            answer = give_up(opened, target, kind=EventKind.ROLLED_BACK, reason=_BY_HAND)
            back = running_release(device, opened.state, booted=target.fallback)
            return RolledBack(slot=target.fallback, from_release=running, to_release=back, restart=answer)
        if target is not None and phase in {Phase.INSTALLED, Phase.AWAITING_REBOOT}:
            if target.is_going_back:
                return _ask_to_go_back(opened, running, target)
            opened.save(_refusing(opened, target.content.release))
            call_off(opened, reason=_BY_HAND)
            return RolledBack(slot=booted, from_release=target.content.release, to_release=None, restart=None)
        return _go_to_other_slot(opened, running)


def _go_to_other_slot(opened: Session, running: ReleaseId) -> RolledBack:
    device, booted = opened.device, opened.view.booted
    slot, content = _other_good_slot(opened)
    target = Target(slot=slot, content=content, fallback=booted, is_going_back=True)
    known = {booted: SlotContent(release=running), **opened.state.slots}
    leaving = msgspec.structs.replace(_refusing(opened, running), phase=Phase.INSTALLED, target=target, slots=known)
    opened.save(with_event(leaving, event_of(target, EventKind.STARTED, now=device.now(), detail=_BY_HAND)))
    return _ask_to_go_back(opened, running, target)


def _ask_to_go_back(opened: Session, running: ReleaseId, target: Target) -> RolledBack:
    if opened.state.phase is Phase.INSTALLED:
        # Not when it is armed: systemd-boot's entry is taken back before it is made again.
        arm(opened)
    answer = ask_for_restart(opened.device, urgent=True)
    return RolledBack(slot=target.slot, from_release=running, to_release=target.content.release, restart=answer)


def _other_good_slot(opened: Session) -> tuple[str, SlotContent]:
    device, booted = opened.device, opened.view.booted
    for slot in device.slots:
        content = opened.state.slots.get(slot)
        if slot != booted and content is not None and device.boot.state(slot).status is SlotStatus.GOOD:
            return slot, content
    raise NowhereToGoBackError(booted=booted)


def _refusing(opened: Session, release: ReleaseId) -> DeviceState:
    return with_refused(
        opened.state,
        RefusedVersion(version=release.version, build_id=release.build_id, reason=_BY_HAND, at=opened.device.now()),
    )
