"""What the reports of devices show over time: outcomes, reasons of failures, who came to which release.

Reports name no device, so nobody can be followed. How many devices run a release is therefore worked out from flows:
those that confirmed it less those that left it for another and confirmed that. Only devices that report and have
updated at least once are in it, so it is a lower bound of the fleet.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from overhaul.release.versions import release_order_key
from overhaul.server.database.engine import Database
from overhaul.server.database.tables import DEVICE_REPORTS
from overhaul.server.reports import Outcome

_MOST_REASONS = 12
_LONG_S = 1.0
_KEPT_TIMES = 30


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which reports are looked at; empty names choose all."""

    since: int
    product: str = ""
    channel: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The devices of one variant and arch in a channel."""

    product: str
    channel: str
    variant: str
    arch: str


#: Devices by (version, build id).
Population = dict[tuple[str, str], int]


class FleetStatistics:
    """Questions to the reports in the database; every method blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._reading = threading.Lock()
        #: When it is read again, by the monotonic clock, and what was read.
        self._population: tuple[float, dict[Group, Population]] | None = None

    def outcomes(self, chosen: Chosen, *, bucket_s: int) -> dict[int, dict[str, int]]:
        """Return how many reports of each outcome came in each length of time, by its beginning."""
        columns = DEVICE_REPORTS.c
        bucket = (columns.received_at - columns.received_at % bucket_s).label("bucket")
        query = (
            sa.select(bucket, columns.outcome, sa.func.count()).where(*_where(chosen)).group_by(bucket, columns.outcome)
        )
        found: dict[int, dict[str, int]] = {}
        with self._database.reading() as connection:
            for begin, outcome, count in connection.execute(query):
                found.setdefault(begin, {})[outcome] = count
        return found

    def reasons(self, chosen: Chosen) -> tuple[tuple[str, str, int], ...]:
        """Return (outcome, reason, count) of what went wrong, the most frequent first."""
        columns = DEVICE_REPORTS.c
        count = sa.func.count()
        reason = sa.func.coalesce(columns.error, "").label("reason")
        bad = columns.outcome.in_([Outcome.FAILED.value, Outcome.ROLLED_BACK.value])
        query = (
            sa.select(columns.outcome, reason, count)
            .where(bad, *_where(chosen))
            .group_by(columns.outcome, reason)
            .order_by(count.desc(), reason)
            .limit(_MOST_REASONS)
        )
        with self._database.reading() as connection:
            return tuple((row[0], row[1], row[2]) for row in connection.execute(query))

    def arrivals(self, chosen: Chosen, *, bucket_s: int) -> dict[tuple[str, str, str], dict[int, int]]:
        """Return how many devices confirmed a (product, version, build id) in each length of time."""
        columns = DEVICE_REPORTS.c
        bucket = (columns.received_at - columns.received_at % bucket_s).label("bucket")
        named = (columns.product, columns.to_version, columns.to_build_id)
        query = (
            sa.select(*named, bucket, sa.func.count())
            .where(columns.outcome == Outcome.CONFIRMED.value, columns.to_version.is_not(None), *_where(chosen))
            .group_by(*named, bucket)
        )
        found: dict[tuple[str, str, str], dict[int, int]] = {}
        with self._database.reading() as connection:
            for product, version, build_id, begin, count in connection.execute(query):
                found.setdefault((product, version, build_id), {})[begin] = count
        return found

    def population(self, *, product: str = "", channel: str = "") -> dict[Group, Population]:
        """Return how many devices run what, by the reports that are kept; at least.

        Every report is gone through. Where that takes long the answer is kept for a multiple of the time it took.
        """
        with self._reading:
            if self._population is None or time.monotonic() >= self._population[0]:
                began = time.monotonic()
                found = self._read_population()
                took = time.monotonic() - began
                self._population = (began + (_KEPT_TIMES * took if took > _LONG_S else 0.0), found)
            everything = self._population[1]
        return {
            group: counts
            for group, counts in everything.items()
            if product in {"", group.product} and channel in {"", group.channel}
        }

    def _read_population(self) -> dict[Group, Population]:
        columns = DEVICE_REPORTS.c
        group = (columns.product, columns.channel, columns.variant, columns.arch)
        way = (columns.from_version, columns.from_build_id, columns.to_version, columns.to_build_id)
        query = (
            sa.select(*group, *way, sa.func.count())
            .where(columns.outcome == Outcome.CONFIRMED.value, columns.to_version.is_not(None))
            .group_by(*group, *way)
        )
        flows: dict[Group, dict[tuple[str, str], int]] = {}
        with self._database.reading() as connection:
            for name, channel, variant, arch, left, left_build, reached, reached_build, count in connection.execute(
                query
            ):
                key = Group(product=name, channel=channel, variant=variant, arch=arch)
                flow = flows.setdefault(key, {})
                flow[reached, reached_build] = flow.get((reached, reached_build), 0) + count
                flow[left, left_build] = flow.get((left, left_build), 0) - count
        return {key: {name: count for name, count in flow.items() if count > 0} for key, flow in flows.items()}


def below(population: Mapping[tuple[str, str], int], *, version: str, build_id: str) -> int:
    """Return how many devices run something older than the release."""
    order = release_order_key(version, build_id)
    return sum(count for name, count in population.items() if release_order_key(*name) < order)


def _where(chosen: Chosen) -> list[sa.ColumnElement[bool]]:
    columns = DEVICE_REPORTS.c
    conditions: list[sa.ColumnElement[bool]] = [columns.received_at >= chosen.since]
    if chosen.product:
        conditions.append(columns.product == chosen.product)
    if chosen.channel:
        conditions.append(columns.channel == chosen.channel)
    return conditions
