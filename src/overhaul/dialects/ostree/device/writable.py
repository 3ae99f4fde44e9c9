"""System roots that are mounted read-only (`sysroot.readonly`), so that nothing changes deployments by accident.

The updater is what changes them, so it gives itself mounts of its own, and makes them writable there: for every other
program, and after it, they are read-only as before.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from overhaul.dialects.ostree.device.mounts import SystemMounts

#: Blanks and backslashes in proc(5)'s lists.
_ESCAPED = re.compile(rb"\\([0-7]{3})")


def make_writable(places: Iterable[Path], *, mounts: SystemMounts) -> list[Path]:
    """Make the mounts that hold `places` writable for this thread and what it begins; return those that were not.

    Raises:
        OSError: The kernel refused.
    """
    read_only = list(dict.fromkeys(_mount_point(place) for place in places if _is_read_only(place)))
    if read_only:
        mounts.stand_alone()
        for place in read_only:
            mounts.remount_writable(place)
    return read_only


def _is_read_only(place: Path) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _mount_point(place: Path) -> Path:
    # Not by the numbers of devices: a bind mount has that of what is mounted.
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    points = {Path(os.fsdecode(_ESCAPED.sub(_unescape, line.split()[4]))) for line in lines}
    resolved = place.resolve()
    return next(one for one in (resolved, *resolved.parents) if one in points)


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 8)])
