"""When an installation will be done: what its progress lines say, else what its pace lets expect."""

import re
from dataclasses import dataclass

_LINE = re.compile(r"(?P<percent>\d{1,3}(?:\.\d+)?)%(?: +(?P<left>\S+))?")
_LEFT = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?")
#: Before this much is done, the pace says nothing.
_MIN_PERCENT = 2.0
_MIN_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class ProgressLine:
    """One line of the client's standard output."""

    percent: float
    #: Seconds until the end, when the line says it.
    left_s: int | None


def parse_line(line: str) -> ProgressLine | None:
    """Return what a line says, or None when it is no progress line."""
    found = _LINE.fullmatch(line.strip())
    if found is None:
        return None
    return ProgressLine(percent=min(100.0, float(found["percent"])), left_s=_seconds(found["left"] or ""))


def completion_time(line: ProgressLine, *, began: float, now: float) -> int:
    """Return the Unix time at which it will be done, or 0 where nobody can know.

    `began` is when the installation began, `now` is now; both Unix times.
    """
    if line.left_s is not None:
        return int(now) + line.left_s
    passed = now - began
    if line.percent < _MIN_PERCENT or passed < _MIN_SECONDS:
        return 0
    return int(now + passed * (100 - line.percent) / line.percent)


def _seconds(text: str) -> int | None:
    found = _LEFT.fullmatch(text)
    if not text or found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
