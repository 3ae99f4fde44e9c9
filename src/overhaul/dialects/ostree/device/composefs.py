"""Roots that newer OSTree does not show as they lie, but through an image of their names (composefs).

    COMMIT.SERIAL/.ostree.cfs       the image: names, owners and modes; the content stays in the repository's objects
    ostree/prepare-root.conf        below usr/lib or etc of the tree: `[composefs] enabled=yes|no|maybe|signed|verity`
    /run/ostree-booted              `a{sv}`, written by the initial file system; empty where that is older

The root of such a system is a mount of its own. Which deployment it shows is told by `backing-root-device-inode` in
the last of these: device and inode of the deployment's directory. With `yes`, `signed` or `verity` a tree without
its image does not start, so whoever deploys has to make one; libostree can.
"""

from pathlib import Path

from overhaul.dialects.ostree.device.keyfile import KeyFile
from overhaul.dialects.ostree.errors import MalformedOstreeDataError
from overhaul.dialects.ostree.gvariant import decode
from overhaul.dialects.ostree.objects import unique
from overhaul.errors import DeviceError

#: Where a tree says how it wants to be started, relative to its root.
CONFIGURATIONS = (
    "usr/lib/ostree/prepare-root.conf",
    "usr/etc/ostree/prepare-root.conf",
    "etc/ostree/prepare-root.conf",
)
_IMAGE = ".ostree.cfs"
_BACKING = "backing-root-device-inode"
_ARGUMENT = "ostree.prepare-root.composefs="
_DEMANDS = frozenset({"yes", "true", "1", "signed", "verity"})


class BootedFileError(DeviceError):
    """What the initial file system wrote about the start of this system cannot be read."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} does not tell which deployment runs ({reason}); restart the device to have it anew.")


def backing_root(path: Path) -> tuple[int, int] | None:
    """Return device and inode of the deployment that the root shows; None where the root is the deployment itself.

    Args:
        path: `/run/ostree-booted`, which is there.

    Raises:
        BootedFileError: It is not what OSTree writes there.
    """
    data = path.read_bytes()
    if not data:
        return None
    try:
        held = unique(decode("a{sv}", data, what=str(path)), what=str(path)).get(_BACKING)
    except MalformedOstreeDataError as error:
        raise BootedFileError(path=path, reason=error.reason) from error
    if held is None:
        return None
    if held.type != "(tt)":
        raise BootedFileError(path=path, reason=f"its {_BACKING} has the type {held.type}")
    device, inode = held.value
    return int(device), int(inode)


def has_image(deployment: Path) -> bool:
    """Tell whether a deployment's directory has an image, so that it is started through it."""
    return (deployment / _IMAGE).exists()


def demands_image(text: str) -> bool:
    """Tell whether a `prepare-root.conf` makes a tree without an image one that does not start."""
    return (KeyFile(text).get("composefs", "enabled") or "").strip().lower() in _DEMANDS


def argument_demand(arguments: tuple[str, ...]) -> bool | None:
    """Tell what the kernel's arguments demand; None where they leave it to the configuration."""
    values = [word.removeprefix(_ARGUMENT) for word in arguments if word.startswith(_ARGUMENT)]
    return values[-1].lower() in _DEMANDS if values else None
