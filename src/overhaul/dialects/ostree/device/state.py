"""What the updater remembers, and what it means after a restart.

One small file outside the deployments, replaced as a whole. Each phase is stored when its step is done, so that a run
killed anywhere goes on at the step that was not:

    IDLE        nothing under way
    FETCHED     the target's commit is in the repository, whole and verified
    DEPLOYED    the target boots next; the hooks have not run yet
    READY       the hooks have run; only the restart is missing
    TRIAL       the target runs and waits for its health check
    GIVING_UP   the target is not wanted any more; the old deployment becomes the default, and the hooks run for it
    LEAVING     the hooks have run; only the restart is missing, when the target runs

`settle` compares it with what the boot loader and the kernel say:

    phase               the target runs     another runs
    FETCHED             as another          DEPLOYED if the target is the default, else left alone
    DEPLOYED            left alone          left alone: a hook may be what makes the target boot
    READY               TRIAL, if the device was started since; else left alone
                                            fell back, if the device was started since and the target is the default
    TRIAL               left alone          fell back
    GIVING_UP           left alone          left alone: a hook may be what makes the old one boot
    LEAVING             left alone          IDLE

A target that was undeployed, or that its owner put behind another, is forgotten without being refused. Falling back
means that the commit is refused from now on (a newer one is not), and GIVING_UP. Nothing is judged on a system root
that does not run.

Hooks bring along what lies outside the deployments, such as an application on the ESP. So no step forward or back
counts as done before they have run for it, not even when a loss of power let the device start without them.
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import msgspec

from overhaul.dialects.ostree.device.seen import SeenSummary
from overhaul.dialects.ostree.device.sysroot import Deployment, booted_deployment
from overhaul.install.statefile import RecordFile

STATE_FORMAT = 1
_MAX_EVENTS = 100
_MAX_REFUSED = 64


class Phase(StrEnum):
    """How far an update is."""

    IDLE = "idle"
    FETCHED = "fetched"
    DEPLOYED = "deployed"
    READY = "ready"
    TRIAL = "trial"
    GIVING_UP = "giving-up"
    LEAVING = "leaving"


class EventKind(StrEnum):
    """What can stand in the history."""

    FETCHED = "fetched"
    DEPLOYED = "deployed"
    CONFIRMED = "confirmed"
    UNHEALTHY = "unhealthy"
    FELL_BACK = "fell-back"
    ROLLED_BACK = "rolled-back"
    FORGOTTEN = "forgotten"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where the update under way leads."""

    osname: str
    commit: str
    version: str = ""
    #: `COMMIT.SERIAL`, once it is deployed.
    deployment: str = ""
    #: What ran when it was deployed: `COMMIT.SERIAL`; empty when nothing did.
    fallback: str = ""
    #: The start of the system in which it was deployed.
    armed_in_boot: str = ""


class RefusedCommit(msgspec.Struct, frozen=True, kw_only=True):
    """A commit that this device will not take again."""

    commit: str
    reason: str
    at: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the history."""

    at: int
    kind: EventKind
    commit: str
    detail: str = ""


class UpdateState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the updater remembers. Times are seconds since 1970 UTC."""

    format: int = STATE_FORMAT
    phase: Phase = Phase.IDLE
    target: Target | None = None
    refused: tuple[RefusedCommit, ...] = ()
    history: tuple[Event, ...] = ()
    checked_at: int = 0
    #: What the server said last.
    seen: SeenSummary | None = None

    def refusal(self, commit: str) -> str | None:
        """Return why a commit is refused, or None."""
        return next((refused.reason for refused in self.refused if refused.commit == commit), None)


class StateFile:
    """The state on disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "state.json"
        self._file = RecordFile(
            self.path,
            UpdateState,
            version=STATE_FORMAT,
            next_step="Move it away and run again; only the memory of refused commits is lost.",
            contradiction=_contradiction,
        )

    def load(self) -> UpdateState:
        """Return what is remembered; nothing on the first run.

        Raises:
            StateUnreadableError: The file is damaged.
        """
        return self._file.load() or UpdateState()

    def save(self, state: UpdateState) -> None:
        """Store `state` durably, all at once."""
        self._file.save(state)


def _contradiction(state: UpdateState) -> str:
    agrees = (state.target is None) == (state.phase is Phase.IDLE)
    return "" if agrees else f"the phase {state.phase} contradicts its target"


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The state that is true now; it is stored first, and what it wants is done then."""

    state: UpdateState
    #: `COMMIT.SERIAL` of the deployment to make the default, while it is still a target that is given up.
    wanted_default: str | None = None
    #: `COMMIT.SERIAL` of the deployment that the hooks have to run for, which boots next in place of the target.
    wanted_hooks: str | None = None


def settle(  # noqa: PLR0911 - one answer for each line of the table
    state: UpdateState, deployments: tuple[Deployment, ...], *, boot_id: str, now: int
) -> Settled:
    """Return what is true now; see the table above."""
    target = state.target
    if target is None:
        return Settled(state=state)
    own = [one for one in deployments if one.osname == target.osname]
    if state.phase is Phase.FETCHED:
        return Settled(state=_settle_fetched(state, target, own, boot_id=boot_id))
    if state.phase in {Phase.GIVING_UP, Phase.LEAVING}:
        return _settle_giving_up(state, target, own, now=now)
    found = next((one for one in own if one.name == target.deployment), None)
    if found is None:
        detail = "it is not deployed any more"
        return Settled(state=idle(state, kind=EventKind.FORGOTTEN, now=now, detail=detail))
    is_default = found is own[0]
    started_since = state.phase is Phase.READY and boot_id != target.armed_in_boot
    if found.is_booted:
        is_on_trial = started_since or state.phase is Phase.TRIAL
        return Settled(state=msgspec.structs.replace(state, phase=Phase.TRIAL) if is_on_trial else state)
    is_other_booted = booted_deployment(deployments) is not None
    if is_other_booted and (state.phase is Phase.TRIAL or (is_default and started_since)):
        reason = "it did not stay up: another deployment runs again"
        left = with_event(state, EventKind.FELL_BACK, target.commit, now=now, detail=reason)
        leaving = msgspec.structs.replace(refusing(left, target, reason=reason, now=now), phase=Phase.GIVING_UP)
        return _settle_giving_up(leaving, target, own, now=now)
    if not is_default:
        detail = "its owner made another the default"
        return Settled(state=idle(state, kind=EventKind.FORGOTTEN, now=now, detail=detail))
    return Settled(state=state)


def _settle_fetched(state: UpdateState, target: Target, own: list[Deployment], *, boot_id: str) -> UpdateState:
    """Return what is true of a target that may have been deployed without a note of it."""
    if not own or own[0].commit != target.commit:
        return state
    runs = booted_deployment(tuple(own))
    known = msgspec.structs.replace(
        target,
        deployment=own[0].name,
        fallback=next((one.name for one in own[1:] if runs is None or one.is_booted), ""),
        armed_in_boot=boot_id,
    )
    return msgspec.structs.replace(state, phase=Phase.DEPLOYED, target=known)


def _settle_giving_up(state: UpdateState, target: Target, own: list[Deployment], *, now: int) -> Settled:
    """Return what is left to do to be rid of a target: the default first, then the hooks, then the restart."""
    others = [one for one in own if one.name != target.deployment]
    if others and others[0] is not own[0]:
        runs = booted_deployment(tuple(others))
        named = next((one for one in others if one.name == target.fallback), others[0])
        again = msgspec.structs.replace(state, phase=Phase.GIVING_UP)
        return Settled(state=again, wanted_default=(runs or named).name)
    if others and state.phase is Phase.GIVING_UP:
        return Settled(state=state, wanted_hooks=others[0].name)
    is_running = any(one.is_booted for one in own if one.name == target.deployment)
    return Settled(state=state if is_running else idle(state, kind=EventKind.ROLLED_BACK, now=now))


def idle(state: UpdateState, *, kind: EventKind, now: int, detail: str = "") -> UpdateState:
    """Return the state in which the update under way has ended."""
    target = state.target
    ended = msgspec.structs.replace(state, phase=Phase.IDLE, target=None)
    return ended if target is None else with_event(ended, kind, target.commit, now=now, detail=detail)


def with_event(state: UpdateState, kind: EventKind, commit: str, *, now: int, detail: str = "") -> UpdateState:
    """Return the state with one more line in its history, the oldest dropped."""
    event = Event(at=now, kind=kind, commit=commit, detail=detail)
    return msgspec.structs.replace(state, history=(*state.history, event)[-_MAX_EVENTS:])


def refusing(state: UpdateState, target: Target, *, reason: str, now: int) -> UpdateState:
    """Return the state that refuses the target's commit."""
    others = tuple(old for old in state.refused if old.commit != target.commit)
    refused = RefusedCommit(commit=target.commit, reason=reason, at=now)
    return msgspec.structs.replace(state, refused=(*others, refused)[-_MAX_REFUSED:])
