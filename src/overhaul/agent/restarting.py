"""Asking for a restart, and what to tell when it does not come at once."""

from collections.abc import Callable

from overhaul.agent.outcomes import Restart, RestartAnswer
from overhaul.agent.ports import Device
from overhaul.errors import OverhaulError


def ask_for_restart(device: Device, *, urgent: bool, announce: Callable[[], None] | None = None) -> RestartAnswer:
    """Ask for a restart; that it must wait or cannot be asked for undoes nothing, so it is told and not raised.

    `announce` is called before a restart that this device may make now: afterwards could be too late.
    """
    if announce is not None and _may_restart(device, urgent=urgent):
        announce()
    try:
        asked = device.restarter.restart(urgent=urgent)
    except OverhaulError as error:
        return RestartAnswer(restart=Restart.POSTPONED, reason=str(error))
    return RestartAnswer(restart=Restart.REQUESTED if asked else Restart.LEFT_TO_OWNER)


def _may_restart(device: Device, *, urgent: bool) -> bool:
    settings = device.settings
    if settings.reboot.policy == "never":
        return False
    return urgent or settings.window is None or settings.window.holds(device.clock())
