"""From a verified image to a system that boots it: OpenWrt's `sysupgrade`, or the idle one of two slots.

On a device with slots the order of the durable steps is the agent's, and so is the memory of them, so that
`overhaul device status` and `confirm` see an update like any other:

    1  state INSTALLING     2  boot.mark_bad     3  bytes, synced and read back from the medium
    4  state INSTALLED      5  boot.try_next     6  state AWAITING_REBOOT

A kill between any two of them leaves the running system the one that boots.
"""

import hashlib
import mmap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from overhaul.content.target import SlotTarget
from overhaul.dialects.asu.device.facts import ask_program
from overhaul.errors import BusyError, DeviceError, TrustError
from overhaul.host.locks import locked
from overhaul.install.boot import BootControl, SlotStatus
from overhaul.install.opening import open_boot
from overhaul.install.settings import DeviceSettings
from overhaul.install.slots import Slot, SlotTooSmallError, idle_slot, refuse_mounted, slot_size
from overhaul.install.state import Event, EventKind, Phase, SlotContent, StateFile, Target, with_event
from overhaul.progress import Progress
from overhaul.release.record import ReleaseId

_PIECE = 1024 * 1024
_ALIGNMENT = 4096


class UnconfirmedSystemError(DeviceError):
    """The running slot is not confirmed, so the other one is still needed."""

    def __init__(self, *, slot: str) -> None:
        self.slot = slot
        super().__init__(f"Slot {slot} runs and is not confirmed; run `overhaul device confirm` first.")


class UpdateUnderWayError(BusyError):
    """The agent has an update of its own that is not over."""

    def __init__(self, *, phase: str) -> None:
        self.phase = phase
        super().__init__(f"The agent's update is {phase}; finish it with a restart, or with `overhaul device update`.")


class NoFileSystemError(TrustError):
    """An image for a slot that is none."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} is no image of a file system that a slot can hold; nothing was written.")


class ReadBackError(DeviceError):
    """The medium does not hold what was written."""

    def __init__(self, *, slot: Slot) -> None:
        self.slot = slot
        super().__init__(
            f"Slot {slot.name} at {slot.path} does not hold what was written to it; its medium is failing."
        )


class Installer(Protocol):
    """Anything that makes an image the next system."""

    def test(self, image: Path) -> None:
        """Refuse an image that cannot be installed here."""

    def install(self, image: Path, *, sha256: str, release: ReleaseId | None, progress: Progress) -> str:
        """Install `image`, whose digest is `sha256`; return a sentence on what comes next."""


class OpenWrtInstaller:
    """Hands the image to OpenWrt's own `sysupgrade`, which keeps the configuration and restarts."""

    def __init__(self, *, ask: Callable[[Sequence[str]], bytes] = ask_program) -> None:
        self._ask = ask

    def test(self, image: Path) -> None:
        """Let the system judge the image: it knows for which boards it was made."""
        self._ask(["sysupgrade", "--test", str(image)])

    def install(
        self,
        image: Path,
        *,
        sha256: str,
        release: ReleaseId | None,  # noqa: ARG002 - this system keeps no record of releases
        progress: Progress,  # noqa: ARG002 - it shows its own
    ) -> str:
        """Install and restart."""
        if _digest(image) != sha256:
            raise NoFileSystemError(path=image)
        self._ask(["sysupgrade", str(image)])
        return "The device restarts with the new image."


class SlotInstaller:
    """Writes the image into the idle slot of a device with two."""

    def __init__(
        self, settings: DeviceSettings, *, boot: BootControl | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._boot = boot or open_boot(settings)
        self._states = StateFile(Path(settings.state_directory))
        self._slots = {name: Slot(name=name, path=path) for name, path in settings.slot_paths.items()}
        self._clock = clock

    def test(self, image: Path) -> None:
        """Refuse what is no file system, or fits no slot."""
        with image.open("rb") as stream:
            head = stream.read(2048)
        is_ext4 = head[1080:1082] == b"\x53\xef"
        is_squashfs = head[:4] == b"hsqs"
        is_erofs = head[1024:1028] == b"\xe2\xe1\xf5\xe0"
        if not (is_ext4 or is_squashfs or is_erofs):
            raise NoFileSystemError(path=image)
        slot = idle_slot(self._slots, self._boot, self._states.load())
        _refuse_unfit(slot, image)

    def install(self, image: Path, *, sha256: str, release: ReleaseId | None, progress: Progress) -> str:
        """Write, read back and arm; the running system stays the one that boots until all of it is true."""
        assert release is not None  # noqa: S101 - a device with slots always names what it installs
        directory = Path(self._settings.state_directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(directory / "lock", purpose="The agent of this device"):
            state = self._states.load()
            booted = self._boot.booted()
            if self._boot.state(booted).status is not SlotStatus.GOOD:
                raise UnconfirmedSystemError(slot=booted)
            if state.phase not in {Phase.IDLE, Phase.INSTALLING}:
                raise UpdateUnderWayError(phase=state.phase.value)
            slot = idle_slot(self._slots, self._boot, state)
            _refuse_unfit(slot, image)
            size = image.stat().st_size
            content = SlotContent(release=release, image_size=size)
            target = Target(slot=slot.name, content=content, fallback=booted)
            others = {name: held for name, held in state.slots.items() if name != slot.name}
            began = msgspec.structs.replace(state, phase=Phase.INSTALLING, target=target, slots=others)
            state = with_event(began, self._event(EventKind.STARTED, slot, release))
            self._states.save(state)
            self._boot.mark_bad(slot.name)
            _write(image, slot, size=size, sha256=sha256, progress=progress)
            written = msgspec.structs.replace(state, phase=Phase.INSTALLED, slots={**others, slot.name: content})
            state = with_event(written, self._event(EventKind.INSTALLED, slot, release))
            self._states.save(state)
            self._boot.try_next(slot.name, attempts=self._settings.boot.attempts)
            armed = msgspec.structs.replace(target, armed_in_boot=self._boot.boot_id())
            self._states.save(msgspec.structs.replace(state, phase=Phase.AWAITING_REBOOT, target=armed))
        return f"Slot {slot.name} holds the image; restart the device to try it."

    def _event(self, kind: EventKind, slot: Slot, release: ReleaseId) -> Event:
        at = int(self._clock())
        return Event(at=at, kind=kind, slot=slot.name, version=release.version, build_id=release.build_id)


def _refuse_unfit(slot: Slot, image: Path) -> None:
    refuse_mounted(slot)
    has, needs = slot_size(slot), image.stat().st_size
    # A file of size 0 is a slot that takes the image's size.
    if has and has < needs:
        raise SlotTooSmallError(slot=slot, size_bytes=has, needed_bytes=needs)


def _write(image: Path, slot: Slot, *, size: int, sha256: str, progress: Progress) -> None:
    written = hashlib.sha256()
    with SlotTarget(slot.path, image_size=size) as target, image.open("rb") as stream:
        progress.begin("Writing", size)
        offset = 0
        while piece := stream.read(_PIECE):
            written.update(piece)
            if any(piece):
                target.write(offset, piece)
            else:
                target.zero(offset, len(piece))
            offset += len(piece)
            progress.advance(len(piece))
        target.sync()
        progress.end()
        # The file may have changed since it was verified; what counts is what the slot was given.
        if written.hexdigest() != sha256:
            raise NoFileSystemError(path=image)
        with target.medium_reader() as reader, mmap.mmap(-1, _PIECE) as buffer, memoryview(buffer) as view:
            progress.begin("Reading back", size)
            held = hashlib.sha256()
            for start in range(0, size, _PIECE):
                wanted = min(_PIECE, size - start)
                try:
                    # Direct reads want whole blocks; behind the image lies the rest of the slot.
                    reader.read_into(view[: -(-wanted // _ALIGNMENT) * _ALIGNMENT], start)
                except OSError as error:
                    raise ReadBackError(slot=slot) from error
                held.update(view[:wanted])
                progress.advance(wanted)
            progress.end()
        if held.hexdigest() != sha256:
            raise ReadBackError(slot=slot)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
