"""The one place that turns a device's settings into its boot control."""

from pathlib import Path

from overhaul.install.boot import BootControl
from overhaul.install.fileboot import FileBoot
from overhaul.install.grub import GrubBoot
from overhaul.install.settings import DeviceSettings
from overhaul.install.systemdboot import SystemdBoot
from overhaul.install.uboot import UBoot


def open_boot(settings: DeviceSettings) -> BootControl:
    """Return the boot control that `settings` name."""
    path = Path(settings.boot.file)
    if settings.boot.backend == "file":
        return FileBoot(path, tuple(settings.slots))
    if settings.boot.backend == "systemd-boot":
        boot = settings.boot
        return SystemdBoot(path, settings.slot_paths, kernel=boot.kernel, initrd=boot.initrd, options=boot.options)
    if settings.boot.backend == "uboot":
        return UBoot(path, settings.slot_paths)
    return GrubBoot(path, settings.slot_paths)
