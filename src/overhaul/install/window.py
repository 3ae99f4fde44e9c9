"""The hours in which a device may restart itself: a maintenance window, worked out in real time.

    02:00-05:00                                     every day, by the device's own clock
    Mon-Fri 22:00-05:00; Sat,Sun 00:00-24:00        a span that passes midnight belongs to the day it begins on
    Sun 02:00-04:00 Europe/Berlin                   by the clocks of a place, wherever the device thinks it is

A span runs from one moment to another and not between two readings of a clock, so that daylight saving time neither
takes a window away nor opens it twice: a reading that is skipped stands for the moment it would have been at without
the change, one that comes twice for its first time, and a span that would vanish so keeps its length.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from overhaul.errors import InputError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_EVERY_DAY = frozenset(range(7))
_DAY = timedelta(days=1)
_SPAN = re.compile(r"(?:(?P<days>[A-Za-z,-]+) +)?(?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)")
_ZONE = re.compile(r"(?P<spans>.*\d) +(?P<zone>[A-Za-z][A-Za-z0-9_+/-]*)")
#: A window opens at least once in so many days.
_LONGEST_WAIT_DAYS = 9
_MAX_SPANS = 32


@dataclass(frozen=True, kw_only=True)
class Span:
    """From `begin` up to but not including `end`, which is on the next day when it is not later than `begin`."""

    begin: time
    #: Midnight at the end of the day is 00:00.
    end: time
    #: Days it begins on; Monday is 0.
    days: frozenset[int] = _EVERY_DAY

    def __str__(self) -> str:
        hours = f"{self.begin:%H:%M}-{'24:00' if self.end == time(0) else format(self.end, '%H:%M')}"
        if self.days == _EVERY_DAY:
            return hours
        return f"{','.join(_DAYS[day].capitalize() for day in sorted(self.days))} {hours}"


@dataclass(frozen=True, kw_only=True)
class Window:
    """The spans in which the device may restart."""

    spans: tuple[Span, ...]
    #: Name of a time zone; empty for that of the device.
    zone: str = ""

    def holds(self, moment: datetime) -> bool:
        """Whether `moment`, which knows its zone, lies inside."""
        today = self._local(moment).date()
        return any(begin <= moment < end for day in (today - _DAY, today, today + _DAY) for begin, end in self._on(day))

    def opens_at(self, moment: datetime) -> datetime:
        """Return when it opens next after `moment`, in its own zone."""
        today = self._local(moment).date()
        begins = (begin for ahead in range(-1, _LONGEST_WAIT_DAYS) for begin, _end in self._on(today + ahead * _DAY))
        return self._local(min(begin for begin in begins if begin > moment))

    def __str__(self) -> str:
        spans = "; ".join(map(str, self.spans))
        return f"{spans} {self.zone}" if self.zone else spans

    def _on(self, day: date) -> list[tuple[datetime, datetime]]:
        """Return the moments of the spans that begin on `day`."""
        found = []
        for span in self.spans:
            if day.weekday() in span.days:
                first = datetime.combine(day, span.begin)
                last = datetime.combine(day if span.begin < span.end else day + _DAY, span.end)
                begin, end = self._moment(first), self._moment(last)
                found.append((begin, end if begin < end else begin + (last - first)))
        return found

    def _moment(self, reading: datetime) -> datetime:
        """Return the moment at which a clock of the zone shows `reading`."""
        return (reading.replace(tzinfo=_zone(self.zone)) if self.zone else reading).astimezone(UTC)

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(_zone(self.zone) if self.zone else None)


class WindowError(InputError):
    """A text that is no window."""

    def __init__(self, *, text: str, reason: str = "") -> None:
        self.text = text
        self.reason = reason
        super().__init__(
            f"{text!r} is no time window{f' ({reason})' if reason else ''}; write two different times such as "
            "02:00-05:00, or with days and a time zone: Mon-Fri 22:00-05:00; Sun 00:00-24:00 Europe/Berlin."
        )


def parse_window(text: str) -> Window:
    """Return the window written in `text`; see the module's text.

    Raises:
        WindowError: It cannot be read, or its time zone is not known on this device.
    """
    placed = _ZONE.fullmatch(text)
    zone = placed["zone"] if placed else ""
    if zone:
        try:
            _zone(zone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise WindowError(text=text, reason=f"this device does not know the time zone {zone}") from error
    parts = (placed["spans"] if placed else text).split(";")
    if len(parts) > _MAX_SPANS:
        raise WindowError(text=text, reason=f"more than {_MAX_SPANS} spans")
    return Window(spans=tuple(_span(part.strip(), text) for part in parts), zone=zone)


def _span(part: str, text: str) -> Span:
    match = _SPAN.fullmatch(part)
    if match is None:
        raise WindowError(text=text)
    begin, end = _time(match["begin"], text), _time("00:00" if match["end"] == "24:00" else match["end"], text)
    if begin == end and match["end"] != "24:00":
        raise WindowError(text=text)
    return Span(begin=begin, end=end, days=_days(match["days"], text) if match["days"] else _EVERY_DAY)


def _time(reading: str, text: str) -> time:
    try:
        return time.fromisoformat(reading)
    except ValueError as error:
        raise WindowError(text=text, reason=f"{reading} is no time of day") from error


def _days(listed: str, text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in listed.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise WindowError(text=text, reason=f"{part} is no day; write Mon, Tue, Wed, Thu, Fri, Sat or Sun")
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        # Sat-Mon goes over the end of the week.
        days.update(day % 7 for day in range(begin, end + 1 if begin <= end else end + 8))
    return frozenset(days)


@lru_cache(maxsize=8)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)
