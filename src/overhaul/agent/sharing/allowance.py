"""How much may be given: so many bytes a second, so many a day, counted across restarts.

Time is handed in. A request is either given a moment at which it may go out, near enough to wait for, or told when to
ask again.
"""

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from overhaul.host.files import replace_bytes

#: A neighbour is not kept waiting longer than this; it asks others meanwhile.
MAX_WAIT_S = 2.0
#: The day's account is written ahead by so much, so that it is written seldom and never says too little.
_STEP_BYTES = 16 * 1024 * 1024


class Turn(NamedTuple):
    """When bytes may go out."""

    wait_s: float
    #: Whether they may go out then; else others are first, and whoever wants them asks again after that time.
    is_booked: bool


class _Account(msgspec.Struct, frozen=True):
    day: str
    bytes: int


@dataclass
class Allowance:
    """The account of one device; used by one thread."""

    max_bytes_per_s: int
    max_bytes_per_day: int
    file: Path
    #: Seconds that only go forward, and the time of day.
    monotonic: Callable[[], float]
    now: Callable[[], datetime.datetime]
    _free_at: float = 0.0
    _account: _Account | None = None
    _given_bytes: int = 0

    def reserve(self, size: int) -> Turn | None:
        """Return when `size` bytes may go out, or None when they may not today."""
        now = self.monotonic()
        begin = max(now, self._free_at)
        if begin - now > MAX_WAIT_S:
            return Turn(begin - now, is_booked=False)
        if not self._book(size):
            return None
        self._free_at = begin + size / self.max_bytes_per_s
        return Turn(begin - now, is_booked=True)

    def _book(self, size: int) -> bool:
        day = self.now().date().isoformat()
        if self._account is None:
            self._account = self._read()
            self._given_bytes = self._account.bytes
        if self._account.day != day:
            self._account, self._given_bytes = _Account(day, 0), 0
        if self._given_bytes + size > self.max_bytes_per_day:
            return False
        self._given_bytes += size
        if self._given_bytes > self._account.bytes:
            self._account = _Account(day, min(self._given_bytes + _STEP_BYTES, self.max_bytes_per_day))
            replace_bytes(self.file, msgspec.json.encode(self._account), mode=0o600)
        return True

    def _read(self) -> _Account:
        try:
            return msgspec.json.decode(self.file.read_bytes(), type=_Account)
        except (OSError, msgspec.MsgspecError, UnicodeError):
            return _Account("", 0)
