"""Installing into slots of Overhaul, on a device without RAUC: `device.toml` names the slots and the boot loader.

The state is the agent's (`install.state`), so that health check, confirmation, roll back and the memory of versions
that failed work as they do for updates of its own: `overhaul device confirm` runs after the restart. The order of the
durable steps is the agent's as well; run again after a kill, most bytes are found in place.

    1  the bundle is fetched, verified and read       nothing is changed before that
    2  state INSTALLING, then the slot marked bad
    3  the slot filled and read back
    4  state INSTALLED, the boot loader told, state AWAITING_REBOOT
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from overhaul.dialects.atomupd.device.asking import client_fetcher
from overhaul.dialects.atomupd.device.bundle import (
    MAX_BUNDLE_BYTES,
    BundleContent,
    UnsuitableBundleError,
    open_bundle,
)
from overhaul.dialects.atomupd.device.installing import Bundle
from overhaul.dialects.atomupd.device.progress import StepProgress, Tell
from overhaul.dialects.atomupd.device.settings import ClientSettings
from overhaul.dialects.atomupd.device.storefill import STEPS, fill_slot
from overhaul.errors import DeviceError
from overhaul.host.locks import locked
from overhaul.install.boot import BootControl, SlotStatus
from overhaul.install.opening import open_boot
from overhaul.install.settings import DeviceSettings
from overhaul.install.settings import load_settings as load_device
from overhaul.install.slots import Slot, SlotTooSmallError, idle_slot, refuse_mounted, slot_size
from overhaul.install.state import DeviceState, Event, EventKind, Phase, SlotContent, StateFile, Target, with_event
from overhaul.release.record import ReleaseId
from overhaul.transfer.fetcher import Fetcher
from overhaul.transfer.fetching import fetch_bytes
from overhaul.transfer.resuming import ResumingFetcher


class UnconfirmedError(DeviceError):
    """The running slot is not confirmed, so the other one is still needed."""

    def __init__(self, *, slot: str) -> None:
        self.slot = slot
        super().__init__(
            f"Slot {slot} runs and is not confirmed, so the other slot must stay as it is; run "
            "`overhaul device confirm` first."
        )


class UnsettledError(DeviceError):
    """An earlier update came to an end that nobody has looked at."""

    def __init__(self, *, phase: Phase) -> None:
        self.phase = phase
        super().__init__(
            f"An earlier update is {phase} and the device was started since; run `overhaul device status`, then try "
            "again."
        )


class RefusedVersionError(DeviceError):
    """This image failed on this device before."""

    def __init__(self, *, version: str, build_id: str, reason: str) -> None:
        self.version = version
        self.build_id = build_id
        self.reason = reason
        super().__init__(f"{version} {build_id} was installed before and is refused since then ({reason}).")


def open_slots(settings: ClientSettings) -> "SlotInstaller":
    """Return the installer into the slots of the device's own configuration."""
    device = load_device(settings.device_configuration)
    return SlotInstaller(
        device,
        boot=open_boot(device),
        keyring=settings.keyring,
        compatible=settings.compatible,
        open_fetcher=lambda url: ResumingFetcher(client_fetcher(settings, url=url), wait=time.sleep),
        clock=time.time,
    )


class SlotInstaller:
    """Installs casync bundles into slots of Overhaul."""

    def __init__(
        self,
        device: DeviceSettings,
        *,
        boot: BootControl,
        keyring: Path,
        compatible: str,
        open_fetcher: Callable[[str], Fetcher],
        clock: Callable[[], float],
    ) -> None:
        self._device = device
        self._boot = boot
        self._keyring = keyring
        self._compatible = compatible
        self._open_fetcher = open_fetcher
        self._clock = clock
        self._states = StateFile(Path(device.state_directory))
        self._slots = {name: Slot(name=name, path=path) for name, path in device.slot_paths.items()}

    def install(self, bundle: Bundle, *, tell: Tell) -> None:
        """Install `bundle`, and have the boot loader try it."""
        directory = Path(self._device.state_directory)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(directory / "lock", purpose="The agent of this device"):
            self._install(bundle, tell)

    def _install(self, bundle: Bundle, tell: Tell) -> None:
        tell("0%")
        state = self._states.load()
        booted = self._boot.booted()
        if self._boot.state(booted).status is not SlotStatus.GOOD:
            raise UnconfirmedError(slot=booted)
        self._refuse_unsettled(state)
        content = self._opened(bundle)
        release = self._release_of(bundle, content)
        self._refuse_failed(state, release)
        target = state.target
        if target is None or target.content.release != release or state.phase is Phase.INSTALLING:
            target, state = self._write(
                state, booted=booted, release=release, content=content, store_url=_store_of(bundle), tell=tell
            )
        tell("95%")
        self._boot.try_next(target.slot, attempts=self._device.boot.attempts)
        armed = msgspec.structs.replace(target, armed_in_boot=self._boot.boot_id())
        self._states.save(msgspec.structs.replace(state, phase=Phase.AWAITING_REBOOT, target=armed))
        tell("100%")

    def _write(
        self,
        state: DeviceState,
        *,
        booted: str,
        release: ReleaseId,
        content: BundleContent,
        store_url: str,
        tell: Tell,
    ) -> tuple[Target, DeviceState]:
        slot = idle_slot(self._slots, self._boot, state)
        refuse_mounted(slot)
        size = slot_size(slot)
        # An empty file is a slot that was never written; it grows to what it gets.
        if size and size < content.image_size:
            raise SlotTooSmallError(slot=slot, size_bytes=size, needed_bytes=content.image_size)
        slot_content = SlotContent(release=release, image_size=content.image_size)
        target = Target(slot=slot.name, content=slot_content, fallback=booted)
        others = {name: known for name, known in state.slots.items() if name != slot.name}
        begun = msgspec.structs.replace(state, phase=Phase.INSTALLING, target=target, slots=others)
        if state.target is None or state.target.content.release != release:
            begun = with_event(begun, self._event(EventKind.STARTED, target))
        self._states.save(begun)
        self._boot.mark_bad(slot.name)
        fill_slot(
            content.index,
            target=slot.path,
            source=self._slots[booted].path,
            store_url=store_url,
            open_fetcher=lambda: self._open_fetcher(store_url),
            progress=StepProgress(tell, STEPS),
        )
        installed = msgspec.structs.replace(
            begun, phase=Phase.INSTALLED, slots={**begun.slots, slot.name: slot_content}
        )
        installed = with_event(installed, self._event(EventKind.INSTALLED, target))
        self._states.save(installed)
        return target, installed

    def _opened(self, bundle: Bundle) -> BundleContent:
        with _private_directory(Path(self._device.state_directory)) as work:
            copy = work / "bundle.raucb"
            copy.write_bytes(self._bytes_of(bundle.url))
            content = open_bundle(copy, url=bundle.url, keyring=self._keyring, work=work)
        if self._compatible and content.compatible != self._compatible:
            raise UnsuitableBundleError(
                url=bundle.url, reason=f"it is for {content.compatible!r} and this device is {self._compatible!r}"
            )
        return content

    def _bytes_of(self, url: str) -> bytes:
        if "://" in url:
            return fetch_bytes(self._open_fetcher(url), url, limit_bytes=MAX_BUNDLE_BYTES)
        try:
            with Path(url).open("rb") as stream:
                data = stream.read(MAX_BUNDLE_BYTES + 1)
        except OSError as error:
            raise UnsuitableBundleError(url=url, reason=error.strerror or str(error)) from error
        if len(data) > MAX_BUNDLE_BYTES:
            raise UnsuitableBundleError(url=url, reason=f"it has more than {MAX_BUNDLE_BYTES} bytes")
        return data

    def _release_of(self, bundle: Bundle, content: BundleContent) -> ReleaseId:
        named = {
            "product": bundle.product or self._device.product,
            "variant": bundle.variant or self._device.variant,
            "arch": bundle.arch or self._device.arch,
            "version": bundle.version or content.version,
            "build_id": bundle.build_id or content.version,
        }
        try:
            return msgspec.convert(named, ReleaseId)
        except msgspec.ValidationError as error:
            raise UnsuitableBundleError(url=bundle.url, reason=f"it has no usable name ({error})") from error

    def _refuse_unsettled(self, state: DeviceState) -> None:
        started_since = state.target is not None and state.target.armed_in_boot != self._boot.boot_id()
        if state.phase in {Phase.TRIAL, Phase.GIVING_UP} or (state.phase is Phase.AWAITING_REBOOT and started_since):
            raise UnsettledError(phase=state.phase)

    def _refuse_failed(self, state: DeviceState, release: ReleaseId) -> None:
        for refused in state.refused:
            if (refused.version, refused.build_id) == (release.version, release.build_id):
                raise RefusedVersionError(version=release.version, build_id=release.build_id, reason=refused.reason)

    def _event(self, kind: EventKind, target: Target) -> Event:
        release = target.content.release
        return Event(
            at=int(self._clock()), kind=kind, slot=target.slot, version=release.version, build_id=release.build_id
        )


def _store_of(bundle: Bundle) -> str:
    return bundle.store_url or bundle.url.removesuffix(".raucb") + ".castr"


@contextmanager
def _private_directory(parent: Path) -> Iterator[Path]:
    """Yield an empty directory that nobody else can look into; what a killed run left in it is removed first."""
    directory = parent / "incoming-bundle"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
