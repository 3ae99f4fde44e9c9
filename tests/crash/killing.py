"""Run an action in a child process and SIGKILL that child at its N-th durable operation.

A crash point is a call that changes what a restarted program would find: writing, syncing, renaming, removing.
The child patches these functions of `os` at the outermost edge, counts the calls, and kills itself just before
number N is made. A run that ends by itself reports how many crash points it passed, so a test can prove that it
visited all of them.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

_DURABLE_CALLS = ("fsync", "fdatasync", "replace", "rename", "link", "unlink", "remove", "write", "pwrite", "truncate",
                  "ftruncate", "mkdir", "rmdir", "copy_file_range", "posix_fallocate")  # fmt: skip


class ChildFailedError(AssertionError):
    """The child ended with an error of its own, which is a failure of the test."""


def run_killed_at(action: Callable[[], None], point: int) -> int | None:
    """Run `action` in a forked child that is killed before its crash point number `point` (from 0).

    Returns:
        None when the child was killed there; the number of crash points it passed when it finished before.

    Raises:
        ChildFailedError: The action raised; its traceback is on standard error.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(action, point, reader, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status != 0:
        raise ChildFailedError(f"the child ended with wait status {status}")
    return int(answer)


def _run_child(action: Callable[[], None], point: int, reader: int, writer: int) -> None:
    code = 1
    try:
        os.close(reader)
        real_write = os.write
        passed = 0

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*arguments: Any, **options: Any) -> Any:
                nonlocal passed
                # Threads that come at once may both be let pass; then the next call is the point.
                if passed >= point:
                    os.kill(os.getpid(), signal.SIGKILL)
                passed += 1
                return call(*arguments, **options)

            return wrapper

        for name in _DURABLE_CALLS:
            setattr(os, name, counted(getattr(os, name)))
        action()
        real_write(writer, str(passed).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
