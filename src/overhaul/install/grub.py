"""Boot control through GRUB's environment block; `deploy/grub/overhaul.cfg` is the other half.

How the block is written, and why not otherwise:

* In place, with one write of the whole block and a sync. GRUB reads the file by its sectors and knows no journal.
  A rename is durable for Linux once it is in the journal, but GRUB would still see the old directory and the old,
  perhaps reused, sectors; and FAT has no atomic rename at all.
* Not with `grub-editenv`, which truncates the file before it writes (`fopen "wb"`): killed between the two it
  leaves an empty block, and GRUB would boot the default slot, which may be the half-written one.
* Our variables come first, so they lie in the first 512 bytes, and the rest of the block does not change. A disk
  writes a sector wholly or not at all, so a power cut leaves the old variables or the new ones. Where foreign
  variables push the changed bytes over a sector's edge, the write is refused.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from overhaul.host.files import require_writable
from overhaul.install.boot import BootControlError, SlotBootState
from overhaul.install.countdown import (
    MAX_ATTEMPTS,
    BootVariables,
    chosen_slot,
    parse_variables,
    render_variables,
    slot_state,
    with_bad,
    with_good,
    with_trial,
)
from overhaul.install.envblock import MalformedEnvironmentError, read_block, write_block
from overhaul.install.running import RunningSystem

_SECTOR = 512


class GrubBoot:
    """Implements `BootControl` on a `grubenv` file."""

    def __init__(self, path: Path, slots: Mapping[str, Path], *, root: Path = Path("/")) -> None:
        self._path = path
        self._slots = dict(slots)
        self._running = RunningSystem(slots, root=root)

    def booted(self) -> str:
        """Return the slot that the kernel was started from."""
        return self._running.slot()

    def boot_id(self) -> str:
        """Return the kernel's random id of this start."""
        return self._running.boot_id()

    def primary(self) -> str:
        """Return the slot that GRUB would choose now."""
        return chosen_slot(self._load()[0])

    def state(self, slot: str) -> SlotBootState:
        """Return what GRUB would do with `slot`."""
        return slot_state(self._load()[0], slot)

    def require_ready(self, slot: str) -> None:
        """Refuse a block that cannot be read, or whose change could be torn or not be written."""
        variables, block = self._load()
        for wanted in (with_bad(variables, slot), with_trial(variables, slot, attempts=MAX_ATTEMPTS)):
            self._render(wanted, block)
        try:
            require_writable(self._path)
        except OSError as error:
            raise BootControlError(place=str(self._path), reason=error.strerror or str(error)) from error

    def mark_bad(self, slot: str) -> None:
        """Make sure, durably, that `slot` is not booted."""
        variables, block = self._load()
        self._store(with_bad(variables, slot), block)

    def try_next(self, slot: str, *, attempts: int) -> None:
        """Boot `slot` next, at most `attempts` times until it is marked good."""
        variables, block = self._load()
        self._store(with_trial(variables, slot, attempts=attempts), block)

    def mark_good(self, slot: str) -> None:
        """Confirm `slot`: it boots from now on."""
        variables, block = self._load()
        self._store(with_good(variables, slot), block)

    def _load(self) -> tuple[BootVariables, bytes]:
        try:
            block = self._path.read_bytes()
            return parse_variables(read_block(block), tuple(self._slots)), block
        except OSError as error:
            raise BootControlError(
                place=str(self._path),
                reason=f"{error.strerror or error}; make the file with `grub-editenv {self._path} create`",
            ) from error
        except MalformedEnvironmentError as error:
            raise BootControlError(place=str(self._path), reason=error.reason) from error

    def _store(self, variables: BootVariables, before: bytes) -> None:
        after = self._render(variables, before)
        try:
            # Also when nothing changes: what stands there may be the work of a killed program, not synced yet.
            self._write_in_place(after)
        except OSError as error:
            raise BootControlError(place=str(self._path), reason=error.strerror or str(error)) from error

    def _render(self, variables: BootVariables, before: bytes) -> bytes:
        """Return the block with `variables` in place of those in `before`; one that power cuts could tear is none."""
        try:
            foreign = {name: value for name, value in read_block(before).items() if not self._is_ours(name)}
            after = write_block({**render_variables(variables), **foreign}, size=len(before))
        except MalformedEnvironmentError as error:
            raise BootControlError(place=str(self._path), reason=error.reason) from error
        changed = [place for place in range(len(after)) if after[place] != before[place]]
        if changed and changed[0] // _SECTOR != changed[-1] // _SECTOR and _holds_ours(before, self._slots):
            raise BootControlError(
                place=str(self._path),
                reason="other variables take so much room that a power cut could tear the write; remove some with "
                "`grub-editenv`",
            )
        return after

    def _write_in_place(self, block: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, block, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _is_ours(self, name: str) -> bool:
        return name == "ORDER" or any(name in (f"{slot}_OK", f"{slot}_TRY") for slot in self._slots)


def _holds_ours(block: bytes, slots: Mapping[str, Path]) -> bool:
    """Say whether the block was written by us before; the very first write changes all of it and risks nothing."""
    environment = read_block(block)
    return "ORDER" in environment and all(f"{slot}_OK" in environment for slot in slots)
