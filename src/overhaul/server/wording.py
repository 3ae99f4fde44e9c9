"""Sizes, times, shares and sentences as people read them; the filters of the page templates. Pure."""

import re
from collections.abc import Callable
from datetime import UTC, datetime

from markupsafe import Markup

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))


def size(amount: float | None) -> str:
    """Return an amount of bytes with a decimal unit."""
    if amount is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def date_time(seconds: int) -> str:
    """Return a time for people."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine_time(seconds: int) -> str:
    """Return a time for the `datetime` attribute."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span(seconds: float) -> str:
    """Return a length of time in its two largest units."""
    whole = int(abs(seconds))
    words: list[str] = []
    for length, unit in _UNITS:
        count, rest = divmod(whole, length)
        if count or words:
            words.append(_counted(count, unit) if count else "")
            whole = rest
        if len(words) == 2:
            break
    return " ".join(filter(None, words)) or "less than a minute"


def relative(seconds: int, now: int) -> str:
    """Return how long ago or how far ahead a time is, in its largest unit."""
    distance = abs(now - seconds)
    for length, unit in _UNITS:
        if distance >= length:
            words = _counted(round(distance / length), unit)
            return f"{words} ago" if seconds < now else f"in {words}"
    return "just now" if seconds <= now else "in a moment"


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def duration(seconds: float | None) -> str:
    """Return how long a step took."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def percent(share: float) -> str:
    """Return a percentage without needless digits."""
    return f"{share:.3g} %"


def sentence(text: str) -> str:
    """Return what somebody wrote with a full stop behind it."""
    written = text.rstrip()
    return written if not written or written.endswith((".", "!", "?", "…")) else f"{written}."


def error_words(name: str) -> str:
    """Return the name of an error's class as words: `NotEnoughSpaceError` is "Not enough space"."""
    words = _WORD.findall(name.removesuffix("Error"))
    return " ".join([*words[:1], *(word if word.isupper() else word.lower() for word in words[1:])]) or name


def commands(sentence: str) -> Markup:
    """Return a sentence of ours with what stands between backticks set as code."""
    parts = [Markup.escape(part) for part in sentence.split("`")]
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


#: A word of a class's name; what is written in capitals is one.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]*|[a-z]+|\d+")

FILTERS: dict[str, Callable[..., str]] = {
    "size": size,
    "date_time": date_time,
    "machine_time": machine_time,
    "span": span,
    "relative": relative,
    "duration": duration,
    "percent": percent,
    "commands": commands,
    "sentence": sentence,
    "error_words": error_words,
}
