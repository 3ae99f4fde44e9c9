"""How far each release was open over time: what a policy said is gone with its next revision, so it is written down.

A row is added when a release's percentage or state differs from the newest row of it, whoever changed it and however:
by a command, from the dashboard, or because a step's time came.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from overhaul.server.database.engine import Database
from overhaul.server.database.tables import EXPOSURE_CHANGES
from overhaul.server.views import ChannelView

#: product, channel, variant, arch, version, build id
Place = tuple[str, str, str, str, str, str]
_PLACE = ("product", "channel", "variant", "arch", "version", "build_id")


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """From a time on, the part of the devices that a release was open to."""

    at: int
    percent: float
    state: str


class ExposureHistory:
    """The changes in the database; every method blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[Place, tuple[float, str]] = {}

    def record(self, channels: Iterable[ChannelView], *, now: int) -> int:
        """Write down what differs from the newest rows; return how many rows were added."""
        wanted = {
            (channel.product, channel.channel, entry.variant, entry.arch, entry.version, entry.build_id): (
                entry.percent,
                entry.state.value,
            )
            for channel in channels
            for entry in channel.entries
        }
        if wanted == self._known:
            return 0
        dialect = postgresql if self._database.engine.dialect.name == "postgresql" else sqlite
        with self._database.writing() as connection:
            held = self._newest(connection)
            rows = [
                {**dict(zip(_PLACE, place, strict=True)), "at": now, "percent": percent, "state": state}
                for place, (percent, state) in wanted.items()
                if held.get(place) != (percent, state)
            ]
            if rows:
                connection.execute(dialect.insert(EXPOSURE_CHANGES).on_conflict_do_nothing(), rows)
        self._known = wanted
        return len(rows)

    def read(self, *, since: int, product: str = "", channel: str = "") -> dict[Place, tuple[Exposure, ...]]:
        """Return the changes from `since` on, and the last before it, by release; the oldest first."""
        columns = EXPOSURE_CHANGES.c
        query = sa.select(EXPOSURE_CHANGES).order_by(columns.at)
        if product:
            query = query.where(columns.product == product)
        if channel:
            query = query.where(columns.channel == channel)
        found: dict[Place, list[Exposure]] = {}
        with self._database.reading() as connection:
            for row in connection.execute(query).mappings():
                changes = found.setdefault(_place(row), [])
                if row["at"] <= since:
                    changes.clear()
                changes.append(Exposure(at=row["at"], percent=row["percent"], state=row["state"]))
        return {place: tuple(changes) for place, changes in found.items()}

    def prune(self, *, before: int) -> int:
        """Remove changes before `before` that a later one of the same release follows; return how many."""
        table = EXPOSURE_CHANGES
        later = table.alias()
        same = [later.c[name] == table.c[name] for name in _PLACE]
        follows = sa.exists().where(*same, later.c.at > table.c.at, later.c.at < before)
        with self._database.writing() as connection:
            return connection.execute(table.delete().where(table.c.at < before, follows)).rowcount

    def _newest(self, connection: sa.Connection) -> dict[Place, tuple[float, str]]:
        rows = connection.execute(sa.select(EXPOSURE_CHANGES).order_by(EXPOSURE_CHANGES.c.at)).mappings()
        return {_place(row): (row["percent"], row["state"]) for row in rows}


def _place(row: sa.RowMapping) -> Place:
    return (row["product"], row["channel"], row["variant"], row["arch"], row["version"], row["build_id"])
