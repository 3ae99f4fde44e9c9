"""What a state means after a restart: a pure function from what is remembered and what runs to what is true now.

The agent can be killed, and the device can lose power, between any two durable steps. Every command begins here.

    phase             the target runs                    another slot runs
    INSTALLING        left alone (not a trial of ours)   left alone; the next update goes on writing
    INSTALLED         TRIAL: the loader had been told    AWAITING_REBOOT if the loader was told, else left alone
    AWAITING_REBOOT   TRIAL                              fell back, unless the device was not started since
    TRIAL             TRIAL, until it is confirmed       fell back
    GIVING_UP         stays, a restart is needed         IDLE

A target that the boot loader had on trial and calls good was confirmed: the confirmation reached the loader and the
agent was killed before it wrote its own note. Falling back means: the version is refused from now on.

What the boot loader seems to know may be the work of a killed agent that is not durable yet, and a power cut would
undo it after the state was stored that rests on it. So what is concluded from it is told to the loader again.
"""

from dataclasses import dataclass

import msgspec

from overhaul.install.boot import BootControl, SlotStatus
from overhaul.install.state import (
    DeviceState,
    Event,
    EventKind,
    Phase,
    RefusedVersion,
    Target,
    with_event,
    with_refused,
)


@dataclass(frozen=True, kw_only=True)
class BootView:
    """What the boot loader tells."""

    booted: str
    boot_id: str
    #: None when there is no target.
    target_status: SlotStatus | None


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The state that is true now, and what the boot loader must be told of the target before it is stored."""

    state: DeviceState
    tell: SlotStatus | None = None
    #: The update that came to nothing because the boot loader went back.
    fell_back_from: Target | None = None


def look_at(boot: BootControl, state: DeviceState) -> BootView:
    """Return what `boot` tells about the running slot and the target of `state`."""
    return BootView(
        booted=boot.booted(),
        boot_id=boot.boot_id(),
        target_status=None if state.target is None else boot.state(state.target.slot).status,
    )


def settle(state: DeviceState, view: BootView, *, now: int) -> Settled:
    """Return what is true now; see the table above."""
    target = state.target
    if target is None:
        return Settled(state=state)
    is_here = view.booted == target.slot
    if view.target_status is SlotStatus.GOOD and (
        state.phase in {Phase.AWAITING_REBOOT, Phase.TRIAL} or (state.phase is Phase.INSTALLED and is_here)
    ):
        # While another slot runs, the order in which they boot is somebody's wish and not ours to change.
        return Settled(state=confirmed(state, target, now=now), tell=SlotStatus.GOOD if is_here else None)
    if is_here:
        return _settle_in_target(state)
    return _settle_beside_target(state, target, view, now=now)


def confirmed(state: DeviceState, target: Target, *, now: int) -> DeviceState:
    """Return the state after the target was confirmed."""
    idle = msgspec.structs.replace(state, phase=Phase.IDLE, target=None, updated_at=now)
    return with_event(idle, event_of(target, EventKind.CONFIRMED, now=now))


def given_up(
    state: DeviceState, target: Target, *, kind: EventKind, reason: str, now: int, refuse: bool = True
) -> DeviceState:
    """Return the state in which the target is not wanted any more; the boot loader is told after it is stored."""
    leaving = msgspec.structs.replace(state, phase=Phase.GIVING_UP, target=target)
    noted = with_event(leaving, event_of(target, kind, now=now, detail=reason))
    return _refusing(noted, target, reason=reason, now=now) if refuse else noted


def event_of(target: Target, kind: EventKind, *, now: int, detail: str = "") -> Event:
    """Return a line of the history about `target`."""
    release = target.content.release
    return Event(at=now, kind=kind, slot=target.slot, version=release.version, build_id=release.build_id, detail=detail)


def _settle_in_target(state: DeviceState) -> Settled:
    if state.phase in {Phase.INSTALLED, Phase.AWAITING_REBOOT}:
        return Settled(state=msgspec.structs.replace(state, phase=Phase.TRIAL))
    if state.phase is Phase.GIVING_UP:
        return Settled(state=state, tell=SlotStatus.BAD)
    return Settled(state=state)


def _settle_beside_target(state: DeviceState, target: Target, view: BootView, *, now: int) -> Settled:
    match state.phase:
        case Phase.INSTALLED if view.target_status is SlotStatus.TRIAL:
            armed = msgspec.structs.replace(target, armed_in_boot=view.boot_id)
            waiting = msgspec.structs.replace(state, phase=Phase.AWAITING_REBOOT, target=armed)
            return Settled(state=waiting, tell=SlotStatus.TRIAL)
        case Phase.AWAITING_REBOOT if view.boot_id == target.armed_in_boot:
            return Settled(state=state)
        case Phase.AWAITING_REBOOT | Phase.TRIAL:
            reason = f"it did not stay up: slot {view.booted} runs again"
            left = _refusing(_idle(state), target, reason=reason, now=now)
            noted = with_event(left, event_of(target, EventKind.FELL_BACK, now=now, detail=reason))
            return Settled(state=noted, tell=SlotStatus.BAD, fell_back_from=target)
        case Phase.GIVING_UP:
            noted = with_event(
                _idle(state), event_of(target, EventKind.ROLLED_BACK, now=now, detail=f"slot {view.booted} runs")
            )
            return Settled(state=noted, tell=SlotStatus.BAD)
        case _:
            return Settled(state=state)


def _idle(state: DeviceState) -> DeviceState:
    return msgspec.structs.replace(state, phase=Phase.IDLE, target=None)


def _refusing(state: DeviceState, target: Target, *, reason: str, now: int) -> DeviceState:
    release = target.content.release
    return with_refused(
        state, RefusedVersion(version=release.version, build_id=release.build_id, reason=reason, at=now)
    )
