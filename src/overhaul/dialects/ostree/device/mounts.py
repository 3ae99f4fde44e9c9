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
_MS_REMOUNT = 0x20
_MS_REC = 0x4000
_MS_SLAVE = 0x80000
#: nosuid, nodev, noexec, noatime, nodiratime: the same numbers in mount flags and in those of statvfs.
_KEPT_FLAGS = 2 | 4 | 8 | 1024 | 2048
#: Of sched.h.
_CLONE_NEWNS = 0x20000
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

    def stand_alone(self) -> None:
        """Let this thread, and what it begins, have mounts of its own: what changes in them nobody else sees."""
        if self._library.unshare(_CLONE_NEWNS) != 0:
            raise _refusal(Path("/proc/self/ns/mnt"))
        # What others mount later is still seen here: a service may run for months.
        self._mount(Path("none"), Path("/"), "", _MS_REC | _MS_SLAVE)

    def remount_writable(self, target: Path) -> None:
        """Let the mount at `target` be written to."""
        kept = os.statvfs(target).f_flag & _KEPT_FLAGS
        self._mount(target, target, "", _MS_REMOUNT | _MS_BIND | kept)
        if os.statvfs(target).f_flag & os.ST_RDONLY:
            # Not the mount alone, the whole file system was read-only.
            self._mount(target, target, "", _MS_REMOUNT)

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
