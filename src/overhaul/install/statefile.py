"""A program's memory on the device: one small record, replaced as a whole.

A file that is there and cannot be read is an error, never a new beginning: what a device has refused must not be
forgotten because of a damaged sector.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from overhaul.errors import DeviceError
from overhaul.host.files import make_directory, replace_bytes


class StateUnreadableError(DeviceError):
    """The state file is there, but its bytes are no state."""

    def __init__(self, *, path: Path, reason: str, next_step: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The state file {path} cannot be read ({reason}). {next_step}")


class Record(Protocol):
    """A msgspec record that says which format it has."""

    @property
    def format(self) -> int:
        """Return the number of its format."""


_Record = TypeVar("_Record", bound=Record)


class RecordFile(Generic[_Record]):
    """Keeps one record.

    Args:
        path: The file.
        kind: The record's class, a msgspec struct.
        version: The format that is read.
        next_step: What an owner can do about a file that cannot be read; a sentence.
        contradiction: Tells what in a record cannot be true, empty when nothing is.
    """

    def __init__(
        self, path: Path, kind: type[_Record], *, version: int, next_step: str, contradiction: Callable[[_Record], str]
    ) -> None:
        self.path = path
        self._kind = kind
        self._version = version
        self._next_step = next_step
        self._contradiction = contradiction

    def load(self) -> _Record | None:
        """Return what is remembered, or None when nothing ever was.

        Raises:
            StateUnreadableError: The file is damaged, or of another format.
        """
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            record = msgspec.json.decode(data, type=self._kind)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise self._unreadable(str(error)) from error
        if record.format != self._version:
            raise self._unreadable(f"its format is {record.format}, not {self._version}")
        reason = self._contradiction(record)
        if reason:
            raise self._unreadable(reason)
        return record

    def save(self, record: _Record) -> None:
        """Store `record` durably, all at once."""
        make_directory(self.path.parent, mode=0o700)
        replace_bytes(self.path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n", mode=0o600)

    def _unreadable(self, reason: str) -> StateUnreadableError:
        return StateUnreadableError(path=self.path, reason=reason, next_step=self._next_step)
