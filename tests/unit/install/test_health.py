"""Health checks within their budget, with a clock that only moves when something takes time."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.waiting import until

from overhaul.install.health import Answer, CheckResult, run_checks
from overhaul.install.probe import run_probe
from overhaul.install.settings import HealthSettings

OK = Answer(exit_code=0, output="active\n")


@dataclass
class Machine:
    """Answers commands by their last word, in turn; each takes `takes_s`."""

    answers: dict[str, list[Answer]] = field(default_factory=dict)
    takes_s: float = 1.0
    now: float = 0.0
    ran: list[tuple[str, ...]] = field(default_factory=list)

    def run(self, command: Sequence[str], *, timeout_s: float) -> Answer:
        self.ran.append(tuple(command))
        waiting = self.answers.get(command[-1], [])
        answer = waiting.pop(0) if len(waiting) > 1 else (waiting[0] if waiting else OK)
        self.now += timeout_s if answer.exit_code is None else self.takes_s
        return answer

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def check(self, settings: HealthSettings) -> tuple[CheckResult, ...]:
        return run_checks(
            settings,
            slot="B",
            path="/dev/b",
            run=self.run,
            monotonic=lambda: self.now,
            sleep=self.sleep,
        )


def test_commands_and_units_are_all_run_and_all_results_kept() -> None:
    machine = Machine(answers={"b.service": [Answer(exit_code=3, output="failed\n")]})
    results = machine.check(HealthSettings(commands=("true", ("test", "-e", "/x")), units=("a.service", "b.service")))
    assert [result.passed for result in results] == [True, True, True, False]
    assert results[3].name == "b.service"
    assert results[3].detail == "exit code 3, failed"
    assert machine.ran == [
        ("/bin/sh", "-c", "true"),
        ("test", "-e", "/x"),
        ("systemctl", "is-active", "a.service"),
        ("systemctl", "is-active", "b.service"),
    ]


def test_commands_run_inside_what_the_configuration_enters() -> None:
    machine = Machine()
    machine.check(HealthSettings(commands=("true",), enter=("enter-{slot}", "{path}", "--")))
    assert machine.ran == [("enter-B", "/dev/b", "--", "/bin/sh", "-c", "true")]


def test_a_unit_that_is_still_starting_is_asked_again() -> None:
    starting = Answer(exit_code=3, output="activating\n")
    machine = Machine(answers={"a.service": [starting, starting, OK]})
    (result,) = machine.check(HealthSettings(units=("a.service",)))
    assert result.passed
    assert len(machine.ran) == 3


def test_a_unit_that_never_comes_up_uses_its_budget_and_no_more() -> None:
    machine = Machine(answers={"a.service": [Answer(exit_code=3, output="activating\n")]})
    (result,) = machine.check(HealthSettings(units=("a.service",), budget_s=20))
    assert not result.passed
    assert machine.now == pytest.approx(20, abs=2)


def test_a_failed_command_is_tried_again_only_when_asked_for() -> None:
    no = Answer(exit_code=1, output="")
    machine = Machine(answers={"true": [no, no, OK]})
    assert not machine.check(HealthSettings(commands=("true",)))[0].passed
    machine = Machine(answers={"true": [no, no, OK]})
    assert machine.check(HealthSettings(commands=("true",), retry_s=5))[0].passed
    assert machine.now == pytest.approx(13)


def test_a_command_that_hangs_fails_and_so_does_all_behind_it() -> None:
    machine = Machine(answers={"hangs": [Answer(exit_code=None, output="")]})
    results = machine.check(HealthSettings(commands=("hangs", "true"), budget_s=30))
    assert [result.passed for result in results] == [False, False]
    assert results[0].detail == "not done after 30 s"
    assert "before it ran" in results[1].detail
    assert machine.now == 30


def test_only_the_last_words_of_a_talkative_command_are_kept() -> None:
    machine = Machine(answers={"talks": [Answer(exit_code=1, output="x" * 10_000 + "the end")]})
    (result,) = machine.check(HealthSettings(commands=("talks",)))
    assert len(result.detail) < 600
    assert result.detail.endswith("the end")


def test_a_device_without_checks_is_healthy() -> None:
    assert Machine().check(HealthSettings()) == ()


def test_a_real_command_answers_with_its_exit_code_and_words() -> None:
    assert run_probe(["/bin/sh", "-c", "echo out; echo err >&2; exit 7"], timeout_s=120) == Answer(
        exit_code=7, output="out\nerr\n"
    )


def test_a_real_command_that_is_not_there_fails_with_its_name() -> None:
    answer = run_probe(["/no/such/program"], timeout_s=120)
    assert answer.exit_code == 127
    assert "/no/such/program" in answer.output


def test_a_real_command_that_hangs_dies_with_everything_it_started(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    answer = run_probe(["/bin/sh", "-c", f"exec 9> {pipe}; sleep 3600 & wait"], timeout_s=2)
    assert answer.exit_code is None
    # The signal is on its way; the pipe has an end when nobody holds it any more.
    until(lambda: _has_ended(reader))
    os.close(reader)


def _has_ended(pipe: int) -> bool:
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False
