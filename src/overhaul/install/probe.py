"""Running one health command so that nothing it does can hold the agent up."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from overhaul.install.health import Answer

_KEPT_BYTES = 4096
#: What a shell answers for a program that is not there.
_CANNOT_RUN = 127


def run_probe(command: Sequence[str], *, timeout_s: float) -> Answer:
    """Run `command` and return how it ended and the end of what it printed.

    It gets a session of its own, so that what it started dies with it when the time is over, and prints into a file:
    a pipe would stay open as long as any descendant holds it.
    """
    with _kept_output() as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        except OSError as error:
            return Answer(exit_code=_CANNOT_RUN, output=f"{command[0]} cannot be run: {error.strerror or error}")
        try:
            exit_code: int | None = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            exit_code = None
        if exit_code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - _KEPT_BYTES))
        return Answer(exit_code=exit_code, output=output.read().decode("utf-8", "replace"))


@contextmanager
def _kept_output() -> Iterator[IO[bytes]]:
    """Yield a file for what is printed; a system without a place for one is judged all the same, it only says less."""
    try:
        output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    except OSError:
        output = open(os.devnull, "r+b")  # noqa: PTH123, SIM115 - closed below
    with output:
        yield output
