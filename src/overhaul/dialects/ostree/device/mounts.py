"""The system calls that change what is mounted where, behind one seam.

They are made directly: the initial file system of a device need not have the programs `mount` and `umount`.
"""

import ctypes
import os
from pathlib import Path
from typing import Protocol

#: Of sys/mount.h.
_MS_BIND = 0x1000
_MS_MOVE = 0x2000
_MNT_DETACH = 2


class Mounts(Protocol):
    """What starting an OSTree device asks of the kernel; every call raises `OSError` when it is refused."""

    def bind(self, source: Path, target: Path) -> None:
        """Show the file or directory `source` at `target`, too."""

    def move(self, source: Path, target: Path) -> None:
        """Move the mount at `source`, with all that is mounted below it, to `target`."""

    def mount(self, device: Path, target: Path, *, file_system: str) -> None:
        """Mount a block device."""

    def detach(self, target: Path) -> None:
        """Take the mount at `target` away, with all that is mounted below it; who still uses it may go on."""

    def unmount(self, target: Path) -> None:
        """Take the mount at `target` away when all of it is written."""


class SystemMounts:
    """Asks the kernel; needs the right to do so."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)

    def bind(self, source: Path, target: Path) -> None:
        """See `Mounts`."""
        self._mount(source, target, "", _MS_BIND)

    def move(self, source: Path, target: Path) -> None:
        """See `Mounts`."""
        self._mount(source, target, "", _MS_MOVE)

    def mount(self, device: Path, target: Path, *, file_system: str) -> None:
        """See `Mounts`."""
        self._mount(device, target, file_system, 0)

    def detach(self, target: Path) -> None:
        """See `Mounts`."""
        self._unmount(target, _MNT_DETACH)

    def unmount(self, target: Path) -> None:
        """See `Mounts`."""
        self._unmount(target, 0)

    def _mount(self, source: Path, target: Path, file_system: str, flags: int) -> None:
        names = (os.fsencode(source), os.fsencode(target), file_system.encode())
        if self._library.mount(*names, ctypes.c_ulong(flags), None) != 0:
            raise _refusal(target)

    def _unmount(self, target: Path, flags: int) -> None:
        if self._library.umount2(os.fsencode(target), flags) != 0:
            raise _refusal(target)


def _refusal(target: Path) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), str(target))
