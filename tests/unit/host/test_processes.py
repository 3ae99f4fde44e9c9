"""Programs run without a shell, and their failures can be acted on."""

import sys
from pathlib import Path

import pytest

from overhaul.host.processes import ProgramFailedError, ProgramMissingError, find_program, run


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
