"""What the checker of power cuts must know of each boot backend: one small adapter for each.

An adapter makes the loader's files as a factory would, opens the real backend on them, and plays the loader. The
rules by which it plays are those of `install.countdown`; that the real loaders keep them is proved elsewhere
(`tests/interop/test_grub.py`, `tests/interop/test_uboot.py`).
"""

import dataclasses
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from overhaul.agent.ports import Device
from overhaul.install.boot import BootControl
from overhaul.install.countdown import after_boot, chosen_slot
from overhaul.install.envblock import MalformedEnvironmentError, read_block, write_block
from overhaul.install.fileboot import FileBoot
from overhaul.install.grub import GrubBoot, parse_variables, render_variables

SLOTS = ("A", "B")
_starts = itertools.count(1)


class Loader(Protocol):
    """A boot loader and the backend that talks to it."""

    name: str
    #: The loader's files below the device's directory; prefixes of paths.
    files: tuple[str, ...]
    #: Directories in which a rename is two operations.
    weak: Collection[str]

    def prepare(self, top: Path) -> None:
        """Make the loader's files of a device that leaves the factory."""

    def control(self, top: Path) -> BootControl:
        """Open the real backend on the device in `top`."""

    def agent(self, device: Device, top: Path) -> Device:
        """Return the agent `device` with the real backend in its place."""

    def start(self, top: Path) -> str:
        """Do what the loader does when the device is switched on, and return the slot that runs then."""


class _Sound:
    """The agent of the product, with a backend of the product."""

    def control(self, top: Path) -> BootControl:
        """Open the backend."""
        raise NotImplementedError

    def agent(self, device: Device, top: Path) -> Device:
        """Put the backend in its place."""
        return dataclasses.replace(device, boot=self.control(top))


class FileLoader(_Sound):
    """The JSON file, whose loader is part of the product (`simulate_boot`)."""

    name = "file"
    files: tuple[str, ...] = ("boot/",)
    weak: Collection[str] = ()

    def prepare(self, top: Path) -> None:
        """Make the file as a first start does."""
        (top / "boot").mkdir()
        self._boot(top).simulate_boot()

    def control(self, top: Path) -> BootControl:
        """Open the backend."""
        return self._boot(top)

    def start(self, top: Path) -> str:
        """Start the device."""
        return self._boot(top).simulate_boot()

    def _boot(self, top: Path) -> FileBoot:
        return FileBoot(top / "boot/boot.json", SLOTS)


class GrubLoader(_Sound):
    """GRUB's environment block."""

    name = "grub"
    files: tuple[str, ...] = ("boot/",)
    weak: Collection[str] = ()

    def prepare(self, top: Path) -> None:
        """Make the block as `grub-editenv create` does."""
        (top / "boot").mkdir()
        (top / "boot/grubenv").write_bytes(write_block({"saved_entry": "overhaul"}))
        note_start(top, "A")

    def control(self, top: Path) -> BootControl:
        """Open the backend."""
        return GrubBoot(top / "boot/grubenv", slot_paths(top), root=root_of(top))

    def start(self, top: Path) -> str:
        """Choose as `overhaul.cfg` does; a block that GRUB cannot read is as good as an empty one."""
        path = top / "boot/grubenv"
        try:
            environment = read_block(path.read_bytes())
        except (MalformedEnvironmentError, FileNotFoundError):
            slot = chosen_slot(parse_variables({}, SLOTS))
        else:
            variables = parse_variables(environment, SLOTS)
            slot = chosen_slot(variables)
            counted = after_boot(variables)
            if counted != variables:
                size = path.stat().st_size
                path.write_bytes(write_block({**environment, **render_variables(counted)}, size=size))
        note_start(top, slot)
        return slot


def slot_paths(top: Path) -> dict[str, Path]:
    """Return the files that are the slots."""
    return {slot: top / f"slot-{slot}.img" for slot in SLOTS}


def root_of(top: Path) -> Path:
    """Return where the running kernel's files are; they are in memory, so no power cut leaves them."""
    return top.with_name(f"{top.name}.kernel")


def note_start(top: Path, slot: str) -> None:
    """Let the kernel say which slot was started, and that it was another start."""
    proc = root_of(top) / "proc"
    (proc / "sys/kernel/random").mkdir(parents=True, exist_ok=True)
    (proc / "cmdline").write_text(f"quiet overhaul.slot={slot}\n")
    (proc / "sys/kernel/random/boot_id").write_text(f"start-{next(_starts)}\n")


LOADERS: dict[str, Loader] = {loader.name: loader for loader in (FileLoader(), GrubLoader())}
