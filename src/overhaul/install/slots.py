"""The slots: where a system can be booted from, and which of them an update may overwrite."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from overhaul.errors import DeviceError
from overhaul.install.boot import BootControl, SlotStatus
from overhaul.install.state import DeviceState


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A block device or a file that holds one system."""

    name: str
    path: Path


class SlotUnusableError(DeviceError):
    """A slot is not there, or is neither a block device nor a file."""

    def __init__(self, *, slot: Slot, reason: str) -> None:
        self.slot = slot
        self.reason = reason
        super().__init__(
            f"Slot {slot.name} at {slot.path} cannot be used: {reason}. Correct [slots] in the configuration."
        )


class SlotTooSmallError(DeviceError):
    """An image that does not fit its slot."""

    def __init__(self, *, slot: Slot, size_bytes: int, needed_bytes: int) -> None:
        self.slot = slot
        self.size_bytes = size_bytes
        self.needed_bytes = needed_bytes
        super().__init__(
            f"Slot {slot.name} at {slot.path} has {size_bytes} bytes, but the image needs {needed_bytes}; enlarge the "
            "slot or publish a smaller image."
        )


class SlotMountedError(DeviceError):
    """The slot to be overwritten is in use."""

    def __init__(self, *, slot: Slot, mounted_at: str) -> None:
        self.slot = slot
        self.mounted_at = mounted_at
        super().__init__(
            f"Slot {slot.name} at {slot.path} is mounted at {mounted_at}; unmount it, then run the update again."
        )


class NoIdleSlotError(DeviceError):
    """There is nowhere to install to."""

    def __init__(self, *, booted: str) -> None:
        self.booted = booted
        super().__init__(f"There is no slot beside {booted}, which runs; name at least two slots in the configuration.")


def slot_size(slot: Slot) -> int:
    """Return the bytes of a slot."""
    try:
        descriptor = os.open(slot.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SlotUnusableError(slot=slot, reason=error.strerror or str(error)) from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISBLK(mode) or stat.S_ISREG(mode)):
            raise SlotUnusableError(slot=slot, reason="it is neither a block device nor a file")
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def refuse_mounted(slot: Slot, *, mounts: Path = Path("/proc/self/mounts"), devices: Path = Path("/sys/block")) -> None:
    """Raise `SlotMountedError` when `slot`, or a loop device on the file that it is, is the source of a mount."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except FileNotFoundError:
        return
    real = os.path.realpath(slot.path)
    names = {real, *_loop_devices(real, devices)}
    for line in lines:
        source, mounted_at, *_rest = line.split(" ")
        if source.startswith("/") and os.path.realpath(source) in names:
            raise SlotMountedError(slot=slot, mounted_at=mounted_at)


def _loop_devices(file: str, devices: Path) -> Iterator[str]:
    """Yield the loop devices that show the bytes of `file`."""
    for backing in devices.glob("loop*/loop/backing_file"):
        try:
            shown = backing.read_text(errors="surrogateescape").removesuffix("\n")
        except OSError:
            # Detached while we looked.
            continue
        if shown == file:
            yield f"/dev/{backing.parents[1].name}"


def idle_slot(slots: Mapping[str, Slot], boot: BootControl, state: DeviceState) -> Slot:
    """Return the slot the next update is written to, never the running one.

    An interrupted update goes on where it was. Else a bad slot is taken before a good one, so that with more than
    two slots the last good systems live longest.
    """
    booted = boot.booted()
    others = [slot for name, slot in slots.items() if name != booted]
    if not others:
        raise NoIdleSlotError(booted=booted)
    if state.target is not None and any(slot.name == state.target.slot for slot in others):
        return slots[state.target.slot]
    return min(others, key=lambda slot: boot.state(slot.name).status is not SlotStatus.BAD)
