"""Programs run without a shell, and their failures can be acted on."""

import sys
import threading
import time
from pathlib import Path

import pytest

from overhaul.host.processes import ProgramFailedError, ProgramMissingError, find_program, following, run


def test_a_program_gets_its_input_environment_and_directory(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['GREETING'], sys.stdin.read())"
    result = run(
        [sys.executable, "-c", code], input_bytes=b"hello", environment={"GREETING": "good day"}, directory=tmp_path
    )

    assert result.stdout.decode().split("\n")[0] == f"{tmp_path} good day hello"


def test_a_failure_says_the_status_and_the_last_words() -> None:
    code = "import sys; print('first'); sys.stderr.write('a\\nb\\nc\\nd\\ne\\nthe reason\\n'); sys.exit(3)"

    with pytest.raises(ProgramFailedError, match=r"ended with status 3: b / c / d / e / the reason"):
        run([sys.executable, "-c", code])


def test_a_killed_program_says_the_signal() -> None:
    with pytest.raises(ProgramFailedError, match="died of signal 9"):
        run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])


def test_a_program_that_takes_too_long_is_killed() -> None:
    with pytest.raises(ProgramFailedError, match=r"did not end within 0.05 s"):
        run([sys.executable, "-c", "import signal; signal.pause()"], timeout_s=0.05)


def test_a_missing_program_is_named() -> None:
    with pytest.raises(ProgramMissingError, match="no-such-program"):
        find_program("no-such-program")


def test_no_shell_reads_the_arguments() -> None:
    assert run(["echo", "$HOME; `id`"]).stdout == b"$HOME; `id`\n"


def test_lines_of_a_program_are_handed_on_while_it_runs() -> None:
    lines: list[str] = []
    came = threading.Event()

    def take(line: str) -> bool:
        lines.append(line)
        came.set()
        return len(lines) < 2

    with following(["yes", "again"], take, linger_s=30):
        assert came.wait(timeout=30)
    assert lines == ["again", "again"]


def test_a_program_that_goes_on_is_killed_when_the_block_ends() -> None:
    began = time.monotonic()
    with following(["sleep", "600"], lambda _line: True, linger_s=0):
        pass
    assert time.monotonic() - began < 300


def test_following_a_program_that_is_not_installed_says_so() -> None:
    with pytest.raises(ProgramMissingError), following(["no-such-program"], lambda _line: True, linger_s=0):
        pass
