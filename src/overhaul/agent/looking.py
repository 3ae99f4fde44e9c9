"""What a person wants to know of a device: status and history.

Neither asks the network, takes the lock or changes anything, so both answer while an update runs.
"""

from overhaul.agent.beginning import followed_channel, running_release
from overhaul.agent.outcomes import SlotReport, Status
from overhaul.agent.ports import Device
from overhaul.agent.recovery import look_at, settle
from overhaul.install.state import DeviceState, Event


def status(device: Device) -> Status:
    """Return what runs, what boots next, and what is under way."""
    state = _settled(device)
    booted = device.boot.booted()
    slots: dict[str, SlotReport] = {}
    for name, slot in device.slots.items():
        told = device.boot.state(name)
        slots[name] = SlotReport(
            path=str(slot.path),
            status=told.status,
            attempts_left=told.attempts_left,
            content=state.slots.get(name),
        )
    return Status(
        running=running_release(device, state, booted=booted),
        running_slot=booted,
        next_slot=device.boot.primary(),
        phase=state.phase,
        target=state.target.content if state.target else None,
        channel=followed_channel(device),
        slots=slots,
        refused=state.refused,
        last_event=state.history[-1] if state.history else None,
        checked_at=state.checked_at,
    )


def history(device: Device) -> tuple[Event, ...]:
    """Return what happened on this device, the oldest first."""
    return _settled(device).history


def _settled(device: Device) -> DeviceState:
    """Return the state as the next command that changes something would find it."""
    state = device.states.load()
    return settle(state, look_at(device.boot, state), now=device.now()).state
