"""Deployments as lines for people, and as assignments for a shell, under the names that refkit's scripts use.

PREFIX_BOOT_ENTRIES                  how many there are
PREFIX_RUNNING_ENTRY, _LATEST_ENTRY  numbers of what runs and of what boots next
PREFIX_BOOTn_VERSION, _OPTIONS, _PATH, _DEVICE, _INODE
PREFIX_BOOTED_…, PREFIX_LATEST_…     the same for these two
"""

import re
import shlex
from dataclasses import dataclass

from overhaul.dialects.ostree.device.sysroot import Deployment, Sysroot
from overhaul.errors import InputError

_PREFIX = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


class PrefixError(InputError):
    """A prefix that no shell takes as the beginning of a variable's name."""

    def __init__(self, *, prefix: str) -> None:
        self.prefix = prefix
        super().__init__(f"{prefix!r} cannot begin the name of a shell variable; use letters, digits and '_'.")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One deployment as scripts see it."""

    number: int
    version: int
    options: str
    link: str
    path: str
    device: int
    inode: int
    is_booted: bool


def entries_of(sysroot: Sysroot, deployments: tuple[Deployment, ...]) -> list[Entry]:
    """Return the entries of the boot loader, the default first."""
    found = []
    for number, one in enumerate(deployments):
        status = sysroot.directory(one).stat()
        found.append(
            Entry(
                number=number,
                version=one.entry.version,
                options=" ".join(one.entry.arguments),
                link=str(one.entry.boot_link),
                path=f"/ostree/deploy/{one.osname}/deploy/{one.name}",
                device=status.st_dev,
                inode=status.st_ino,
                is_booted=one.is_booted,
            )
        )
    return found


def as_lines(entries: list[Entry]) -> list[str]:
    """Return a paragraph for each entry."""
    lines = []
    for entry in entries:
        marks = [*(["running"] if entry.is_booted else []), *(["latest"] if entry.number == 0 else [])]
        lines += [
            f"boot entry {entry.number}{' (' + ', '.join(marks) + ')' if marks else ''}:",
            f"         id: {entry.number}",
            f"    version: {entry.version}",
            f"    options: {entry.options}",
            f"       boot: {entry.link}",
            f" deployment: {entry.path}",
            f"  dev/inode: 0x{entry.device:x}/{entry.inode}",
        ]
    return lines


def as_assignments(entries: list[Entry], *, shown: list[Entry], prefix: str, exports: bool) -> list[str]:
    """Return shell assignments about the entries `shown` among all `entries`.

    Raises:
        PrefixError: The prefix is none.
    """
    if not _PREFIX.match(prefix):
        raise PrefixError(prefix=prefix)
    running = next((entry for entry in entries if entry.is_booted), None)
    latest = entries[0] if entries else None
    values = {"BOOT_ENTRIES": str(len(entries))}
    for name, entry in (("RUNNING_ENTRY", running), ("LATEST_ENTRY", latest)):
        values[name] = "" if entry is None else str(entry.number)
    for entry in shown:
        values |= _fields(f"BOOT{entry.number}", entry)
    for name, marked in (("BOOTED", running), ("LATEST", latest)):
        if marked is not None:
            values |= _fields(name, marked)
    begin = "export " if exports else ""
    return [f"{begin}{prefix}_{name}={shlex.quote(value)}" for name, value in values.items()]


def _fields(name: str, entry: Entry) -> dict[str, str]:
    return {
        f"{name}_VERSION": str(entry.version),
        f"{name}_OPTIONS": entry.options,
        f"{name}_PATH": entry.path,
        f"{name}_DEVICE": f"0x{entry.device:x}",
        f"{name}_INODE": str(entry.inode),
    }
