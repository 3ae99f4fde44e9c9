"""The hours in which a device may restart itself; pure functions of local time."""

import re
from dataclasses import dataclass
from datetime import time

from overhaul.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Window:
    """A time of day, from `begin` up to but not including `end`; it may pass midnight."""

    begin: time
    end: time

    def holds(self, local: time) -> bool:
        """Whether the local time of day `local` lies inside."""
        now = local.replace(tzinfo=None)
        if self.begin <= self.end:
            return self.begin <= now < self.end
        return now >= self.begin or now < self.end

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"


class WindowError(InputError):
    """A text that is no window."""

    def __init__(self, *, text: str) -> None:
        self.text = text
        super().__init__(f"{text!r} is no time window; write two different local times such as 02:00-05:00.")


def parse_window(text: str) -> Window:
    """Return the window written as `HH:MM-HH:MM`."""
    match = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", text)
    if match is None or match[1] + match[2] == match[3] + match[4]:
        raise WindowError(text=text)
    return Window(begin=time(int(match[1]), int(match[2])), end=time(int(match[3]), int(match[4])))
