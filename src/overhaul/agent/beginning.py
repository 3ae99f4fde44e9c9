"""How every command begins: alone, and with a state that is true."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from overhaul.agent.ports import Device
from overhaul.agent.recovery import BootView, look_at, settle
from overhaul.agent.reporting import ReportOutcome, report
from overhaul.errors import DeviceError
from overhaul.host.files import make_directory
from overhaul.host.locks import locked
from overhaul.install.boot import SlotStatus
from overhaul.install.facts import read_hardware, read_os_release
from overhaul.install.state import DeviceState, Target
from overhaul.policy.facts import DeviceFacts
from overhaul.release.record import ReleaseId


class UnknownVersionError(DeviceError):
    """Nothing says what runs here."""

    def __init__(self, *, missing: str, setting: str) -> None:
        self.missing = missing
        super().__init__(
            f"The {missing} of what runs here is not known: os-release does not tell it, and no update of this agent "
            f"did; name it as `{setting}` in the configuration."
        )


@dataclass
class Session:
    """One command's hold on the device: the state as it is now, and what the boot loader told at the beginning."""

    device: Device
    state: DeviceState
    view: BootView

    def save(self, state: DeviceState) -> None:
        """Make `state` the true one, durably."""
        if state != self.state:
            self.device.states.save(state)
            self.state = state


@contextmanager
def session(device: Device) -> Iterator[Session]:
    """Hold the device's lock, and yield a session whose state was settled with the boot loader and stored."""
    make_directory(device.lock_path.parent, mode=0o700)
    with locked(device.lock_path, purpose="The agent of this device"):
        device.states.make_durable()
        state = device.states.load()
        view = look_at(device.boot, state)
        settled = settle(state, view, now=device.now())
        # Told before stored: told twice does no harm, and stored first it might never be told.
        if state.target is not None:
            _tell(device, settled.tell, state.target.slot)
        opened = Session(device, state, view)
        opened.save(settled.state)
        if settled.fell_back_from is not None:
            _report_fall_back(opened, settled.fell_back_from)
        yield opened


def _tell(device: Device, status: SlotStatus | None, slot: str) -> None:
    """Tell the boot loader what `slot` is; it may look as if it knew, and not know it durably."""
    match status:
        case SlotStatus.BAD:
            device.boot.mark_bad(slot)
        case SlotStatus.TRIAL:
            device.boot.try_next(slot, attempts=device.settings.boot.attempts)
        case SlotStatus.GOOD:
            device.boot.mark_good(slot)


def _report_fall_back(opened: Session, target: Target) -> None:
    """Report that the boot loader went back, when it is known from what to what."""
    try:
        channel = followed_channel(opened.device)
        running = running_release(opened.device, opened.state, booted=opened.view.booted)
    except UnknownVersionError:
        return
    report(
        opened.device,
        channel=channel,
        running=running,
        sought=target.content.release,
        outcome=ReportOutcome.ROLLED_BACK,
        update_id=target.update_id,
    )


def running_release(device: Device, state: DeviceState, *, booted: str) -> ReleaseId:
    """Return what runs: what the agent installed there, else what the configuration or os-release says."""
    content = state.slots.get(booted)
    if content is not None:
        return content.release
    settings = device.settings
    told = read_os_release(Path(device.settings.facts_root))
    version, build_id = settings.version or told.version, settings.build_id or told.build_id
    if not version:
        raise UnknownVersionError(missing="version", setting="version")
    if not build_id:
        raise UnknownVersionError(missing="build id", setting="build_id")
    try:
        return msgspec.convert(
            {
                "product": settings.product,
                "variant": settings.variant,
                "arch": settings.arch,
                "version": version,
                "build_id": build_id,
            },
            ReleaseId,
        )
    except msgspec.ValidationError as error:
        raise UnknownVersionError(missing=f"version in a usable form ({error})", setting="version") from error


def followed_channel(device: Device) -> str:
    """Return the channel of the configuration, else of os-release."""
    channel = device.settings.channel or read_os_release(Path(device.settings.facts_root)).channel
    if not channel:
        raise UnknownVersionError(missing="channel", setting="channel")
    return channel


def device_facts(device: Device, state: DeviceState, running: ReleaseId) -> DeviceFacts:
    """Return what the policy decides by."""
    return DeviceFacts(
        product=running.product,
        variant=device.settings.variant,
        arch=device.settings.arch,
        channel=followed_channel(device),
        version=running.version,
        build_id=running.build_id,
        hardware=read_hardware(Path(device.settings.facts_root)),
        rollout_id=state.rollout_id,
        refused=tuple((refused.version, refused.build_id) for refused in state.refused),
    )
