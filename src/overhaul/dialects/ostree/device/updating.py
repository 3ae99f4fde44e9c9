"""One cycle of the updater: settle what was, fetch, deploy, run the hooks, ask for the restart; and confirming it.

Every step is stored when it is done, and each cycle begins at the first that is not. A cycle never raises for what is
a normal answer; it returns an `Outcome` that says what is true now.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec

from overhaul.dialects.ostree.device.backend import Backend
from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.etcmerge import MergePlan
from overhaul.dialects.ostree.device.hooks import HookFailedError, hooks_in, run_hooks
from overhaul.dialects.ostree.device.pull import RefusedCommitError
from overhaul.dialects.ostree.device.seen import SeenSummary
from overhaul.dialects.ostree.device.settings import UpdateSettings
from overhaul.dialects.ostree.device.state import (
    EventKind,
    Phase,
    StateFile,
    Target,
    UpdateState,
    idle,
    refusing,
    settle,
    with_event,
)
from overhaul.dialects.ostree.device.sysroot import (
    Deployment,
    Origin,
    Sysroot,
    booted_deployment,
    chosen_osname,
    merge_deployment,
)
from overhaul.errors import DeviceError, OverhaulError
from overhaul.host.locks import locked
from overhaul.install.health import CheckResult, Runner, UnhealthyError, run_checks
from overhaul.install.reboot import Restarter


class Mode(StrEnum):
    """How much of a cycle is done."""

    BOTH = "fetch-and-apply"
    FETCH_ONLY = "fetch-only"
    APPLY_ONLY = "apply-only"


class Result(StrEnum):
    """What is true after a cycle."""

    UP_TO_DATE = "up-to-date"
    FETCHED = "fetched"
    #: Deployed, and the restart is asked for.
    RESTARTING = "restarting"
    #: Deployed; the restart is left to the owner.
    DEPLOYED = "deployed"
    #: Deployed; the restart has to wait.
    RESTART_HELD = "restart-held"
    #: What is offered is not taken again.
    REFUSED = "refused"
    CONFIRMED = "confirmed"
    #: The default was set back.
    ROLLED_BACK = "rolled-back"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The answer of one cycle."""

    result: Result
    commit: str = ""
    version: str = ""
    detail: str = ""
    #: What the merge of /etc carried over and where it met the new defaults; of a deployment made in this cycle.
    merge: MergePlan = field(default_factory=MergePlan)
    checks: tuple[CheckResult, ...] = ()


class NoOriginError(DeviceError):
    """It is not known where updates come from."""

    def __init__(self, *, osname: str, reason: str) -> None:
        self.osname = osname
        self.reason = reason
        super().__init__(f"The operating system {osname} has no updates: {reason}.")


class NothingToGoBackToError(DeviceError):
    """There is no other deployment."""

    def __init__(self, *, osname: str) -> None:
        self.osname = osname
        super().__init__(f"The operating system {osname} has no other deployment to go back to.")


@dataclass(frozen=True, kw_only=True)
class Updater:
    """Everything a cycle stands on, handed in."""

    settings: UpdateSettings
    sysroot: Sysroot
    repository: BareRepository
    backend: Backend
    states: StateFile
    lock_path: Path
    osname: str
    restarter: Restarter
    #: Holds a shutdown back while deployments change.
    block_shutdown: Callable[[], AbstractContextManager[None]]
    run: Runner
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    #: Replaces the hooks of the directory; an empty text: no hook at all.
    post_apply_hook: str | None = None
    allows_downgrade: bool = False
    #: Told what the merge of /etc will do, before anything of it is written.
    show_merge: Callable[[MergePlan], None] = lambda _plan: None

    def now(self) -> int:
        """Return the clock's time in seconds since 1970 UTC."""
        return int(self.clock())


def run_cycle(updater: Updater, mode: Mode) -> Outcome:
    """Do what there is to do.

    Raises:
        OverhaulError: A step failed; the next cycle goes on there.
    """
    with _session(updater) as session:
        return session.cycle(mode)


def confirm(updater: Updater) -> Outcome:
    """Check the health of what runs on trial, and keep it, or go back.

    Raises:
        UnhealthyError: It is not healthy: the old deployment boots next, and the commit is refused from now on.
    """
    with _session(updater) as session:
        if session.state.phase is Phase.TRIAL:
            return session.confirm()
        return Outcome(result=Result.UP_TO_DATE, detail="nothing waits for confirmation")


def roll_back(updater: Updater) -> Outcome:
    """Let the deployment before the running or default one boot next, and refuse what is left behind.

    Raises:
        NothingToGoBackToError: There is none.
    """
    with _session(updater) as session:
        return session.gone_back() if session.has_gone_back else session.roll_back()


class _Session:
    def __init__(self, updater: Updater) -> None:
        self.updater = updater
        self.state = updater.states.load()
        #: The first name of an operating system that is meant; looked up only when it is needed.
        self.osname = chosen_osname(updater.sysroot, updater.osname)
        #: Whether this session has finished, or found, a roll back that was under way.
        self.has_gone_back = False

    def begin(self) -> None:
        """Store what is true now; while it wants another default or hooks, see to that and look again."""
        updater = self.updater
        while True:
            deployments = updater.backend.deployments()
            boot_id = updater.sysroot.running.boot_id
            settled = settle(self.state, deployments, boot_id=boot_id, now=updater.now())
            if settled.state != self.state:
                self.save(settled.state)
            self.has_gone_back |= settled.state.phase in {Phase.GIVING_UP, Phase.LEAVING}
            if settled.wanted_default is not None:
                wanted = next(one for one in deployments if one.name == settled.wanted_default)
                updater.backend.make_default(wanted)
            elif settled.wanted_hooks is not None:
                self._run_hooks_back(settled.wanted_hooks)
            else:
                return

    def save(self, state: UpdateState) -> None:
        self.updater.states.save(state)
        self.state = state

    def move(self, phase: Phase, target: Target) -> None:
        self.save(msgspec.structs.replace(self.state, phase=phase, target=target))

    def cycle(self, mode: Mode) -> Outcome:
        if self.state.phase is Phase.TRIAL:
            self.confirm()
        if self.state.phase is Phase.LEAVING:
            return self.gone_back()
        if self.state.phase is Phase.READY:
            return self.restart(Result.DEPLOYED)
        with self.updater.block_shutdown():
            try:
                outcome, merge = self._advance(mode)
            except RefusedCommitError as error:
                return Outcome(result=Result.REFUSED, commit=error.commit, detail=str(error))
        if self.state.phase is Phase.TRIAL:
            return self.confirm()
        # Our own lock is gone before the restart is asked for.
        return outcome or self.restart(Result.DEPLOYED, merge=merge)

    def _advance(self, mode: Mode) -> tuple[Outcome | None, MergePlan]:
        """Fetch, deploy and run the hooks; an outcome when there is nothing to restart into."""
        merge = MergePlan()
        self._obtain(mode)
        if self.state.phase is Phase.IDLE:
            return self._up_to_date(), merge
        if mode is Mode.FETCH_ONLY and self.state.phase is Phase.FETCHED:
            return self._outcome(Result.FETCHED), merge
        if self.state.phase is Phase.FETCHED:
            merge = self._deploy()
        if self.state.phase is Phase.DEPLOYED:
            self._run_hooks()
        return None, merge

    def confirm(self) -> Outcome:
        updater, target = self.updater, self.state.target
        assert target is not None  # noqa: S101
        results = self._check_health(target)
        if all(result.passed for result in results):
            bless_entries(updater.sysroot)
            self.save(idle(self.state, kind=EventKind.CONFIRMED, now=updater.now()))
            return Outcome(result=Result.CONFIRMED, commit=target.commit, version=target.version, checks=tuple(results))
        failed = "; ".join(f"{result.name}: {result.detail}" for result in results if not result.passed)
        try:
            answer = self._give_up(EventKind.UNHEALTHY, failed)
        except HookFailedError as error:
            answer = str(error)
        raise UnhealthyError(
            slot=target.deployment,
            results=results,
            next_step=f"The deployment before it boots next ({answer}); this commit is not taken again.",
        )

    def roll_back(self) -> Outcome:
        deployments = [one for one in self.updater.backend.deployments() if one.osname == self.osname]
        default = deployments[0] if deployments else None
        # Never back to what was left before.
        others = [one for one in deployments if one is not default and self.state.refusal(one.commit) is None]
        if default is None or not others:
            raise NothingToGoBackToError(osname=self.osname)
        fallback = next((one for one in others if one.is_booted), others[0])
        target = Target(osname=self.osname, commit=default.commit, deployment=default.name, fallback=fallback.name)
        self.state = msgspec.structs.replace(self.state, target=target)
        answer = self._give_up(EventKind.ROLLED_BACK, "rolled back by hand")
        return Outcome(result=Result.ROLLED_BACK, commit=fallback.commit, detail=answer)

    def gone_back(self) -> Outcome:
        """Return what a roll back came to; its restart is asked for while what was left still runs."""
        if self.state.phase is Phase.LEAVING:
            return self.restart(Result.ROLLED_BACK, urgent=True)
        default = next((one for one in self.updater.backend.deployments() if one.osname == self.osname), None)
        return Outcome(result=Result.ROLLED_BACK, commit=default.commit if default is not None else "")

    def restart(self, result: Result, *, urgent: bool = False, merge: MergePlan | None = None) -> Outcome:
        updater = self.updater
        merge = merge or MergePlan()
        if updater.sysroot.running.root is None:
            # A system root that does not run, as in a build: there is nothing to restart or to try.
            outcome = self._outcome(result, merge=merge)
            self.save(idle(self.state, kind=EventKind.CONFIRMED, now=updater.now(), detail="it does not run here"))
            return outcome
        try:
            asked = updater.restarter.restart(urgent=urgent)
        except OverhaulError as error:
            return self._outcome(Result.RESTART_HELD, detail=str(error), merge=merge)
        if asked:
            return self._outcome(Result.RESTARTING, merge=merge)
        return self._outcome(result, detail="restarts are left to the owner", merge=merge)

    def _give_up(self, kind: EventKind, reason: str) -> str:
        """Refuse the target, have the deployment before it boot next, and say what became of the restart."""
        updater, target = self.updater, self.state.target
        assert target is not None  # noqa: S101
        leaving = refusing(self.state, target, reason=reason, now=updater.now())
        leaving = with_event(leaving, kind, target.commit, now=updater.now(), detail=reason)
        self.save(msgspec.structs.replace(leaving, phase=Phase.GIVING_UP))
        self.begin()
        if self.state.phase is Phase.IDLE:
            return "it was not running"
        try:
            # What is not healthy is not kept running until a convenient hour.
            asked = updater.restarter.restart(urgent=True)
        except OverhaulError as error:
            return str(error)
        return "restarting" if asked else "restart the device"

    def _obtain(self, mode: Mode) -> None:
        """Reach the phase FETCHED when there is something new."""
        updater = self.updater
        if self.state.phase not in {Phase.IDLE, Phase.FETCHED}:
            return
        deployments = updater.backend.deployments()
        merge = merge_deployment(deployments, self.osname)
        if merge is None or merge.origin is None or not merge.origin.branch:
            raise NoOriginError(osname=self.osname, reason="its deployment has no origin")
        origin = merge.origin
        if origin.override_commit:
            raise NoOriginError(osname=self.osname, reason=f"its owner chose the commit {origin.override_commit}")
        if origin.unconfigured:
            raise NoOriginError(osname=self.osname, reason=origin.unconfigured)
        if mode is Mode.APPLY_ONLY or (mode is Mode.BOTH and not origin.remote):
            found = updater.repository.resolve(origin.remote, origin.branch)
            commit, version = found or "", ""
            if commit and updater.repository.is_partial(commit):
                commit = ""
            if commit and (reason := self.state.refusal(commit)) is not None:
                raise RefusedCommitError(commit=commit, reason=reason)
        else:
            known = None if updater.allows_downgrade else self._newest_timestamp(deployments)
            seen = None if self.state.seen is None else self.state.seen.believed(updater.now())
            try:
                pulled = updater.backend.pull(origin, known_timestamp=known, refused=self.state.refusal, seen=seen)
            except RefusedCommitError as error:
                self._checked(error.seen)
                raise
            commit, version = pulled.commit, pulled.version
            self._checked(pulled.seen)
        newest = next(one for one in deployments if one.osname == self.osname)
        if not commit or commit == newest.commit:
            if self.state.phase is not Phase.IDLE:
                self.save(idle(self.state, kind=EventKind.FORGOTTEN, now=updater.now(), detail="it is deployed"))
            return
        target = Target(osname=self.osname, commit=commit, version=version)
        if self.state.target != target:
            self.save(with_event(self.state, EventKind.FETCHED, commit, now=updater.now()))
            self.move(Phase.FETCHED, target)

    def _checked(self, seen: SeenSummary | None) -> None:
        """Note that the server was asked, and what it said: the time at which a summary was read stays."""
        now, held = self.updater.now(), self.state.seen
        if seen is not None:
            is_read = held is None or held.believed(now) is None or seen.etag != held.etag
            seen = msgspec.structs.replace(seen, at=now if is_read or held is None else held.at)
        self.save(msgspec.structs.replace(self.state, checked_at=now, seen=seen))

    def _newest_timestamp(self, deployments: tuple[Deployment, ...]) -> int | None:
        """Return the time of the newest commit that is deployed and not refused; older ones are not taken."""
        commits = {one.commit for one in deployments if one.osname == self.osname}
        trusted = [commit for commit in commits if self.state.refusal(commit) is None]
        return max((self.updater.repository.commit(commit).timestamp for commit in trusted), default=None)

    def _deploy(self) -> MergePlan:
        updater, target = self.updater, self.state.target
        assert target is not None  # noqa: S101
        deployments = updater.backend.deployments()
        merge = merge_deployment(deployments, target.osname)
        origin = merge.origin if merge is not None and merge.origin is not None else Origin(remote="", branch="")
        plan = updater.backend.preview(osname=target.osname, commit=target.commit)
        updater.show_merge(plan)
        made = updater.backend.deploy(osname=target.osname, commit=target.commit, origin=origin)
        booted = booted_deployment(deployments)
        known = msgspec.structs.replace(
            target,
            deployment=made.name,
            fallback=booted.name if booted is not None else "",
            armed_in_boot=updater.sysroot.running.boot_id,
        )
        self.save(with_event(self.state, EventKind.DEPLOYED, target.commit, now=updater.now()))
        self.move(Phase.DEPLOYED, known)
        updater.backend.clean_up()
        return plan

    def _run_hooks(self) -> None:
        updater, target = self.updater, self.state.target
        assert target is not None  # noqa: S101
        hooks = self._post_apply_hooks()
        self._run(hooks, self._hook_arguments(target))
        booted = booted_deployment(updater.backend.deployments())
        if booted is None or booted.name != target.deployment:
            self.move(Phase.READY, target)
        elif hooks:
            # A loss of power let it start before its hooks had run: what they brought has to be started, too.
            self.move(Phase.READY, msgspec.structs.replace(target, armed_in_boot=updater.sysroot.running.boot_id))
        else:
            self.move(Phase.TRIAL, target)

    def _run_hooks_back(self, deployment: str) -> None:
        """Run the hooks for the deployment that boots next in place of the target."""
        target = self.state.target
        assert target is not None  # noqa: S101
        home = self.updater.sysroot.deployments_directory(target.osname)
        self._run(self._post_apply_hooks(), [str(home / target.deployment), str(home / deployment)])
        self.move(Phase.LEAVING, target)

    def _post_apply_hooks(self) -> list[Path]:
        chosen = self.updater.post_apply_hook
        if chosen is None:
            return hooks_in(Path(self.updater.settings.hooks.directory) / "post-apply.d")
        return [Path(chosen)] if chosen else []

    def _run(self, hooks: list[Path], arguments: list[str]) -> None:
        run_hooks(hooks, arguments, run=self.updater.run, timeout_s=self.updater.settings.hooks.timeout_s)

    def _hook_arguments(self, target: Target) -> list[str]:
        """Return the directories of the old and the new deployment, the old one empty when nothing ran."""
        home = self.updater.sysroot.deployments_directory(target.osname)
        old = str(home / target.fallback) if target.fallback else ""
        return [old, str(home / target.deployment)]

    def _check_health(self, target: Target) -> list[CheckResult]:
        updater = self.updater
        health = updater.settings.health
        results = list(
            run_checks(
                health,
                slot=target.deployment,
                path="/",
                run=updater.run,
                monotonic=updater.monotonic,
                sleep=updater.sleep,
            )
        )
        for hook in hooks_in(Path(updater.settings.hooks.directory) / "post-update-check.d"):
            began = updater.monotonic()
            answer = updater.run((str(hook), *self._hook_arguments(target)), timeout_s=updater.settings.hooks.timeout_s)
            results.append(
                CheckResult(
                    name=hook.name,
                    passed=answer.exit_code == 0,
                    detail="passed"
                    if answer.exit_code == 0
                    else f"exit code {answer.exit_code}, {answer.output[-500:]}",
                    seconds=updater.monotonic() - began,
                )
            )
        return results

    def _up_to_date(self) -> Outcome:
        newest = next((one for one in self.updater.backend.deployments() if one.osname == self.osname), None)
        return Outcome(result=Result.UP_TO_DATE, commit=newest.commit if newest is not None else "")

    def _outcome(self, result: Result, *, detail: str = "", merge: MergePlan | None = None) -> Outcome:
        target = self.state.target
        return Outcome(
            result=result,
            commit=target.commit if target is not None else "",
            version=target.version if target is not None else "",
            detail=detail,
            merge=merge or MergePlan(),
        )


@contextmanager
def _session(updater: Updater) -> Iterator[_Session]:
    """Hold the updater's lock inside the block, which begins with what is true now."""
    updater.lock_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(updater.lock_path, purpose="An update"):
        session = _Session(updater)
        session.begin()
        yield session


def bless_entries(sysroot: Sysroot) -> None:
    """Take the counter out of the names of entries: what runs is good, and the boot loader need not count it."""
    directory = sysroot.boot / f"loader.{sysroot.boot_version()}/entries"
    for path in sorted(directory.glob("ostree-*+*.conf")):
        path.rename(path.with_name(path.name.partition("+")[0] + ".conf"))
