"""The boot control seam: which slot runs now, which boots next, and how often it may try.

The rules every implementation keeps (design: a device always boots the old or the new slot):

* A slot is `good` (confirmed), on `trial` (may boot a counted number of times), or `bad` (never chosen).
* Every change is durable when its call returns, also when there was nothing to change: what can be read may be the
  work of a program that was killed before it synced. `mark_bad` is called before the first byte of a slot is
  overwritten.
* `try_next` makes a slot the next to boot, on trial; when its attempts are used up without `mark_good`, the boot
  loader by itself goes back to the other good slot.
* `mark_good` confirms a slot and makes it the one that boots from now on.
* `require_ready` changes nothing. What it can know beforehand it refuses, so that an update that could not be armed is
  not fetched.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from overhaul.errors import DeviceError


class SlotStatus(StrEnum):
    """What the boot loader may do with a slot."""

    GOOD = "good"
    TRIAL = "trial"
    BAD = "bad"


@dataclass(frozen=True, kw_only=True)
class SlotBootState:
    """One slot as the boot loader sees it."""

    status: SlotStatus
    attempts_left: int


class BootControl(Protocol):
    """The boot loader's variables."""

    def booted(self) -> str:
        """Return the name of the slot that runs now."""

    def boot_id(self) -> str:
        """Return what tells this start of the system from every other one."""

    def primary(self) -> str:
        """Return the name of the slot that the boot loader would choose now."""

    def state(self, slot: str) -> SlotBootState:
        """Return what the boot loader knows of `slot`."""

    def require_ready(self, slot: str) -> None:
        """Refuse what would keep an update into `slot` from being told to the boot loader.

        Raises:
            BootControlError: The variables or the boot partition are missing, damaged, not to be written, not such as
                the boot loader would heed, or without room.
        """

    def mark_bad(self, slot: str) -> None:
        """Make sure, durably, that `slot` is not booted."""

    def try_next(self, slot: str, *, attempts: int) -> None:
        """Boot `slot` next, at most `attempts` times until it is marked good."""

    def mark_good(self, slot: str) -> None:
        """Confirm `slot`: it boots from now on."""


class BootControlError(DeviceError):
    """The boot loader's variables could not be read or written."""

    def __init__(self, *, place: str, reason: str) -> None:
        self.place = place
        self.reason = reason
        super().__init__(f"The boot variables in {place} cannot be used: {reason}.")
