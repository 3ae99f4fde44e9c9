"""Which slot runs and in which start of the system: told by the kernel, whatever boot loader started it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from overhaul.install.boot import BootControlError


class RunningSystem:
    """The running system of a device with `slots`; everything is looked up below `root`, which is `/` except in tests.

    Which slot runs is read from `overhaul.slot=NAME` on the kernel's command line, else from the device that is
    mounted as `/`.
    """

    def __init__(self, slots: Mapping[str, Path], *, root: Path = Path("/")) -> None:
        self.root = root
        self._slots = dict(slots)

    def slot(self) -> str:
        """Return the slot that the kernel was started from."""
        command_line = self._text("proc/cmdline")
        named = re.search(r"(?:^|\s)overhaul\.slot=(\S+)", command_line)
        if named is not None:
            if named[1] in self._slots:
                return named[1]
            raise BootControlError(
                place="the kernel's command line", reason=f"it names the slot {named[1]!r}, which is not configured"
            )
        source = _root_device(self._text("proc/self/mountinfo"))
        for name, path in self._slots.items():
            if source is not None and os.path.realpath(path) == os.path.realpath(source):
                return name
        raise BootControlError(
            place="the kernel's command line",
            reason="it has no overhaul.slot=NAME, and / is not mounted from a configured slot; add the option to "
            "the boot entries",
        )

    def boot_id(self) -> str:
        """Return the kernel's random id of this start."""
        return self._text("proc/sys/kernel/random/boot_id").strip()

    def _text(self, path: str) -> str:
        place = self.root / path
        try:
            return place.read_text()
        except OSError as error:
            raise BootControlError(place=str(place), reason=error.strerror or str(error)) from error


def _root_device(mountinfo: str) -> str | None:
    """Return the source of the mount at `/`; the fields before the lone dash vary in number."""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] == "/" and "-" in fields:
            return fields[fields.index("-") + 2]
    return None
