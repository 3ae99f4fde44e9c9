"""Updating from a kit, without a network, and bringing the receipt home in it.

The kit takes the place of the network and nothing else changes: `agent.updating` runs as it always does, so trust,
policy, rollouts, floors and the order of the durable steps are those of an online update. Instead of being posted,
reports are written into the kit; a kit that comes by again collects how the installation ended.
"""

import dataclasses
import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import msgspec

from overhaul.agent.beginning import followed_channel
from overhaul.agent.looking import history
from overhaul.agent.outcomes import Checked, ExitCode, Ready, Updated
from overhaul.agent.ports import Device
from overhaul.agent.reporting import ReportOutcome
from overhaul.agent.updating import update
from overhaul.agent.wiring import open_device, utc_now
from overhaul.errors import DeviceError
from overhaul.host.files import replace_bytes
from overhaul.install.settings import DeviceSettings
from overhaul.install.state import EventKind
from overhaul.progress import Progress
from overhaul.transfer.kit import RECEIPTS, FileKit, Kit, KitManifest, padding, read_manifest, tar_header
from overhaul.transfer.receipt import encode_receipt

_TAR_END = bytes(1024)
_NOT_TOLD = frozenset({ReportOutcome.CHECKED, ReportOutcome.WAITING, ReportOutcome.RESTARTING})
_ENDINGS = {
    EventKind.CONFIRMED: ReportOutcome.CONFIRMED,
    EventKind.UNHEALTHY: ReportOutcome.ROLLED_BACK,
    EventKind.FELL_BACK: ReportOutcome.ROLLED_BACK,
    EventKind.ROLLED_BACK: ReportOutcome.ROLLED_BACK,
}


class ForeignKitError(DeviceError):
    """A kit for other devices."""

    def __init__(self, *, path: Path, kit: str, device: str) -> None:
        self.path = path
        self.kit = kit
        self.device = device
        super().__init__(f"The kit {path} is for {kit}, and this device follows {device}; bring the kit made for it.")


class InstalledFromKit(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `kit install`."""

    answer: Updated | Ready | Checked
    #: Names of the receipts that were written.
    receipts: tuple[str, ...]
    #: Why none could be written; empty when all were.
    receipt_fault: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """That of the update: a receipt that could not be written undoes nothing."""
        return self.answer.exit_code


def install_from_kit(
    settings: DeviceSettings,
    kit: Kit,
    *,
    receipts: Path | None = None,
    progress: Progress,
    clock: Callable[[], datetime] = utc_now,
) -> InstalledFromKit:
    """Install what the policy in the kit offers to this device.

    Args:
        settings: The device.
        kit: Takes the place of the network.
        receipts: A directory for receipts where the kit itself cannot be written.
        progress: Told of the work.
        clock: What the system's clock says.

    Raises:
        KitUnusableError: It is no kit, or a damaged one.
        ForeignKitError: It is for another product or channel.
        OverhaulError: Whatever an update over a network raises.
    """
    manifest = read_manifest(kit)
    box = _ReceiptBox(kit, manifest, receipts)
    device = dataclasses.replace(open_device(settings, clock=clock, kit=kit), reporter=box)
    followed = (settings.product, followed_channel(device))
    if followed != (manifest.product, manifest.channel):
        raise ForeignKitError(
            path=kit.path, kit=f"{manifest.product} {manifest.channel}", device=f"{followed[0]} {followed[1]}"
        )
    answer = update(device, progress=progress)
    if not isinstance(answer, Updated):
        _report_ending(device, box, manifest)
    return InstalledFromKit(answer=answer, receipts=tuple(box.written), receipt_fault=box.fault)


def write_receipt(kit: Kit, name: str, data: bytes) -> None:
    """Write a receipt into the kit, durably; raises OSError when it takes none.

    In a file it goes over the zero blocks at the end: torn by a power cut, it is the last member and is passed over.
    """
    if not isinstance(kit, FileKit):
        place = kit.path / RECEIPTS / name
        place.parent.mkdir(exist_ok=True)
        if place.parent.is_symlink():
            # A stranger's stick must not choose where on this device a file is written.
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(place.parent))
        replace_bytes(place, data)
        return
    whole = tar_header(RECEIPTS + name, len(data)) + data + padding(len(data)) + _TAR_END
    # Opened anew, so that two devices' receipts in a row never overwrite each other.
    end = FileKit(kit.path).end
    descriptor = os.open(kit.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.pwrite(descriptor, whole, end) != len(whole):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(kit.path))
        os.ftruncate(descriptor, end + len(whole))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _ReceiptBox:
    """A reporter that keeps reports in the kit; like every reporter it never raises."""

    def __init__(self, kit: Kit, manifest: KitManifest, directory: Path | None) -> None:
        self._kit = kit
        self._manifest = manifest
        self._directory = directory
        self.written: list[str] = []
        self.fault = ""

    def send(self, report: Mapping[str, object]) -> None:
        """Write one receipt; what the medium refuses is told and not raised.

        That a device is there, or waits, is no receipt: a kit that comes by often would fill up with it.
        """
        if report["outcome"] in _NOT_TOLD:
            return
        # Nothing went over a network, and the server counts what did.
        told = {**report, "bytes_received": 0, "requests": 0}
        # The end of this update may never come home, and must not make the device look lost.
        told.pop("update_id", None)
        manifest = self._manifest
        data = encode_receipt(msgspec.json.encode(told), kit_id=manifest.kit_id, receipt_key=manifest.receipt_key)
        name = f"{report['report_id']}.json"
        try:
            if self._directory is not None:
                self._directory.mkdir(parents=True, exist_ok=True)
                replace_bytes(self._directory / name, data)
            else:
                write_receipt(self._kit, name, data)
        except OSError as error:
            self.fault = f"{error.filename or self._kit.path}: {error.strerror or error}"
            return
        self.written.append(name)


def _report_ending(device: Device, box: _ReceiptBox, manifest: KitManifest) -> None:
    """Write how the last installation ended, when it was one of a release that this kit carries."""
    events = history(device)
    carried = {(release.version, release.build_id) for release in manifest.releases}
    ending = next((event for event in reversed(events) if event.kind in _ENDINGS), None)
    if ending is None or (ending.version, ending.build_id) not in carried:
        return
    settings = device.settings
    state = device.states.load()
    # The release it came from is not in the event; the other slot holds it.
    others = (content.release for name, content in state.slots.items() if name != ending.slot)
    origin = next(others, ending)
    # The same ending has the same id every time, so a kit that comes by twice is counted once.
    told = f"{manifest.kit_id} {state.rollout_id} {ending.at} {ending.kind} {ending.version} {ending.build_id}"
    box.send(
        {
            "report_id": hashlib.sha256(told.encode()).hexdigest()[:32],
            "product": settings.product,
            "variant": settings.variant,
            "arch": settings.arch,
            "channel": manifest.channel,
            "from_version": origin.version,
            "from_build_id": origin.build_id,
            "to_version": ending.version,
            "to_build_id": ending.build_id,
            "outcome": _ENDINGS[ending.kind],
            "seconds": 0.0,
        }
    )
