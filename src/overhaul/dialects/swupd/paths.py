"""What a builder makes of a path: listed or left out, and left on disks when it goes."""

import re
import stat

from overhaul.content.tree import TreeEntry
from overhaul.dialects.swupd.manifest import MAX_LINE

#: Characters that clients, or the programs they run, cannot cope with in the last part of a name.
_AWKWARD = re.compile(rb"[;&|*`/<>\\\"'\x00-\x1f\x7f]")
#: Flags, hash, version and the tabs between them.
_LINE_REST = 90
#: Kernels and what boots them: the running system may need them after they left the version.
_BOOT = (b"/boot/", b"/usr/lib/modules/", b"/usr/lib/kernel/")
#: Libraries and sources for debuggers lie below.
DEBUG_DIRECTORIES = (b"/usr/lib/debug/", b"/usr/src/debug/")
_CONFIGURATION = b"/etc/"


def is_boot_path(name: bytes) -> bool:
    """Tell whether an object that leaves the version stays on disks, because the machine may have booted from it."""
    return name.startswith(_BOOT)


def why_left_out(entry: TreeEntry, *, stateless: bool, banned: tuple[bytes, ...]) -> str | None:
    """Return why no manifest can list an object of a tree; None when it is listed.

    A `stateless` system has no configuration in its versions; below the `banned` directories nothing is listed.
    """
    name = b"/" + entry.path
    if not (entry.is_file or entry.is_directory or entry.is_link):
        return f"it is a {_kind(entry.mode)}"
    if _AWKWARD.search(entry.path.rpartition(b"/")[2]):
        return "its name has a character that clients cannot cope with"
    if len(name) > MAX_LINE - _LINE_REST:
        return "its path is too long"
    if stateless and name.startswith(_CONFIGURATION):
        return "a stateless system has no configuration in its versions"
    if name.startswith(banned):
        return "debugging files are left out"
    return None


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(mode), "strange object")
