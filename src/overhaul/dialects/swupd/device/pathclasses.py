"""What the client may touch: classes of paths, told by their names alone.

Configuration and state belong to the device, kernels of earlier versions to its boot menu. Entries of these classes
are created where they are missing and otherwise left as they are: neither rewritten nor deleted by an update, nor
judged by a diagnosis.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.manifest import Entry

_STATE_PREFIXES = (b"/data", b"/lost+found")
_STATE_INSIDE = (b"/dev/", b"/home/", b"/proc/", b"/root/", b"/run/", b"/sys/", b"/tmp/", b"/var/")
_SOURCE = b"/usr/src/"
_SHIPPED_SOURCES = (b"/usr/src/debug", b"/usr/src/kernel")
_BOOT = (b"/boot/", b"/usr/lib/modules/", b"/usr/lib/kernel/", b"/usr/lib/systemd/boot")
_BOOT_TRIGGER_PREFIXES = (b"/usr/lib/kernel/", b"/usr/lib/systemd/boot")
_BOOT_TRIGGERS = frozenset(
    {
        b"/usr/bin/bootctl",
        b"/usr/bin/clr-boot-manager",
        b"/usr/bin/gummiboot",
        b"/usr/lib/gummiboot",
        b"/usr/share/syslinux/ldlinux.c32",
    }
)
SYSTEMD = b"/usr/lib/systemd/systemd"


def is_config(path: bytes) -> bool:
    """Tell whether `path` is configuration."""
    return path.startswith(b"/etc/")


def is_boot(path: bytes) -> bool:
    """Tell whether `path` has to do with booting."""
    return path.startswith(_BOOT)


def starts_boot_manager(path: bytes) -> bool:
    """Tell whether a change of `path` calls for the boot manager."""
    return path in _BOOT_TRIGGERS or path.startswith(_BOOT) or path.startswith(_BOOT_TRIGGER_PREFIXES)


def is_state(path: bytes) -> bool:
    """Tell whether `path` belongs to the running device."""
    if path.startswith(_STATE_PREFIXES) or path.startswith(_STATE_INSIDE):
        return True
    if not path.startswith(_SOURCE):
        return False
    return not any(path == shipped or path.startswith(shipped + b"/") for shipped in _SHIPPED_SOURCES)


@dataclass(frozen=True)
class Classes:
    """The classes of one root."""

    #: Configuration is the device's own; builds for systems whose /etc is part of the version say no.
    is_stateless: bool
    #: Paths below the root that are mount points.
    mounts: frozenset[bytes]

    def leaves_alone(self, entry: Entry) -> bool:
        """Tell whether what exists at the entry's path must stay as it is."""
        path = entry.name
        if entry.status == "g" or (path in self.mounts and path != b"/"):
            return True
        if is_state(path):
            return True
        if not self.is_stateless:
            return False
        return is_config(path) or (entry.status == "d" and is_boot(path))


def mount_points(root: Path, table: Path = Path("/proc/self/mountinfo")) -> frozenset[bytes]:
    """Return the mount points below `root`, as paths inside it."""
    prefix = os.fsencode(os.path.realpath(root)).rstrip(b"/")
    try:
        lines = table.read_bytes().splitlines()
    except OSError:
        return frozenset()
    found = set()
    for line in lines:
        fields = line.split(b" ", 5)
        if len(fields) < 6:
            continue
        place = _unescaped(fields[4])
        if place.startswith(prefix + b"/"):
            found.add(place[len(prefix) :])
    return frozenset(found)


def _unescaped(text: bytes) -> bytes:
    """Return a path of mountinfo with its octal escapes undone."""
    if b"\\" not in text:
        return text
    for escape, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        text = text.replace(escape, byte)
    return text
