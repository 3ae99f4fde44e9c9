"""Boot control in a JSON file: for virtual devices, and for boot loaders that a script of the owner drives.

The file holds the loader's variables, the slot that runs, and how often the device was started. It is replaced as
a whole, so every change is there or is not; also when nothing changes, because what stands there may be the work of
a killed program that is not durable yet. `simulate_boot` does what a boot loader would do between two lives of
the device.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from overhaul.host.files import replace_bytes, require_writable
from overhaul.install.boot import BootControlError, SlotBootState
from overhaul.install.countdown import (
    BootVariables,
    SlotName,
    after_boot,
    chosen_slot,
    first_variables,
    slot_state,
    with_bad,
    with_good,
    with_trial,
)


class _Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    booted: SlotName
    boots: int
    variables: BootVariables


class FileBoot:
    """Implements `BootControl` on a file."""

    def __init__(self, path: Path, slots: Sequence[str]) -> None:
        self._path = path
        self._slots = tuple(slots)

    def booted(self) -> str:
        """Return the slot that the last simulated start chose."""
        return self._read().booted

    def boot_id(self) -> str:
        """Return the number of the last simulated start."""
        return str(self._read().boots)

    def primary(self) -> str:
        """Return the slot the next start would choose."""
        return chosen_slot(self._read().variables)

    def state(self, slot: str) -> SlotBootState:
        """Return what the next start would do with `slot`."""
        return slot_state(self._read().variables, slot)

    def require_ready(self, slot: str) -> None:
        """Refuse a file that cannot be read, or not be replaced."""
        with_bad(self._read().variables, slot)
        try:
            require_writable(self._path.parent)
        except OSError as error:
            raise BootControlError(place=str(self._path), reason=error.strerror or str(error)) from error

    def mark_bad(self, slot: str) -> None:
        """Make sure, durably, that `slot` is not booted."""
        document = self._read()
        self._write(document, with_bad(document.variables, slot))

    def try_next(self, slot: str, *, attempts: int) -> None:
        """Boot `slot` next, at most `attempts` times until it is marked good."""
        document = self._read()
        self._write(document, with_trial(document.variables, slot, attempts=attempts))

    def mark_good(self, slot: str) -> None:
        """Confirm `slot`: it boots from now on."""
        document = self._read()
        self._write(document, with_good(document.variables, slot))

    def simulate_boot(self) -> str:
        """Start the device as a boot loader would, and return the slot that now runs."""
        document = self._read()
        slot = chosen_slot(document.variables)
        self._store(_Document(booted=slot, boots=document.boots + 1, variables=after_boot(document.variables)))
        return slot

    def _read(self) -> _Document:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return _Document(booted=self._slots[0], boots=0, variables=first_variables(self._slots))
        except OSError as error:
            raise BootControlError(place=str(self._path), reason=error.strerror or str(error)) from error
        try:
            document = msgspec.json.decode(data, type=_Document)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BootControlError(place=str(self._path), reason=str(error)) from error
        if not sorted(self._slots) == sorted(document.variables.order) == sorted(document.variables.slots):
            raise BootControlError(
                place=str(self._path), reason=f"it does not hold exactly the slots {', '.join(self._slots)}"
            )
        return document

    def _write(self, document: _Document, variables: BootVariables) -> None:
        self._store(msgspec.structs.replace(document, variables=variables))

    def _store(self, document: _Document) -> None:
        data = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
        try:
            replace_bytes(self._path, data)
        except OSError as error:
            raise BootControlError(place=str(self._path), reason=error.strerror or str(error)) from error
