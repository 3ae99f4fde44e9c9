"""What devices tell of their updates, when their owners opted in.

A report says which release was left, which was sought, how it went and what it cost. It never says which device
it was: its id is made anew for every report and only keeps a repeated request from being counted twice. A second id
is made anew for every update and ties the few reports of that one update together, so that a device that announced
its restart and never came back is missed. Reports are not signed, so all they can do is to stop a rollout, or to let
it go on as its operator planned (see `server.update_health`); what a device may install is decided elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy.dialects import postgresql, sqlite

from overhaul.release.versions import release_order_key
from overhaul.server.database.engine import Database
from overhaul.server.database.tables import DEVICE_REPORTS

_NameText = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._+~-]{0,63}$")]
_TokenText = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}$")]


class Outcome(StrEnum):
    """How far the device came."""

    CHECKED = "checked"
    INSTALLED = "installed"
    WAITING = "waiting"
    RESTARTING = "restarting"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled-back"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DeviceReport(BaseModel):
    """What a device tells of one check or update."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] = Field(
        description="128 random bits, made anew for each report; repeat it when sending the same report again."
    )
    product: _NameText
    variant: _NameText
    arch: _NameText
    channel: _NameText
    from_version: _TokenText
    from_build_id: _TokenText
    to_version: _TokenText | None = Field(None, description="The release sought; absent when there was none.")
    to_build_id: _TokenText | None = None
    outcome: Outcome
    bytes_received: int = Field(0, ge=0, le=1 << 50)
    requests: int = Field(0, ge=0, le=10_000_000)
    seconds: float = Field(
        0.0,
        ge=0,
        le=1e8,
        allow_inf_nan=False,
        description="What it took; for `checked`, the time since the last check.",
    )
    error: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9]{0,63}$")] | None = Field(
        None, description="Class of the error that ended the update, such as `UnreachableError`."
    )
    update_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")] | None = Field(
        None, description="128 random bits, made anew for each update and the same in all reports of it."
    )

    @model_validator(mode="after")
    def _names_one_release(self) -> "DeviceReport":
        if (self.to_version is None) != (self.to_build_id is None):
            raise ValueError("to_version and to_build_id come together or not at all")
        return self


@dataclass(frozen=True, kw_only=True)
class StoredReport:
    """A report as it lies in the database."""

    received_at: int
    report: DeviceReport


@dataclass(frozen=True, kw_only=True)
class ReleaseOutcomes:
    """How devices fared with one release."""

    product: str
    variant: str
    arch: str
    version: str
    build_id: str
    outcomes: Mapping[str, int]
    #: Mean over the reports that installed it; None when none did.
    mean_bytes_received: int | None
    mean_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """The reports received since `since`, counted."""

    since: int
    total: int
    outcomes: Mapping[str, int]
    errors: Mapping[str, int]
    releases: tuple[ReleaseOutcomes, ...]


class ReportStore:
    """The reports in the database; every method blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, report: DeviceReport, *, now: int) -> bool:
        """Store `report`; return False when a report with its id is already there."""
        row = {**report.model_dump(), "outcome": report.outcome.value, "received_at": now}
        dialect = postgresql if self._database.engine.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(DEVICE_REPORTS).values(row).on_conflict_do_nothing()
        with self._database.writing() as connection:
            # Not every driver counts the rows of such an insert, so the row that was stored is asked for.
            return connection.execute(insert.returning(DEVICE_REPORTS.c.report_id)).first() is not None

    def recent(self, *, limit: int) -> tuple[StoredReport, ...]:
        """Return the newest reports, the newest first."""
        table = DEVICE_REPORTS
        query = sa.select(table).order_by(table.c.received_at.desc(), table.c.report_id).limit(limit)
        with self._database.reading() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return tuple(StoredReport(received_at=row.pop("received_at"), report=DeviceReport(**row)) for row in rows)

    def summary(self, *, since: int) -> ReportSummary:
        """Count the reports received at `since` and later."""
        columns = DEVICE_REPORTS.c
        recent = columns.received_at >= since
        count = sa.func.count()
        outcomes = sa.select(columns.outcome, count).where(recent).group_by(columns.outcome)
        errors = (
            sa.select(columns.error, count)
            .where(recent, columns.error.is_not(None))
            .group_by(columns.error)
            .order_by(count.desc(), columns.error)
            .limit(20)
        )
        named = (columns.product, columns.variant, columns.arch, columns.to_version, columns.to_build_id)
        releases = (
            sa.select(
                *named,
                columns.outcome,
                count,
                sa.func.avg(columns.bytes_received),
                sa.func.avg(columns.seconds),
            )
            .where(recent, columns.to_version.is_not(None))
            .group_by(*named, columns.outcome)
        )
        with self._database.reading() as connection:
            by_outcome = {row[0]: row[1] for row in connection.execute(outcomes)}
            by_error = {row[0]: row[1] for row in connection.execute(errors)}
            rows = connection.execute(releases).all()
        return ReportSummary(
            since=since,
            total=sum(by_outcome.values()),
            outcomes={outcome.value: by_outcome.get(outcome.value, 0) for outcome in Outcome},
            errors=by_error,
            releases=_by_release(rows),
        )

    def prune(self, *, before: int, keep_at_most: int) -> int:
        """Remove reports received before `before`, and the oldest beyond `keep_at_most`; return how many.

        Of mere check-ins half as many are kept, since a large fleet sends them all the time and they must not push
        out how updates ended.
        """
        table = DEVICE_REPORTS
        with self._database.writing() as connection:
            removed = connection.execute(table.delete().where(table.c.received_at < before)).rowcount
            for kind, limit in (
                (table.c.outcome == Outcome.CHECKED.value, keep_at_most // 2),
                (sa.true(), keep_at_most),
            ):
                newest_surplus = (
                    sa.select(table.c.received_at)
                    .where(kind)
                    .order_by(table.c.received_at.desc())
                    .offset(limit)
                    .limit(1)
                )
                surplus = connection.execute(newest_surplus).scalar()
                if surplus is not None:
                    removed += connection.execute(table.delete().where(kind, table.c.received_at <= surplus)).rowcount
        return removed


def _by_release(rows: Sequence[sa.Row[Any]]) -> tuple[ReleaseOutcomes, ...]:
    counts: dict[tuple[str, ...], dict[str, int]] = {}
    means: dict[tuple[str, ...], tuple[int, float]] = {}
    for row in rows:
        *name, outcome, number, mean_bytes, mean_seconds = tuple(row)
        key = tuple(name)
        counts.setdefault(key, {})[outcome] = number
        if outcome == Outcome.INSTALLED.value:
            means[key] = (round(mean_bytes), round(float(mean_seconds), 1))
    ordered = sorted(counts, key=lambda key: (key[:3], release_order_key(key[3], key[4])))
    found = []
    for key in ordered:
        product, variant, arch, version, build_id = key
        mean = means.get(key)
        found.append(
            ReleaseOutcomes(
                product=product,
                variant=variant,
                arch=arch,
                version=version,
                build_id=build_id,
                outcomes=counts[key],
                mean_bytes_received=None if mean is None else mean[0],
                mean_seconds=None if mean is None else mean[1],
            )
        )
    return tuple(found)
