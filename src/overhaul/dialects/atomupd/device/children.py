"""The processes a daemon has to stop, continue and end: a client it started, a RAUC that somebody started."""

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

_PROCESSES = Path("/proc")
#: How long a process has to end by itself before it is killed.
_GRACE_S = 2.0
_STEP_S = 0.05


def tree_of(pid: int) -> list[int]:
    """Return a process and everything it started that still has it as forebear; parents come first."""
    children: dict[int, list[int]] = {}
    for entry in _PROCESSES.iterdir():
        if entry.name.isdecimal():
            parent = _parent_of(int(entry.name))
            if parent is not None:
                children.setdefault(parent, []).append(int(entry.name))
    tree, waiting = [], [pid]
    while waiting:
        found = waiting.pop(0)
        tree.append(found)
        waiting.extend(children.get(found, ()))
    return tree


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and everything it started."""
    for member in tree_of(pid):
        with suppress(ProcessLookupError):
            os.kill(member, number)


async def end_tree(pid: int) -> None:
    """End a process and everything it started: politely, then for good. Returns when none of them runs."""
    members = tree_of(pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, number)
                # A stopped process does not hear a polite word.
                os.kill(member, signal.SIGCONT)
        for _step in range(int(_GRACE_S / _STEP_S)):
            if not any(is_running(member) for member in members):
                return
            await asyncio.sleep(_STEP_S)


def is_running(pid: int) -> bool:
    """Whether a process is there and is not only waiting to be forgotten."""
    try:
        state = (_PROCESSES / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


def runs_program(pid: int, word: str) -> bool:
    """Whether the command line of a process holds `word`."""
    try:
        return word.encode() in (_PROCESSES / str(pid) / "cmdline").read_bytes()
    except OSError:
        return False


def _parent_of(pid: int) -> int | None:
    try:
        # The name in brackets may hold anything, brackets too.
        fields = (_PROCESSES / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[1])
    except (OSError, IndexError, ValueError):
        return None
