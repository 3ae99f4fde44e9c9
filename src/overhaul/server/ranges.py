"""The `Range` header as RFC 9110 defines it, turned into byte spans. Pure.

A header this module cannot use (another unit, wrong syntax, more spans than are sensible, spans that together
exceed the file) is ignored as the RFC permits: the answer is then the whole file. Only a well-formed header
whose every span lies behind the end of the file is refused.
"""

import re
from dataclasses import dataclass

from overhaul.errors import InputError

#: More spans than this in one request are ignored, so that a small request cannot cause endless part headers.
MAX_SPANS = 256

_SPAN = r"(?:\d{1,18}-\d{0,18}|-\d{1,18})"
_HEADER_PATTERN = re.compile(rf"[Bb][Yy][Tt][Ee][Ss]={_SPAN}(?:[ \t]*,[ \t]*{_SPAN})*", re.ASCII)
_SPAN_PATTERN = re.compile(r"(\d*)-(\d*)", re.ASCII)


class UnsatisfiableRangeError(InputError):
    """Every span asked for lies behind the end of the file."""

    http_status = 416

    def __init__(self, *, size: int) -> None:
        self.size = size
        super().__init__(f"The range lies outside the file, which has {size} bytes; ask for bytes before its end.")


@dataclass(frozen=True)
class Span:
    """The bytes from `start` up to, not including, `end`."""

    start: int
    end: int

    @property
    def size(self) -> int:
        """How many bytes it holds."""
        return self.end - self.start


def parse_range(header: str | None, *, size: int) -> tuple[Span, ...]:
    """Return the spans to answer with, in the order asked for; none means the whole file.

    Raises:
        UnsatisfiableRangeError: The header is well formed but no span holds a byte of the file.
    """
    if header is None or _HEADER_PATTERN.fullmatch(header) is None:
        return ()
    spans = []
    for first, last in _SPAN_PATTERN.findall(header):
        if first and last and int(first) > int(last):
            return ()
        span = _span(first, last, size)
        if span.size > 0:
            spans.append(span)
    if not spans:
        raise UnsatisfiableRangeError(size=size)
    if len(spans) > MAX_SPANS or sum(span.size for span in spans) > size:
        return ()
    return tuple(spans)


def _span(first: str, last: str, size: int) -> Span:
    if not first:
        return Span(max(0, size - int(last)), size)
    return Span(int(first), min(size, int(last) + 1) if last else size)
