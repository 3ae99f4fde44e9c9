"""Health checks of the running slot: commands and systemd units, within one time budget.

A check passes or it does not; what it said is kept either way, because it is all a person sees of a device that
went back by itself. Checks that are out of time count as failed: a device nobody can reach must not wait.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from overhaul.errors import DeviceError
from overhaul.install.settings import HealthSettings

#: Enough of a program's last words to see what is wrong.
_KEPT_CHARACTERS = 500
_UNIT_ASK_AGAIN_S = 1.0
#: States of a unit that is still on its way up.
_UNIT_STARTING = frozenset({"activating", "reloading"})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How one program ended; `exit_code` is None when it was stopped for taking too long."""

    exit_code: int | None
    output: str


class Runner(Protocol):
    """Runs a program and never raises for what the program does."""

    def __call__(self, command: Sequence[str], *, timeout_s: float) -> Answer: ...


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What came of one check."""

    name: str
    passed: bool
    detail: str
    seconds: float


class UnhealthyError(DeviceError):
    """The running slot did not pass its health checks."""

    def __init__(self, *, slot: str, results: Sequence[CheckResult], next_step: str) -> None:
        self.slot = slot
        self.results = tuple(results)
        failed = "; ".join(f"{result.name}: {result.detail}" for result in results if not result.passed)
        super().__init__(f"Slot {slot} is not healthy ({failed}). {next_step}")


@dataclass(frozen=True, kw_only=True)
class _Check:
    name: str
    command: tuple[str, ...]
    is_unit: bool


def run_checks(
    settings: HealthSettings,
    *,
    slot: str,
    path: str,
    run: Runner,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> tuple[CheckResult, ...]:
    """Run every check in order and return all results; with no checks configured there are none, and that is healthy.

    A unit that is still starting is asked again until the budget is used up; other checks only when
    `settings.retry_s` says so.
    """
    deadline = monotonic() + settings.budget_s
    enter = tuple(part.replace("{slot}", slot).replace("{path}", path) for part in settings.enter)
    return tuple(
        _run_check(check, enter=enter, deadline=deadline, settings=settings, run=run, monotonic=monotonic, sleep=sleep)
        for check in _checks(settings)
    )


def _checks(settings: HealthSettings) -> list[_Check]:
    checks: list[_Check] = []
    for command in settings.commands:
        words = ("/bin/sh", "-c", command) if isinstance(command, str) else command
        name = command if isinstance(command, str) else " ".join(command)
        checks.append(_Check(name=name, command=words, is_unit=False))
    checks.extend(_Check(name=unit, command=("systemctl", "is-active", unit), is_unit=True) for unit in settings.units)
    return checks


def _run_check(
    check: _Check,
    *,
    enter: tuple[str, ...],
    deadline: float,
    settings: HealthSettings,
    run: Runner,
    monotonic: Callable[[], float],
    sleep: Callable[[float], None],
) -> CheckResult:
    began = monotonic()
    detail = f"the time budget of {settings.budget_s:g} s was used up before it ran"
    while (left := deadline - monotonic()) > 0:
        answer = run((*enter, *check.command), timeout_s=left)
        if answer.exit_code == 0:
            return CheckResult(name=check.name, passed=True, detail="passed", seconds=monotonic() - began)
        detail = _describe(answer, left)
        pause_s = _pause_s(check, answer, settings)
        if pause_s == 0 or answer.exit_code is None:
            break
        sleep(min(pause_s, max(0.0, deadline - monotonic())))
    return CheckResult(name=check.name, passed=False, detail=detail, seconds=monotonic() - began)


def _pause_s(check: _Check, answer: Answer, settings: HealthSettings) -> float:
    if check.is_unit and answer.output.strip() in _UNIT_STARTING:
        return _UNIT_ASK_AGAIN_S
    return settings.retry_s


def _describe(answer: Answer, left_s: float) -> str:
    said = answer.output.strip()[-_KEPT_CHARACTERS:]
    end = f"not done after {left_s:.0f} s" if answer.exit_code is None else f"exit code {answer.exit_code}"
    return f"{end}, {said}" if said else end
