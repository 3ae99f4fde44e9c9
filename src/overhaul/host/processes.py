"""Programs of the operating system, run without a shell, with errors a person can act on."""

import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overhaul.errors import OperatorError

#: Lines of standard error that an error repeats.
_TAIL_LINES = 5
#: Where Debian keeps the tools of the administrator; not on everybody's PATH.
_ADMINISTRATOR_PATH = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """What a program that ended well printed."""

    stdout: bytes
    stderr: bytes


class ProgramMissingError(OperatorError):
    """A program that is not installed."""

    def __init__(self, *, program: str) -> None:
        self.program = program
        super().__init__(f"The program {program} is not installed; install the package that has it.")


class ProgramFailedError(OperatorError):
    """A program that ended badly or not at all."""

    def __init__(self, *, program: str, reason: str, stderr_tail: str) -> None:
        self.program = program
        self.reason = reason
        self.stderr_tail = stderr_tail
        said = f": {stderr_tail}" if stderr_tail else ""
        super().__init__(f"{program} {reason}{said}")


def find_program(program: str) -> str:
    """Return the path of `program`; raise `ProgramMissingError` when it is not installed."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_ADMINISTRATOR_PATH])
    found = shutil.which(program, path=path)
    if found is None:
        raise ProgramMissingError(program=program)
    return found


def run(
    argv: Sequence[str | Path],
    *,
    input_bytes: bytes = b"",
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    timeout_s: float | None = None,
) -> ProcessResult:
    """Run a program to its end; `environment` is added to ours, and messages are in English.

    Raises:
        ProgramMissingError: It is not installed.
        ProgramFailedError: It ended with another status than 0, or took too long and was killed.
    """
    program = str(argv[0])
    try:
        done = subprocess.run(
            [find_program(program), *map(str, argv[1:])],
            input=input_bytes,
            env={**os.environ, "LC_ALL": "C.UTF-8", **(environment or {})},
            cwd=directory,
            timeout=timeout_s,
            capture_output=True,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        reason = f"did not end within {timeout_s:g} s and was killed"
        raise ProgramFailedError(program=program, reason=reason, stderr_tail=_tail(error.stderr)) from error
    if done.returncode != 0:
        ending = f"ended with status {done.returncode}" if done.returncode > 0 else f"died of signal {-done.returncode}"
        raise ProgramFailedError(program=program, reason=ending, stderr_tail=_tail(done.stderr))
    return ProcessResult(stdout=done.stdout, stderr=done.stderr)


@contextmanager
def following(
    argv: Sequence[str | Path], take: Callable[[str], bool], *, linger_s: float
) -> Iterator[Callable[[], bool]]:
    """Run a program beside the block, and hand each line that it prints to `take`; yield what tells whether it runs.

    The program is killed when `take` returns False, when the block fails, or `linger_s` after the block has ended.

    Raises:
        ProgramMissingError: It is not installed.
    """
    process = subprocess.Popen(
        [find_program(str(argv[0])), *map(str, argv[1:])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        text=True,
        errors="replace",
    )

    def read() -> None:
        for line in process.stdout or ():
            if not take(line.rstrip("\n")):
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield lambda: process.poll() is None
        reader.join(timeout=linger_s)
    finally:
        process.kill()
        reader.join()
        process.communicate()


def _tail(stderr: bytes | None) -> str:
    lines = [line.strip() for line in (stderr or b"").decode(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-_TAIL_LINES:])
