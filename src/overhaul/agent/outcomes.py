"""What the agent's commands answer, and the exit code of each answer.

An answer that leaves nothing to do or must wait is no error: it has an exit code of its own, so that a timer or a
script can tell it apart without reading text. Failures have the exit codes of their families in `overhaul.errors`.
"""

from collections.abc import Mapping
from enum import IntEnum, StrEnum

import msgspec

from overhaul.install.boot import SlotStatus
from overhaul.install.health import CheckResult
from overhaul.install.state import Event, Phase, RefusedVersion, SlotContent
from overhaul.policy.selection import Decision, Hold, UpToDate
from overhaul.release.record import ReleaseId


class ExitCode(IntEnum):
    """The exit codes of answers."""

    DONE = 0
    NOTHING_TO_DO = 20
    HELD = 21

    @property
    def meaning(self) -> str:
        """One line for the reference."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.DONE: "It was done; for `device check`: there is an offer.",
    ExitCode.NOTHING_TO_DO: "The device is up to date, or there is nothing to confirm.",
    ExitCode.HELD: "There is something for the device, but it must wait; `device check` says why.",
}


class Restart(StrEnum):
    """What became of the wish to restart."""

    REQUESTED = "requested"
    LEFT_TO_OWNER = "left-to-owner"
    POSTPONED = "postponed"


class RestartAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the wish to restart, and why when it was postponed."""

    restart: Restart
    reason: str = ""


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `check`."""

    running: ReleaseId
    decision: Decision
    #: Whether the repository had something new since the last time.
    repository_changed: bool
    #: Why the device itself waits with what it is offered; empty when it does not.
    waits: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """Done for an offer."""
        if isinstance(self.decision, UpToDate):
            return ExitCode.NOTHING_TO_DO
        return ExitCode.HELD if isinstance(self.decision, Hold) or self.waits else ExitCode.DONE


class Updated(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `update` after an installation."""

    from_release: ReleaseId
    to_release: ReleaseId
    slot: str
    image_bytes: int
    way: str
    bytes_received: int
    requests: int
    #: Bytes of the image that were on the device already, in this slot or another.
    reused_bytes: int
    #: Bytes that devices of the same network gave; they are not among those received.
    neighbour_bytes: int = 0
    repaired_chunks: int
    seconds: float
    peak_memory_bytes: int
    restart: RestartAnswer

    @property
    def exit_code(self) -> ExitCode:
        """Done."""
        return ExitCode.DONE


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `update` when an update is installed already and the restart is still to come."""

    release: ReleaseId
    slot: str
    restart: RestartAnswer

    @property
    def exit_code(self) -> ExitCode:
        """Done."""
        return ExitCode.DONE


class Confirmed(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `confirm`: the slot is good from now on, or was already."""

    slot: str
    release: ReleaseId
    checks: tuple[CheckResult, ...]
    was_confirmed: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """Nothing to do when it was confirmed before."""
        return ExitCode.NOTHING_TO_DO if self.was_confirmed else ExitCode.DONE


class RolledBack(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `rollback`."""

    slot: str
    from_release: ReleaseId
    #: None when a restart that had not happened yet was called off.
    to_release: ReleaseId | None
    restart: RestartAnswer | None

    @property
    def exit_code(self) -> ExitCode:
        """Done."""
        return ExitCode.DONE


class SlotReport(msgspec.Struct, frozen=True, kw_only=True):
    """One slot in `status`."""

    path: str
    status: SlotStatus
    attempts_left: int
    content: SlotContent | None


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of `status`."""

    running: ReleaseId
    running_slot: str
    next_slot: str
    phase: Phase
    target: SlotContent | None
    channel: str
    slots: Mapping[str, SlotReport]
    refused: tuple[RefusedVersion, ...]
    last_event: Event | None
    checked_at: int

    @property
    def exit_code(self) -> ExitCode:
        """Done."""
        return ExitCode.DONE
