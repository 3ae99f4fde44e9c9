"""Plots as inline SVG, made on the server: shapes and text only, coloured by classes of the stylesheet. Pure.

Each has a title and a sentence that tells what it shows to those who do not see it; the page puts the figures beside it
as a table. One unit of the drawing is about one CSS pixel on a phone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from markupsafe import Markup

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 10, 24
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_DAY_S = 86400
#: Of a bar, in units of the drawing.
_THINNEST = 1.5


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a plot shows, in words and in time."""

    #: Unique in the page.
    name: str
    title: str
    #: What the plot shows, as a sentence.
    summary: str
    #: Seconds since 1970 UTC.
    since: int
    until: int
    #: How a value on the axis is written.
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """Values that hold from a time on."""

    label: str
    #: Class of the stylesheet that colours it.
    style: str
    points: Sequence[tuple[int, float]]


def step_plot(frame: Frame, lines: Sequence[Line], *, top: float | None = None) -> Markup:
    """Return lines that rise and fall in steps, on an axis up to `top` or their highest value."""
    highest = top if top is not None else max((value for line in lines for _at, value in line.points), default=1.0)
    ticks, highest = _ticks(highest)
    drawn = [_axes(frame, ticks, highest)]
    for line in lines:
        path = last = ""
        for at, value in line.points:
            x, y = _short(_x(frame, at)), _short(_y(value, highest))
            path += f"H{x}V{y}" if last else f"M{x} {y}"
            last = y
        if path:
            end = _short(_x(frame, frame.until))
            drawn.append(Markup('<path class="line {}" d="{}H{}"><title>{}</title></path>').format(
                line.style, path, end, line.label
            ))  # fmt: skip
    return _figure(frame, drawn)


def stacked_bars(
    frame: Frame, bars: Mapping[int, Mapping[str, float]], *, parts: Sequence[tuple[str, str, str]], bucket_s: int
) -> Markup:
    """Return bars by time, each made of `parts` (key, label, style), the first at the bottom."""
    ticks, highest = _ticks(max((sum(bar.values()) for bar in bars.values()), default=1.0))
    drawn = [_axes(frame, ticks, highest)]
    width = max(1.0, _PLOT_WIDTH * bucket_s / max(1, frame.until - frame.since) * 0.84)
    for begin, bar in sorted(bars.items()):
        left = _x(frame, begin + bucket_s * 0.08)
        # The first bar may begin before the time that is shown, and the last may have begun this second: it is seen.
        right = min(left + width, float(_WIDTH - _RIGHT))
        left = max(min(left, right - _THINNEST), float(_LEFT))
        base = 0.0
        for key, label, style in parts:
            value = bar.get(key, 0.0)
            if value <= 0:
                continue
            y, bottom = _y(base + value, highest), _y(base, highest)
            base += value
            drawn.append(
                Markup('<rect class="fill {}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                    style,
                    _short(left),
                    _short(y),
                    _short(right - left),
                    _short(max(0.6, bottom - y)),
                    f"{_moment(begin, bucket_s)}: {label} {amount(value, frame.unit)}",
                )
            )
    return _figure(frame, drawn)


def amount(value: float, unit: str) -> str:
    """Return a value as the axis writes it."""
    if unit == "B":
        for prefix in ("B", "kB", "MB", "GB", "TB"):
            if value < 1000 or prefix == "TB":
                return f"{value:.3g} {prefix}"
            value /= 1000
    number = f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{number} {unit}".strip()


def _ticks(highest: float) -> tuple[list[float], float]:
    """Return round values from 0 up to one that is not below `highest`, and the last of them."""
    highest = max(highest, 1e-9)
    rough = highest / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    count = max(1, math.ceil(highest / step - 1e-9))
    return [step * number for number in range(count + 1)], step * count


def _axes(frame: Frame, ticks: Sequence[float], highest: float) -> Markup:
    drawn = []
    for value in ticks:
        y = _short(_y(value, highest))
        drawn.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(
            _LEFT, _WIDTH - _RIGHT, y, y
        ))  # fmt: skip
        drawn.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="end">{}</text>').format(
            _LEFT - 6, _short(_y(value, highest) + 4), amount(value, frame.unit)
        ))  # fmt: skip
    length = frame.until - frame.since
    for number in range(4):
        at = frame.since + length * number // 3
        anchor = ("start", "middle", "middle", "end")[number]
        drawn.append(Markup('<text class="tick" x="{}" y="{}" text-anchor="{}">{}</text>').format(
            _short(_x(frame, at)), _HEIGHT - 8, anchor, _date(at, length)
        ))  # fmt: skip
    return Markup("").join(drawn)


def _figure(frame: Frame, drawn: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="plot" viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-t {n}-d">'
        '<title id="{n}-t">{title}</title><desc id="{n}-d">{summary}</desc>{drawn}</svg>'
    ).format(w=_WIDTH, h=_HEIGHT, n=frame.name, title=frame.title, summary=frame.summary, drawn=Markup("").join(drawn))


def _x(frame: Frame, at: float) -> float:
    share = (at - frame.since) / max(1, frame.until - frame.since)
    return _LEFT + _PLOT_WIDTH * min(1.0, max(0.0, share))


def _y(value: float, highest: float) -> float:
    return _TOP + _PLOT_HEIGHT * (1 - min(1.0, value / highest))


def _short(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _date(at: int, length: int) -> str:
    written = datetime.fromtimestamp(at, tz=UTC)
    return written.strftime("%H:%M") if length <= 2 * _DAY_S else written.strftime("%d %b").lstrip("0")


def _moment(at: int, bucket_s: int) -> str:
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%d" if bucket_s >= _DAY_S else "%Y-%m-%d %H:%M UTC")
