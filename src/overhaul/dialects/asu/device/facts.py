"""What this device is and which packages were chosen for it, as OpenWrt or Debian tell it.

OpenWrt: `ubus call system board` and `ubus call rpc-sys packagelist`. Debian: os-release, the agent's configuration,
and the packages that somebody asked for (`apt-mark showmanual`) with their versions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from overhaul.errors import DeviceError, OverhaulError
from overhaul.host.processes import run
from overhaul.install.facts import read_os_release
from overhaul.install.settings import DeviceSettings

#: Runs a program and returns what it printed.
Asker = Callable[[Sequence[str]], bytes]


@dataclass(frozen=True, kw_only=True)
class SystemFacts:
    """The running system."""

    distribution: str
    version: str
    #: `r24106-10cc5fcd00`; empty where there is none.
    revision: str
    target: str
    board: str
    model: str
    filesystem: str | None
    #: Package -> version, of what was chosen and not of what came with it.
    packages: Mapping[str, str] = field(default_factory=dict)


class FactsError(DeviceError):
    """The device does not tell what is needed to build for it."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"This device does not tell what it is: {reason.rstrip('.')}.")


class _Release(msgspec.Struct, frozen=True):
    distribution: str
    version: str
    target: str
    revision: str = ""


class _Board(msgspec.Struct, frozen=True):
    board_name: str
    release: _Release
    model: str = ""
    rootfs_type: str | None = None


class _Packages(msgspec.Struct, frozen=True):
    packages: dict[str, str]


def ask_program(argv: Sequence[str]) -> bytes:
    """Run a program of this system."""
    return run(argv, timeout_s=60).stdout


def openwrt_facts(ask: Asker = ask_program) -> SystemFacts:
    """Return what an OpenWrt device tells over ubus.

    Raises:
        FactsError: It tells nothing usable.
    """
    try:
        board = msgspec.json.decode(ask(["ubus", "call", "system", "board"]), type=_Board)
        listed = ask(["ubus", "call", "rpc-sys", "packagelist", '{"all": false}'])
        packages = msgspec.json.decode(listed, type=_Packages).packages
    except (msgspec.MsgspecError, UnicodeDecodeError, OverhaulError) as error:
        raise FactsError(reason=str(error)) from error
    return SystemFacts(
        distribution=board.release.distribution.lower(),
        version=board.release.version,
        revision=board.release.revision,
        target=board.release.target,
        board=board.board_name,
        model=board.model,
        filesystem=board.rootfs_type if board.rootfs_type != "overlay" else None,
        packages=packages,
    )


def debian_facts(settings: DeviceSettings, *, ask: Asker = ask_program) -> SystemFacts:
    """Return what a Debian device with slots is; its product is what images are built as.

    Raises:
        FactsError: It tells nothing usable.
    """
    root = Path(settings.facts_root)
    try:
        manual = set(ask(["apt-mark", "showmanual"]).decode().split())
        listed = ask(["dpkg-query", "--show", "--showformat", "${db:Status-Abbrev}\t${Package}\t${Version}\n"]).decode()
    except (OverhaulError, UnicodeDecodeError) as error:
        raise FactsError(reason=str(error)) from error
    packages = {}
    for line in listed.splitlines():
        status, name, version = (*line.split("\t"), "", "")[:3]
        if status.startswith("ii") and name in manual:
            packages[name] = version
    told = read_os_release(root)
    suite = _codename(root)
    if not suite:
        raise FactsError(reason="os-release has no VERSION_CODENAME, which is the suite to build from")
    return SystemFacts(
        distribution="debian",
        version=suite,
        revision="",
        target=f"debian/{settings.arch}",
        board=settings.product,
        model=f"{settings.product} {told.version or ''}".strip(),
        filesystem="ext4",
        packages=packages,
    )


def _codename(root: Path) -> str:
    for path in (root / "etc/os-release", root / "usr/lib/os-release"):
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            key, _equals, value = line.partition("=")
            if key == "VERSION_CODENAME":
                return value.strip().strip("\"'")
    return ""
