"""What happens after files have changed: boot loader, library cache, services.

A step that fails is a warning: the files are in place, and nothing would be better by undoing them.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.device.output import Output
from overhaul.dialects.swupd.device.pathclasses import SYSTEMD, starts_boot_manager
from overhaul.errors import OverhaulError
from overhaul.host.processes import run

_BOOT_MANAGER = "usr/bin/clr-boot-manager"
_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Actions:
    """The steps of one root."""

    root: Path
    output: Output
    has_scripts: bool = True
    updates_boot: bool = True
    waits: bool = False

    def after(self, changed: Iterable[bytes], *, always_boot: bool = False) -> None:
        """Do what the changed paths call for."""
        if not self.has_scripts:
            self.output.note("No scripts are run, as --no-scripts says.")
            return
        paths = list(changed)
        if self.updates_boot and (always_boot or any(map(starts_boot_manager, paths))):
            self._boot()
        self._library_cache()
        if str(self.root) == "/":
            self._services(SYSTEMD in paths)

    def _boot(self) -> None:
        if str(self.root) == "/" and _is_container():
            return
        manager = self.root / _BOOT_MANAGER
        if os.access(manager, os.X_OK):
            place = () if str(self.root) == "/" else ("--path", str(self.root))
            self._run([str(manager), "update", *place])

    def _library_cache(self) -> None:
        if str(self.root) == "/":
            self._run(["ldconfig"])
        elif os.access(self.root / "usr/sbin/ldconfig", os.X_OK) or os.access(self.root / "usr/bin/ldconfig", os.X_OK):
            self._run(["ldconfig", "-r", str(self.root)])

    def _services(self, is_systemd_new: bool) -> None:  # noqa: FBT001 - private
        if not Path("/run/systemd/system").is_dir():
            return
        self._run(["systemctl", "daemon-reexec" if is_systemd_new else "daemon-reload"])
        if os.access("/usr/bin/clr-service-restart", os.X_OK):
            self._run(["/usr/bin/clr-service-restart"])
        wait = () if self.waits else ("--no-block",)
        self._run(["systemctl", "restart", *wait, "update-triggers.target"])

    def _run(self, argv: Sequence[str]) -> None:
        self.output.note(f"Running {' '.join(argv)}")
        try:
            run(argv, timeout_s=_TIMEOUT_S)
        except (OverhaulError, OSError) as error:
            self.output.warn(str(error))


def _is_container() -> bool:
    return Path("/run/systemd/container").exists() or Path("/.dockerenv").exists()
