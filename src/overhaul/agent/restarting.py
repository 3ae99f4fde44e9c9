"""Asking for a restart, and what to tell when it does not come at once."""

from overhaul.agent.outcomes import Restart, RestartAnswer
from overhaul.agent.ports import Device
from overhaul.errors import OverhaulError


def ask_for_restart(device: Device, *, urgent: bool) -> RestartAnswer:
    """Ask for a restart; that it must wait or cannot be asked for undoes nothing, so it is told and not raised."""
    try:
        asked = device.restarter.restart(urgent=urgent)
    except OverhaulError as error:
        return RestartAnswer(restart=Restart.POSTPONED, reason=str(error))
    return RestartAnswer(restart=Restart.REQUESTED if asked else Restart.LEFT_TO_OWNER)
