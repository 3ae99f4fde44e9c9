"""The UEFI application of a deployment (kernel, initial file system and command line in one) on its way to the ESP.

    DEPLOYMENT/usr/lib/ostree-boot/bootx64.efi.ext-DIGEST   for a root file system on removable media
    DEPLOYMENT/usr/lib/ostree-boot/bootx64.efi.int-DIGEST   for one on internal storage
    ESP/EFI/BOOT/bootx64.efi                                what the firmware starts
    ESP/EFI/BOOT/bootx64.efi.old                            what it started before

At no moment is the application missing or half-written: copies are made under another name, synced, and renamed. A
run that was killed is repaired by the next, and a run with nothing to do writes nothing.
"""

import hashlib
import re
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from overhaul.dialects.ostree.device.bootentry import split_arguments
from overhaul.errors import DeviceError
from overhaul.host.files import replacing

_NAME = re.compile(r"(boot(?:x64|ia32|aa64|arm)\.efi)\.(ext|int)-([0-9a-f]{64})\Z")
_CHUNK_BYTES = 1 << 20


class UefiAppError(DeviceError):
    """The UEFI application cannot be brought to the ESP; the old one is untouched."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The UEFI application is not updated, {path}: {reason}")


class Medium(StrEnum):
    """What the root file system lies on; the value is what the application's name says."""

    EXTERNAL = "ext"
    INTERNAL = "int"


@dataclass(frozen=True, kw_only=True)
class PartitionIds:
    """The PARTUUIDs of root file systems that the applications were built with; the defaults are refkit's."""

    external: str = "12345678-9abc-def0-0fed-cba987654321"
    internal: str = "12345678-9abc-def0-0fed-cba987654320"


@dataclass(frozen=True, kw_only=True)
class UefiApp:
    """An application of a deployment."""

    path: Path
    name: str
    digest: str


def root_partition_id(command_line: str) -> str:
    """Return the PARTUUID of the root file system in lower case; empty when the command line names none."""
    words = [word.removeprefix("root=PARTUUID=") for word in split_arguments(command_line) if word.startswith("root=")]
    return words[-1].lower() if words and not words[-1].startswith("root=") else ""


def medium_of(partition_id: str, ids: PartitionIds) -> Medium:
    """Return what the root partition `partition_id` lies on.

    Raises:
        UefiAppError: It is neither of the two.
    """
    for medium, known in ((Medium.EXTERNAL, ids.external), (Medium.INTERNAL, ids.internal)):
        if partition_id == known.lower():
            return medium
    said = f"the root partition {partition_id!r} is none that an application is built for"
    raise UefiAppError(path=Path("/proc/cmdline"), reason=f"{said} ({ids.external}, {ids.internal}).")


def find_app(deployment: Path, medium: Medium) -> UefiApp:
    """Return the application of `deployment` for `medium`.

    Raises:
        UefiAppError: It has none, or several.
    """
    directory = deployment / "usr/lib/ostree-boot"
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    found = [match for match in map(_NAME.match, names) if match is not None and match[2] == medium]
    if len(found) != 1:
        raise UefiAppError(path=directory, reason=f"it has {len(found)} applications boot*.efi.{medium}-*, not one.")
    return UefiApp(path=directory / found[0].string, name=found[0][1], digest=found[0][3])


def update_app(app: UefiApp, esp: Path, *, dry_run: bool = False) -> bool:
    """Let the firmware start `app`; return whether it did not before.

    Raises:
        UefiAppError: The ESP has no room for it, or its bytes are not those that its name tells.
    """
    directory = esp / "EFI/BOOT"
    target, old = directory / app.name, directory / f"{app.name}.old"
    current = _digest(target)
    if current == app.digest:
        return False
    if dry_run:
        return True
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f".{app.name}*.tmp"):
        leftover.unlink()
    has_backup = not current or _digest(old) == current
    _make_room(app, target, old, has_backup=has_backup)
    if not has_backup:
        _copy(target, old, digest=current)
    _copy(app.path, target, digest=app.digest)
    return True


def _make_room(app: UefiApp, target: Path, old: Path, *, has_backup: bool) -> None:
    needed_bytes = app.path.stat().st_size + (0 if has_backup else target.stat().st_size)
    # The backup before this one is the first to go; the application that is started stays whatever happens.
    if not has_backup and old.exists() and shutil.disk_usage(target.parent).free < needed_bytes:
        old.unlink()
    free_bytes = shutil.disk_usage(target.parent).free
    if free_bytes < needed_bytes:
        raise UefiAppError(path=target, reason=f"{needed_bytes} bytes are needed and {free_bytes} are free.")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return ""


def _copy(source: Path, target: Path, *, digest: str) -> None:
    hashed = hashlib.sha256()
    with source.open("rb") as stream, replacing(target) as copy:
        while chunk := stream.read(_CHUNK_BYTES):
            hashed.update(chunk)
            copy.write(chunk)
        if hashed.hexdigest() != digest:
            raise UefiAppError(path=source, reason=f"its bytes have the checksum {hashed.hexdigest()}, not {digest}.")
