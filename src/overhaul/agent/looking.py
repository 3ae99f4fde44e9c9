"""What a person wants to know of a device: status and history. Neither asks the network."""

from overhaul.agent.beginning import followed_channel, running_release, session
from overhaul.agent.outcomes import SlotReport, Status
from overhaul.agent.ports import Device
from overhaul.install.state import Event


def status(device: Device) -> Status:
    """Return what runs, what boots next, and what is under way."""
    with session(device) as opened:
        state, booted = opened.state, opened.view.booted
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
    with session(device) as opened:
        return opened.state.history
