"""After the restart: the health of the running slot decides whether it stays."""

import msgspec

from overhaul.agent.beginning import Session, followed_channel, running_release, session
from overhaul.agent.outcomes import Confirmed, Restart, RestartAnswer
from overhaul.agent.ports import Device
from overhaul.agent.recovery import confirmed, given_up
from overhaul.agent.reporting import ReportOutcome, report
from overhaul.agent.restarting import ask_for_restart
from overhaul.errors import DeviceError
from overhaul.install.boot import SlotStatus
from overhaul.install.health import CheckResult, UnhealthyError, run_checks
from overhaul.install.state import EventKind, Phase, Target


class UnverifiedSlotError(DeviceError):
    """The running slot is one that no update finished, or that was given up."""

    def __init__(self, *, slot: str, fallback: str, phase: Phase) -> None:
        self.slot = slot
        self.fallback = fallback
        self.phase = phase
        super().__init__(
            f"Slot {slot} runs, but it is not to be kept (phase {phase}); restart the device into slot {fallback}."
        )


def confirm(device: Device) -> Confirmed:
    """Check the health of the running slot, and make it the one that boots from now on.

    A device that was never updated confirms what it runs in the same way.

    Raises:
        UnhealthyError: A trial failed its checks: its version is refused from now on, the old slot boots next.
        UnverifiedSlotError: The running slot is not one that may be confirmed.
    """
    with session(device) as opened:
        booted, target = opened.view.booted, opened.state.target
        running = running_release(device, opened.state, booted=booted)
        if target is None or target.slot != booted:
            return _confirm_without_trial(opened)
        if opened.state.phase is not Phase.TRIAL:
            raise UnverifiedSlotError(slot=booted, fallback=target.fallback, phase=opened.state.phase)
        results = _check_health(device, booted)
        if not all(result.passed for result in results):
            raise _turn_back(opened, target, results)
        device.boot.mark_good(booted)
        opened.save(confirmed(opened.state, target, now=device.now()))
        left = running_release(device, opened.state, booted=target.fallback)
        report(
            device,
            channel=followed_channel(device),
            running=left,
            sought=running,
            outcome=ReportOutcome.CONFIRMED,
            update_id=target.update_id,
        )
        return Confirmed(slot=booted, release=running, checks=results)


def give_up(opened: Session, target: Target, *, kind: EventKind, reason: str) -> RestartAnswer:
    """Leave the running trial: refuse its version, have the old slot boot next, and ask for the restart."""
    device = opened.device
    if opened.state.phase is not Phase.GIVING_UP:
        opened.save(given_up(opened.state, target, kind=kind, reason=reason, now=device.now()))
    device.boot.mark_bad(target.slot)
    # A slot that is not healthy is not kept running until a convenient hour.
    return ask_for_restart(device, urgent=True)


def _confirm_without_trial(opened: Session) -> Confirmed:
    device, booted = opened.device, opened.view.booted
    release = running_release(device, opened.state, booted=booted)
    if device.boot.state(booted).status is SlotStatus.GOOD:
        return Confirmed(slot=booted, release=release, checks=(), was_confirmed=True)
    results = _check_health(device, booted)
    if not all(result.passed for result in results):
        raise UnhealthyError(
            slot=booted, results=results, next_step="It stays unconfirmed; mend it, then run the command again."
        )
    device.boot.mark_good(booted)
    opened.save(msgspec.structs.replace(opened.state, updated_at=device.now()))
    return Confirmed(slot=booted, release=release, checks=results)


def _check_health(device: Device, booted: str) -> tuple[CheckResult, ...]:
    results = run_checks(
        device.settings.health,
        slot=booted,
        path=str(device.slots[booted].path),
        run=device.run,
        monotonic=device.monotonic,
        sleep=device.sleep,
    )
    if device.has_lost_layer(booted):
        # It runs without all that its owner configured; the old slot still has that.
        detail = "the configuration of this slot is not mounted over /etc"
        results += (CheckResult(name="configuration", passed=False, detail=detail, seconds=0.0),)
    return results


def _turn_back(opened: Session, target: Target, results: tuple[CheckResult, ...]) -> UnhealthyError:
    device = opened.device
    failed = "; ".join(f"{result.name}: {result.detail}" for result in results if not result.passed)
    answer = give_up(opened, target, kind=EventKind.UNHEALTHY, reason=failed)
    report(
        device,
        channel=followed_channel(device),
        running=running_release(device, opened.state, booted=target.fallback),
        sought=target.content.release,
        outcome=ReportOutcome.ROLLED_BACK,
        update_id=target.update_id,
    )
    next_step = {
        Restart.REQUESTED: f"The device restarts into slot {target.fallback}",
        Restart.LEFT_TO_OWNER: f"Restart the device: slot {target.fallback} boots then",
        Restart.POSTPONED: f"Slot {target.fallback} boots at the next restart ({answer.reason})",
    }[answer.restart]
    return UnhealthyError(
        slot=target.slot, results=results, next_step=f"{next_step}, and this version is not installed again."
    )
