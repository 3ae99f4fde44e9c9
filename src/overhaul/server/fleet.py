"""The dashboard's plots and their figures: read from the database, then made into drawings."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from overhaul.release.versions import release_order_key
from overhaul.server import plots
from overhaul.server.exposure import Exposure, ExposureHistory, Place
from overhaul.server.plots import Frame, Line
from overhaul.server.reports import Outcome
from overhaul.server.statistics import Chosen, FleetStatistics, Group, Population
from overhaul.server.volume import HOUR_S, Served, ServedHours
from overhaul.server.wording import date_time, percent, size

_DAY_S = 86400
#: What is kept of downloads and exposures.
HISTORY_KEPT_DAYS = 400
#: Name, words, length, length of a bar.
PERIODS = {
    "24h": ("24 hours", _DAY_S, HOUR_S),
    "7d": ("7 days", 7 * _DAY_S, 6 * HOUR_S),
    "30d": ("30 days", 30 * _DAY_S, _DAY_S),
    "90d": ("90 days", 90 * _DAY_S, 3 * _DAY_S),
}
DEFAULT_PERIOD = "7d"
#: Lines and parts that can still be told apart.
_MOST_LINES = 6
_TABLE_ROWS = 40
_OUTCOMES = (
    (Outcome.CONFIRMED.value, "confirmed", "outcome-confirmed"),
    (Outcome.INSTALLED.value, "installed", "outcome-installed"),
    (Outcome.ROLLED_BACK.value, "rolled back", "outcome-rolled-back"),
    (Outcome.FAILED.value, "failed", "outcome-failed"),
)
_ROUTES = (
    ("content", "Overhaul", "series-1"),
    ("castr", "casync", "series-2"),
    ("atomupd", "atomupd", "series-3"),
    ("swupd", "swupd", "series-4"),
    ("ostree", "OSTree", "series-5"),
    ("asu-file", "images on demand", "series-6"),
    ("metadata", "metadata", "series-7"),
)
_METADATA_ROUTES = frozenset({"poll", "metadata", "targets", "atomupd-query"})


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the filters of the dashboard choose; empty names choose all."""

    period: str = DEFAULT_PERIOD
    product: str = ""
    channel: str = ""
    route: str = ""


@dataclass(frozen=True, kw_only=True)
class Key:
    """One entry of a plot's legend."""

    label: str
    style: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A plot, what its colours mean, and its figures."""

    name: str
    title: str
    #: What it shows, and what it does not.
    note: str
    #: None when there is nothing to draw.
    drawing: Markup | None
    empty: str
    keys: tuple[Key, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Reason:
    """How often something went wrong in the same way."""

    outcome: str
    reason: str
    count: int
    #: Of the most frequent one, from 0 to 100.
    share: float


@dataclass(frozen=True, kw_only=True)
class Running:
    """Devices of a group by release, the most first."""

    group: Group
    total: int
    releases: tuple[tuple[str, str, int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Everything the dashboard shows of the past."""

    charts: tuple[Chart, ...]
    reasons: tuple[Reason, ...]
    running: tuple[Running, ...]
    #: Reports of the period by outcome.
    outcomes: Mapping[str, int]
    bytes_served: int
    polls: int


def read_fleet(
    choice: Choice, *, statistics: FleetStatistics, served: ServedHours, exposure: ExposureHistory, now: int
) -> Fleet:
    """Return what the dashboard shows at `now`; blocking."""
    _words, length, bucket_s = PERIODS[choice.period]
    since = now - length
    chosen = Chosen(since=since, product=choice.product, channel=choice.channel)
    outcomes = statistics.outcomes(chosen, bucket_s=bucket_s)
    hours = served.read(since=since, product=choice.product, route=choice.route)
    reasons = statistics.reasons(chosen)
    most = max((count for _outcome, _reason, count in reasons), default=1)
    population = statistics.population(product=choice.product, channel=choice.channel)
    span = (since, now, bucket_s)
    return Fleet(
        charts=(
            _rollouts(exposure.read(since=since, product=choice.product, channel=choice.channel), span),
            _arrivals(statistics.arrivals(chosen, bucket_s=bucket_s), span),
            _health(outcomes, span),
            _volume(hours, span),
        ),
        reasons=tuple(
            Reason(outcome=outcome, reason=reason, count=count, share=100 * count / most)
            for outcome, reason, count in reasons
        ),
        running=_running(population),
        outcomes=_summed(outcomes.values()),
        bytes_served=sum(each.bytes for each in hours),
        polls=sum(each.requests for each in hours if each.route == "poll"),
    )


def _rollouts(history: Mapping[Place, Sequence[Exposure]], span: tuple[int, int, int]) -> Chart:
    since, until, _bucket_s = span
    # Releases that were open to all throughout, or recalled before, tell nothing about a rollout.
    moved = {
        place: changes
        for place, changes in history.items()
        if len(changes) > 1 or changes[-1].percent not in {0.0, 100.0} or changes[-1].at > since
    }
    newest = sorted(moved.items(), key=lambda item: item[1][-1].at, reverse=True)[:_MOST_LINES]
    lines, keys, rows = [], [], []
    for number, (place, changes) in enumerate(newest, start=1):
        product, channel, variant, _arch, version, _build_id = place
        label = f"{product} {variant} {version} in {channel}"
        style = f"series-{number}"
        points = [(max(since, change.at), change.percent) for change in changes]
        lines.append(Line(label=label, style=style, points=points))
        keys.append(Key(label=f"{label}: {percent(changes[-1].percent)}", style=style))
        rows += [(date_time(change.at), label, percent(change.percent), change.state) for change in changes]
    summary = "; ".join(key.label for key in keys)
    frame = Frame(
        name="plot-rollouts", title="Rollout progress over time", summary=f"Now: {summary}.", since=since, until=until,
        unit="%",
    )  # fmt: skip
    return Chart(
        name="rollouts",
        title="Rollout progress",
        note="Part of the devices that a release is open to, as the signed policies said.",
        drawing=plots.step_plot(frame, lines, top=100) if lines else None,
        empty="No rollout moved in this time.",
        keys=tuple(keys),
        columns=("From", "Release", "Open to", "State"),
        rows=tuple(sorted(rows, reverse=True)[:_TABLE_ROWS]),
    )


def _arrivals(found: Mapping[tuple[str, str, str], Mapping[int, int]], span: tuple[int, int, int]) -> Chart:
    since, until, bucket_s = span
    most = sorted(found.items(), key=lambda item: sum(item[1].values()), reverse=True)[:_MOST_LINES]
    most.sort(key=lambda item: (item[0][0], release_order_key(item[0][1], item[0][2])), reverse=True)
    lines, keys, rows = [], [], []
    for number, ((product, version, build_id), counts) in enumerate(most, start=1):
        total = 0
        points = [(since, 0.0)]
        for begin, count in sorted(counts.items()):
            total += count
            # Counted when the length of time has passed, or now: never before it was reported.
            points.append((min(until, max(since, begin + bucket_s)), float(total)))
        style = f"series-{number}"
        lines.append(Line(label=f"{product} {version}: {total}", style=style, points=points))
        keys.append(Key(label=f"{product} {version}: {total}", style=style))
        rows.append((f"{product} {version} ({build_id})", str(total)))
    summary = "; ".join(key.label for key in keys)
    frame = Frame(
        name="plot-arrivals", title="Devices that confirmed a release", summary=f"In this time: {summary}.",
        since=since, until=until,
    )  # fmt: skip
    return Chart(
        name="arrivals",
        title="Devices that came",
        note="Updates confirmed since the beginning of the time shown, by devices whose owners allow reports.",
        drawing=plots.step_plot(frame, lines) if lines else None,
        empty="No device reported a confirmed update in this time.",
        keys=tuple(keys),
        columns=("Release", "Devices"),
        rows=tuple(rows),
    )


def _health(outcomes: Mapping[int, Mapping[str, int]], span: tuple[int, int, int]) -> Chart:
    since, until, bucket_s = span
    totals = _summed(outcomes.values())
    shown = [part for part in _OUTCOMES if totals.get(part[0])]
    summary = ", ".join(f"{totals[key]} {label}" for key, label, _style in shown)
    frame = Frame(
        name="plot-health", title="Device reports by outcome over time", summary=f"In this time: {summary}.",
        since=since, until=until,
    )  # fmt: skip
    return Chart(
        name="health",
        title="Device health",
        note="Reports by how the update went; reports are not signed.",
        drawing=plots.stacked_bars(frame, outcomes, parts=shown, bucket_s=bucket_s) if shown else None,
        empty="No device reported an update in this time.",
        keys=tuple(Key(label=f"{label}: {totals[key]}", style=style) for key, label, style in shown),
        columns=("From", *(label for _key, label, _style in shown)),
        rows=tuple(
            (date_time(begin), *(str(counts.get(key, 0)) for key, _label, _style in shown))
            for begin, counts in sorted(outcomes.items(), reverse=True)[:_TABLE_ROWS]
        ),
    )


def _volume(hours: Sequence[Served], span: tuple[int, int, int]) -> Chart:
    since, until, bucket_s = span
    bars: dict[int, dict[str, float]] = {}
    by_release: dict[tuple[str, str], list[int]] = {}
    for each in hours:
        route = "metadata" if each.route in _METADATA_ROUTES else each.route
        begin = each.hour - each.hour % bucket_s
        bar = bars.setdefault(begin, {})
        bar[route] = bar.get(route, 0) + each.bytes
        release = each.release
        names = " ".join(filter(None, (release.product, release.variant, release.arch, release.version)))
        total = by_release.setdefault((names or "–", route), [0, 0])
        total[0] += each.bytes
        total[1] += each.requests
    totals = {key: sum(bar.get(key, 0) for bar in bars.values()) for key, _label, _style in _ROUTES}
    shown = [part for part in _ROUTES if totals[part[0]]]
    labels = {key: label for key, label, _style in _ROUTES}
    summary = ", ".join(f"{label} {size(totals[key])}" for key, label, _style in shown)
    frame = Frame(
        name="plot-volume", title="Bytes sent to devices over time", summary=f"In this time: {summary}.",
        since=since, until=until, unit="B",
    )  # fmt: skip
    largest = sorted(by_release.items(), key=lambda item: item[1][0], reverse=True)[:_TABLE_ROWS]
    return Chart(
        name="volume",
        title="Download volume",
        note="Bytes this server sent, by the dialect of the devices; those of a bucket or CDN are not seen here.",
        drawing=plots.stacked_bars(frame, bars, parts=shown, bucket_s=bucket_s) if shown else None,
        empty="Nothing was downloaded from this server in this time.",
        keys=tuple(Key(label=f"{label}: {size(totals[key])}", style=style) for key, label, style in shown),
        columns=("Release", "Dialect", "Sent", "Requests"),
        rows=tuple(
            (name, labels.get(route, route), size(sent), str(requests)) for (name, route), (sent, requests) in largest
        ),
    )


def _running(population: Mapping[Group, Population]) -> tuple[Running, ...]:
    found = []
    for group, counts in population.items():
        total = sum(counts.values())
        ordered = sorted(counts.items(), key=lambda item: release_order_key(*item[0]), reverse=True)
        if total:
            releases = tuple((version, build, count, 100 * count / total) for (version, build), count in ordered)
            found.append(Running(group=group, total=total, releases=releases[:_TABLE_ROWS]))
    return tuple(sorted(found, key=lambda each: (-each.total, each.group.product, each.group.channel)))


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in counts:
        for key, count in each.items():
            found[key] = found.get(key, 0) + count
    return found
