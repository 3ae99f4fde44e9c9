"""What the agent remembers: one small file outside the slots, replaced as a whole.

The file lies in the state directory, which no update touches, so it survives a switch of slots and the loss of
either. Phases, and who moves on from each:

    IDLE              nothing under way
    INSTALLING        the target slot is being written; it is marked bad and its bytes are worth nothing yet
    INSTALLED         every byte of the target was read back and is right; the boot loader may not know yet
    AWAITING_REBOOT   the boot loader will try the target next
    TRIAL             the target runs and waits for its health check
    GIVING_UP         the target is not wanted any more; it is being marked bad, then the old slot boots

`agent.recovery` says what each phase means after a restart.
"""

import secrets
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec

from overhaul.host.files import sync_directory
from overhaul.install.countdown import SlotName
from overhaul.install.statefile import RecordFile
from overhaul.policy.floors import KnownFloor
from overhaul.release.names import Sha256, Size, Token
from overhaul.release.record import ReleaseId

STATE_FORMAT = 1
#: Enough for years of updates, and still a file of a few pages.
MAX_EVENTS = 100
MAX_REFUSED = 64


class Phase(StrEnum):
    """How far an update is."""

    IDLE = "idle"
    INSTALLING = "installing"
    INSTALLED = "installed"
    AWAITING_REBOOT = "awaiting-reboot"
    TRIAL = "trial"
    GIVING_UP = "giving-up"


class EventKind(StrEnum):
    """What can stand in the history."""

    STARTED = "started"
    INSTALLED = "installed"
    CONFIRMED = "confirmed"
    UNHEALTHY = "unhealthy"
    FELL_BACK = "fell-back"
    ROLLED_BACK = "rolled-back"
    CANCELLED = "cancelled"


class SlotContent(msgspec.Struct, frozen=True, kw_only=True):
    """The release that a slot holds."""

    release: ReleaseId
    #: Digest of the release's index: it names every byte, and finds the deltas that begin here. None for a slot that
    #: was written by something else, such as a factory, and whose release is not published.
    index_sha256: Sha256 | None = None
    image_size: Size | None = None


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where the update under way leads."""

    slot: SlotName
    content: SlotContent
    #: The slot that boots when this comes to nothing.
    fallback: SlotName
    #: Whether the restart need not wait for its hours.
    urgent: bool = False
    #: Whether a person asked to go back to it; asked again, that is the same wish.
    is_going_back: bool = False
    #: The start of the system in which the target was handed to the boot loader; empty before that.
    armed_in_boot: str = ""
    #: Random, made for this update; ties its reports together, and no two updates.
    update_id: str = ""


class RefusedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A release this device will not take again."""

    version: Token
    build_id: Token
    reason: str
    at: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history."""

    at: int
    kind: EventKind
    slot: SlotName
    version: Token
    build_id: Token
    detail: str = ""


class DeviceState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the agent remembers. Times are seconds since 1970 UTC."""

    format: int = STATE_FORMAT
    phase: Phase = Phase.IDLE
    #: Random, made on this device; decides rollout buckets and never leaves it.
    rollout_id: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    slots: Mapping[SlotName, SlotContent] = {}
    target: Target | None = None
    refused: tuple[RefusedVersion, ...] = ()
    #: The highest minimum version that was signed for this device so far.
    floor: KnownFloor | None = None
    history: tuple[Event, ...] = ()
    checked_at: int = 0
    updated_at: int = 0


def fresh_state() -> DeviceState:
    """Return the state of a device that was never updated, with a rollout id of its own."""
    return DeviceState(rollout_id=secrets.token_hex(16))


def with_event(state: DeviceState, event: Event) -> DeviceState:
    """Return the state with `event` at the end of its history, and the oldest events dropped."""
    return msgspec.structs.replace(state, history=(*state.history, event)[-MAX_EVENTS:])


def with_refused(state: DeviceState, refused: RefusedVersion) -> DeviceState:
    """Return the state that refuses a version; a version is listed once, with the last reason."""
    others = tuple(old for old in state.refused if (old.version, old.build_id) != (refused.version, refused.build_id))
    return msgspec.structs.replace(state, refused=(*others, refused)[-MAX_REFUSED:])


class StateFile:
    """The state on disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.json"
        self._file = RecordFile(
            self.path,
            DeviceState,
            version=STATE_FORMAT,
            next_step="Move it away and run `overhaul device init` again; the slots stay as they are, only the memory "
            "of refused versions is lost.",
            contradiction=_contradiction,
        )

    def load(self) -> DeviceState:
        """Return what is remembered; on the first run that is a fresh state, stored before it is returned.

        Raises:
            StateUnreadableError: The file is damaged. It is never silently begun anew: that would forget versions
                this device refused.
        """
        state = self._file.load()
        if state is None:
            state = fresh_state()
            self.save(state)
        return state

    def make_durable(self) -> None:
        """Make durable what `load` returns: a killed agent may have replaced the file and not synced its name."""
        if self.path.exists():
            sync_directory(self.path.parent)

    def save(self, state: DeviceState) -> None:
        """Store `state` durably, all at once."""
        self._file.save(state)


def _contradiction(state: DeviceState) -> str:
    agrees = (state.target is None) == (state.phase is Phase.IDLE)
    return "" if agrees else f"the phase {state.phase} contradicts its target"
