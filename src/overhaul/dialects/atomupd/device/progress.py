"""What an installation tells about itself, as lines for whoever reads the client's standard output.

A line is `NN%`, or `NN.NN% 1m02s` with the time that is left. RAUC says in the journal which step it is at; casync and
desync, which it runs, say there how far a step is. Nothing else is known while a bundle is installed, so a line comes
only when one of theirs is understood.
"""

import math
import re
from collections.abc import Callable

from overhaul.progress import Progress

#: Takes one line for standard output.
Tell = Callable[[str], None]

#: `installing URL: started`; the address may hold blanks and colons.
_STEP = re.compile(r"\binstalling .+: (?P<step>started|All slots updated)\s*\Z")
_ENDED = re.compile(r"\binstalling (?:[`'\"].+[`'\"]|\S+) (?P<how>succeeded|failed)\b")
_STOPPED = re.compile(r"(?:^|: )(?:stopping service|Stopped .*|rauc\.service: (?:Deactivated|Failed|Main process)\b.*)")
_CASYNC = re.compile(r"\b(?P<step>seeding|downloading chunks)\.\.\. +(?P<percent>\d{1,3}(?:\.\d+)?)%")
_DESYNC = re.compile(
    r"\bAttempt (?P<attempt>\d{1,3}): (?P<phase>Validating|Chunking|Assembling)\b[^%]*? ?"
    r"(?P<percent>\d{1,3}(?:\.\d+)?)%(?: +(?P<left>\S+))?"
)
#: Where a step of casync begins on the scale of the whole installation, and its share of it.
_CASYNC_SHARES = {"seeding": (5.0, 0.225), "downloading chunks": (27.5, 0.675)}
_ALMOST = 95.0


class JournalProgress:
    """Turns the journal of one installation into progress lines."""

    def __init__(self) -> None:
        #: Set once the installation has come to an end.
        self.ended = False

    def feed(self, line: str) -> str | None:
        """Return the progress line that a line of the journal stands for, or None."""
        ended = _ENDED.search(line)
        if ended:
            self.ended = True
            # RAUC calls an installation finished before it says how, so only success is all of it.
            return "100%" if ended["how"] == "succeeded" else None
        if _STOPPED.search(line):
            self.ended = True
            return None
        step = _STEP.search(line)
        if step:
            return "0%" if step["step"] == "started" else f"{_ALMOST:.0f}%"
        casync = _CASYNC.search(line)
        if casync:
            begin, share = _CASYNC_SHARES[casync["step"]]
            return f"{math.floor(begin + share * _percent(casync['percent']))}%"
        desync = _DESYNC.search(line)
        return _desync_line(desync) if desync else None


def _desync_line(found: re.Match[str]) -> str:
    base = min(_ALMOST, 10.0 * max(0, int(found["attempt"]) - 1))
    percent = _percent(found["percent"])
    if found["phase"] == "Validating":
        return f"{base + percent / 20:.2f}%"
    if found["phase"] == "Chunking":
        return f"{base + 5 + percent / 20:.2f}%"
    line = f"{min(100.0, base + 5 + percent * (_ALMOST - base) / 100):.2f}%"
    return f"{line} {found['left']}" if found["left"] and percent < 100 else line


def _percent(text: str) -> float:
    return min(100.0, float(text))


class StepProgress(Progress):
    """Turns the steps of an installation by Overhaul itself into progress lines; each step has a share of the whole."""

    def __init__(self, tell: Tell, shares: dict[str, tuple[float, float]]) -> None:
        self._tell = tell
        self._shares = shares
        self._begin, self._end = 0.0, 0.0
        self._total, self._done = 0, 0
        self._told = -1

    def begin(self, step: str, total: int | None, unit: str = "bytes") -> None:  # noqa: ARG002
        """Start a step; one without a share says nothing."""
        self._begin, self._end = self._shares.get(step, (0.0, 0.0))
        self._total, self._done = total or 0, 0
        self._say(self._begin)

    def advance(self, amount: int) -> None:
        """Go on by `amount`."""
        self._done += amount
        if self._total:
            self._say(self._begin + (self._end - self._begin) * min(1.0, self._done / self._total))

    def end(self) -> None:
        """Finish the step."""
        self._say(self._end)

    def _say(self, percent: float) -> None:
        if math.floor(percent) > self._told:
            self._told = math.floor(percent)
            self._tell(f"{self._told}%")
