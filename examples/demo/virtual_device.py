"""A virtual device: two files as slots, a boot file, and the real agent run as the real command line."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.demo.booted_slot import booted
from examples.demo.images import SERVICE
from overhaul.install.fileboot import FileBoot

_SLOTS = ("a", "b")


class CommandFailedError(RuntimeError):
    """A command of the demonstration ended with an exit code nobody expected."""


def overhaul(*arguments: str | Path, expected: tuple[int, ...] = (0,)) -> str:
    """Run `overhaul` with `arguments` and return what it printed."""
    command = [sys.executable, "-m", "overhaul", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in expected:
        raise CommandFailedError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@dataclass(frozen=True)
class VirtualDevice:
    """A device whose slots are files in `directory`; `bootable` says whether their systems can really be booted."""

    directory: Path
    bootable: bool

    @property
    def slots(self) -> dict[str, Path]:
        """Slot name to file."""
        return {name: self.directory / f"slot-{name}.img" for name in _SLOTS}

    def make(self, *, url: str, factory_image: Path, root_metadata: Path, version: str, build_id: str) -> None:
        """Set the device up as a factory would: an image in the first slot, a configuration, the trust anchor."""
        self.directory.mkdir(parents=True)
        subprocess.run(
            ["cp", "--sparse=always", "--reflink=auto", str(factory_image), str(self.slots["a"])], check=True
        )
        with self.slots["b"].open("wb") as stream:
            stream.truncate(factory_image.stat().st_size)
        (self.directory / "root.json").write_bytes(root_metadata.read_bytes())
        slots = [f"--slot={name}={path.name}" for name, path in self.slots.items()]
        overhaul(
            "device", "init", "--config", self._config, "--product=demo", "--variant=server", "--arch=amd64",
            "--channel=stable", "--url", url, "--allow-http", *slots, "--boot=file", "--state-directory=state",
            f"--version={version}", f"--build-id={build_id}", "--report-url", f"{url}/api/v1/reports",
        )  # fmt: skip
        self._ask_for_health()

    def _ask_for_health(self) -> None:
        """Ask for the service: by systemd inside the booted slot, or, where nothing boots, by the unit's file."""
        text = self._config.read_text()
        if self.bootable:
            changes = {
                "units = []": f'units = ["{SERVICE}"]',
                "commands = []": 'commands = ["curl --silent --fail --output /dev/null http://127.0.0.1/"]',
                '# enter = ["nsenter", "--target", "1234", "--all"]': f'enter = ["{self._enter}"]',
            }
        else:
            present = f"debugfs -R 'stat /usr/lib/systemd/system/{SERVICE}' {{path}} 2>&1 | grep -q Inode"
            changes = {"commands = []": f"commands = [{json.dumps(present)}]"}
        changes["budget_s = 300"] = "budget_s = 20"
        for old, new in changes.items():
            text = text.replace(old, new)
        self._config.write_text(text)

    def run(self, action: str, *, expected: tuple[int, ...] = (0,)) -> str:
        """Run `overhaul device ACTION` and return what it printed."""
        return overhaul("device", action, "--config", self._config, expected=expected)

    def status(self) -> dict[str, Any]:
        """Return `overhaul device status --json`."""
        status: dict[str, Any] = json.loads(overhaul("device", "status", "--config", self._config, "--json"))
        return status

    def restart(self) -> str:
        """Let the boot loader choose, as after a real restart; return the slot that runs now."""
        return FileBoot(self.directory / "boot.json", _SLOTS).simulate_boot()

    def confirm_in(self, slot: str, *, expected: tuple[int, ...] = (0,)) -> str:
        """Boot `slot` for real where that is possible and run `overhaul device confirm` while it runs."""
        system = booted(self.slots[slot], enter=self._enter, log=self.directory / f"boot-{slot}.log")
        with system if self.bootable else nullcontext():
            return self.run("confirm", expected=expected)

    @property
    def _config(self) -> Path:
        return self.directory / "device.toml"

    @property
    def _enter(self) -> Path:
        return (self.directory / "enter-slot").absolute()
