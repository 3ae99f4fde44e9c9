"""What this device is, coarsely: enough for hardware rules, never enough to tell it from its sisters.

Sources, all below an injectable root: os-release (what runs), DMI or the device tree (the model), /proc/meminfo.
Serial numbers, addresses and the machine id are not read at all.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path

#: Name of the fact -> file below /sys/class/dmi/id.
_DMI = {"vendor": "sys_vendor", "model": "product_name", "board": "board_name"}
_DEVICE_TREE = Path("proc/device-tree")
#: Memory is told in steps, so that it groups devices instead of naming one.
_MEMORY_STEP = 256 << 20


@dataclass(frozen=True, kw_only=True)
class OsRelease:
    """What the running system says of itself; None where it does not."""

    version: str | None = None
    build_id: str | None = None
    channel: str | None = None


def read_os_release(root: Path) -> OsRelease:
    """Return the os-release of the system at `root`, from /etc, else from /usr/lib."""
    for place in ("etc/os-release", "usr/lib/os-release"):
        try:
            text = (root / place).read_text(errors="replace")
        except OSError:
            continue
        values = _assignments(text)
        return OsRelease(
            version=values.get("IMAGE_VERSION") or values.get("VERSION_ID"),
            build_id=values.get("BUILD_ID"),
            channel=values.get("OVERHAUL_CHANNEL"),
        )
    return OsRelease()


def read_hardware(root: Path) -> dict[str, str]:
    """Return the coarse facts of the hardware at `root`: vendor, model, board, compatible, memory_mb."""
    facts: dict[str, str] = {}
    for name, file in _DMI.items():
        _put(facts, name, _line(root / "sys/class/dmi/id" / file))
    if "model" not in facts:
        _put(facts, "model", _line(root / _DEVICE_TREE / "model"))
        _put(facts, "compatible", _line(root / _DEVICE_TREE / "compatible"))
    total = memory_bytes(root, "MemTotal")
    if total is not None:
        facts["memory_mb"] = str(max(1, round(total / _MEMORY_STEP)) * (_MEMORY_STEP >> 20))
    return facts


def memory_bytes(root: Path, field: str) -> int | None:
    """Return a field of /proc/meminfo in bytes, or None where the system does not tell."""
    try:
        text = (root / "proc/meminfo").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, amount = line.partition(":")
        words = amount.split()
        if name == field and words and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def _assignments(text: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.strip().partition("=")
        if not separator or name.startswith("#"):
            continue
        try:
            words = shlex.split(value)
        except ValueError:
            continue
        values[name] = words[0] if words else ""
    return values


def _line(path: Path) -> str:
    """Return the first text of a file; a device tree's strings end in zero bytes."""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    return data.split(b"\0")[0].decode("utf-8", "replace").strip()


def _put(facts: dict[str, str], name: str, value: str) -> None:
    if value:
        facts[name] = value
