"""Backends and writers with a mistake in them, to see that the checker of power cuts finds it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from overhaul.agent.ports import Content, Device
from overhaul.content.target import SlotTarget
from overhaul.install.fileboot import FileBoot
from overhaul.install.grub import GrubBoot
from overhaul.install.state import DeviceState, StateFile
from tests.crash.loaders import SLOTS, FileLoader, GrubLoader, Loader, is_recorded, root_of, slot_paths


def _replace_unsynced(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


class _UnsyncedBoot(FileBoot):
    """Replaces its file without making the bytes durable first."""

    def _store(self, document: msgspec.Struct) -> None:
        _replace_unsynced(self._path, msgspec.json.encode(document))


class _EagerBoot(FileBoot):
    """Has the slot boot next from the moment at which its first byte is about to be written."""

    def mark_bad(self, slot: str) -> None:
        """Do the opposite."""
        self.try_next(slot, attempts=3)


class _UnsyncedGrubBoot(GrubBoot):
    """Does not sync what it writes in place."""

    def _write_in_place(self, block: bytes) -> None:
        with self._path.open("r+b") as stream:
            stream.write(block)


class _UnsyncedStates(StateFile):
    """Replaces the state without making its bytes durable first."""

    def save(self, state: DeviceState) -> None:
        """Store `state`, or so it seems."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _replace_unsynced(self.path, msgspec.json.encode(state))


class _Unsynced(FileLoader):
    name = "broken: the boot file is not synced"
    mistake = "boot.json"

    def _boot(self, top: Path) -> FileBoot:
        return _UnsyncedBoot(top / "boot/boot.json", SLOTS)


class _Eager(FileLoader):
    name = "broken: the slot boots before its bytes are there"
    mistake = "holds no whole release"

    def _boot(self, top: Path) -> FileBoot:
        return _EagerBoot(top / "boot/boot.json", SLOTS)


class _UnsyncedBlock(GrubLoader):
    name = "broken: the GRUB block is not synced"
    mistake = "holds no whole release"

    def control(self, top: Path) -> GrubBoot:
        """Open the broken backend."""
        return _UnsyncedGrubBoot(top / "boot/grubenv", slot_paths(top), root=root_of(top))


class _UnsyncedState(FileLoader):
    name = "broken: the state is not synced"
    mistake = "StateUnreadableError"

    def agent(self, device: Device, top: Path) -> Device:
        """Use the broken writer."""
        return dataclasses.replace(super().agent(device, top), states=_UnsyncedStates(top / "state"))


class _UnsyncedSlot(FileLoader):
    name = "broken: the slot is not synced"
    mistake = "holds no whole release"

    def agent(self, device: Device, top: Path) -> Device:
        """Leave the slot in the page cache."""

        def open_content() -> Content:
            setattr(SlotTarget, "sync", lambda _slot: None)  # noqa: B010 - takes the place of a method
            return device.open_content()

        # The checker uses the sound one.
        opened = open_content if is_recorded() else device.open_content
        return dataclasses.replace(super().agent(device, top), open_content=opened)


class BrokenLoader(Loader, Protocol):
    """A loader with a mistake, and a word of what the checker must say of it."""

    mistake: str


_ALL: tuple[BrokenLoader, ...] = (_Unsynced(), _Eager(), _UnsyncedBlock(), _UnsyncedState(), _UnsyncedSlot())
BROKEN: Mapping[str, BrokenLoader] = {loader.name: loader for loader in _ALL}
