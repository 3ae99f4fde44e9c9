"""How a benchmark measures: whole processes, taken in turns, summed up by medians.

Wall time means little on a shared machine, so CPU seconds (user and system, with all children) stand beside it,
and both are compared as ratios. Runs to be compared alternate, and what one of them left to be written to disk
is flushed before the next starts.
"""

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SAMPLE_EVERY_S = 0.02


@dataclass(frozen=True)
class Measured:
    """What one run of a process and all its children took."""

    wall_s: float
    #: User and system time.
    cpu_s: float
    #: The greatest sum of the peaks of all processes that ran at the same time: never less than was held at once.
    memory_bytes: int


class _MemoryWatch(threading.Thread):
    """Follows the peak memory (VmHWM) of a process and its descendants until told to stop."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = pid
        self._greatest = 0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(_SAMPLE_EVERY_S):
            self._greatest = max(self._greatest, sum(map(_peak_memory, self._family())))

    def stop(self) -> int:
        """Return the greatest sum seen."""
        self._ended.set()
        self.join()
        return self._greatest

    def _family(self) -> list[int]:
        family = [self._root]
        for pid in family:
            try:
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    family.extend(int(child) for child in children.read_text().split())
            except OSError:  # it ended meanwhile
                continue
        # A child that has not begun its own program yet still shows its parent's memory.
        own = _program(self._root)
        return [pid for pid in family if pid == self._root or _program(pid) != own]


def _program(pid: int) -> str:
    try:
        return str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        return ""


def _peak_memory(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def run(
    command: Sequence[str | Path], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Measured:
    """Run `command` to its end and return what it took.

    Raises:
        subprocess.CalledProcessError: It did not end well; its standard error is on ours.
    """
    arguments = [str(argument) for argument in command]
    begin = time.perf_counter()
    process = subprocess.Popen(arguments, cwd=cwd, env=environment, stdout=subprocess.DEVNULL)
    watch = _MemoryWatch(process.pid)
    watch.start()
    _pid, status, usage = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - begin
    sampled = watch.stop()
    # Reaped here, not by subprocess, which would throw the usage away.
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    # A process too short to be sampled still has its own figure; it has the floor of our own size at the fork.
    memory = sampled or usage.ru_maxrss * 1024
    return Measured(wall_s=wall_s, cpu_s=usage.ru_utime + usage.ru_stime, memory_bytes=memory)


def python(module: str, *arguments: str | Path) -> list[str | Path]:
    """Return the command that runs `module` of this project with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def in_turns(runs: Mapping[str, Callable[[], Measured]], *, rounds: int) -> dict[str, list[Measured]]:
    """Do each of the named `runs` once a round; every other round goes backwards."""
    found: dict[str, list[Measured]] = {name: [] for name in runs}
    for number in range(rounds):
        names = list(runs)
        for name in names if number % 2 == 0 else reversed(names):
            os.sync()
            found[name].append(runs[name]())
    return found


def median(measured: Sequence[Measured]) -> Measured:
    """Return the median of each figure."""
    return Measured(
        wall_s=statistics.median(one.wall_s for one in measured),
        cpu_s=statistics.median(one.cpu_s for one in measured),
        memory_bytes=int(statistics.median(one.memory_bytes for one in measured)),
    )


def mebibytes(size: int) -> str:
    """Return `size` in MiB for a table."""
    return f"{size / (1 << 20):.0f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are figures."""
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        others = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join([first, *others]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])
