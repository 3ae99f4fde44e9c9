"""What devices download and how often they ask, by the hour: counted in memory, added to the database now and then.

    poll, metadata, targets     requests and bytes of the route
    content                     of the release whose index, pack, delta ... it is (packs: of the release that made them)
    castr, atomupd, ostree      of the product in the path, as far as it is there
    swupd                       of the product, variant, arch and version in the path

A server that is killed loses what it counted since the last time, at most half a minute. Bytes that a bucket, CDN or
other web server sends are not seen here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from overhaul.release.record import ReleaseId
from overhaul.repository.layout import files_of
from overhaul.server.catalogue import Catalogue
from overhaul.server.database.engine import Database
from overhaul.server.database.tables import SERVED_HOURS

#: Routes whose answers go to devices.
COUNTED_ROUTES = frozenset(
    {"poll", "metadata", "targets", "content", "castr", "atomupd", "ostree", "swupd", "asu-file", "atomupd-query"}
)
#: Routes whose bytes belong to a release or product; of the others the path does not matter.
_BY_PATH = frozenset({"content", "castr", "ostree", "swupd", "atomupd"})
#: Different files counted between two writes; what is beyond them counts without its release.
_MOST_PATHS = 20_000
HOUR_S = 3600
_NOTHING = ReleaseId(product="", variant="", arch="", version="", build_id="")

Counted = dict[tuple[str, str], list[int]]


@dataclass(frozen=True, kw_only=True)
class Served:
    """What was answered on a route in one hour for one release."""

    hour: int
    route: str
    #: Its parts are empty as far as they are not known.
    release: ReleaseId
    bytes: int
    requests: int


class Volume:
    """Counts in memory; only ever used inside the event loop."""

    def __init__(self) -> None:
        self._counted: Counted = {}

    def count(self, *, route: str, path: str, status: int, body_bytes: int) -> None:
        """Count one answer."""
        if route not in COUNTED_ROUTES or status >= 400:
            return
        key = (route, path if route in _BY_PATH and status != 304 else "")
        found = self._counted.get(key)
        if found is None:
            if len(self._counted) >= _MOST_PATHS:
                key = (route, "")
            found = self._counted.setdefault(key, [0, 0])
        found[0] += body_bytes
        found[1] += 1

    def take(self) -> Counted:
        """Return what was counted since the last time, and begin anew."""
        counted, self._counted = self._counted, {}
        return counted


class ReleasesOfFiles:
    """Finds the release that a content file belongs to; remembers one catalogue."""

    def __init__(self) -> None:
        self._etag = ""
        self._releases: dict[str, ReleaseId] = {}

    def by_release(self, counted: Counted, catalogue: Catalogue | None) -> dict[tuple[str, ReleaseId], list[int]]:
        """Return (bytes, requests) by route and release."""
        if catalogue is not None and catalogue.pointer_etag != self._etag:
            self._etag, self._releases = catalogue.pointer_etag, _releases_of_files(catalogue)
        found: dict[tuple[str, ReleaseId], list[int]] = {}
        for (route, path), (size, requests) in counted.items():
            total = found.setdefault((route, self._release_of(route, path.removeprefix("/"))), [0, 0])
            total[0] += size
            total[1] += requests
        return found

    def _release_of(self, route: str, path: str) -> ReleaseId:
        if route == "content":
            return self._releases.get(path, _NOTHING)
        parts = [part[:64] for part in path.split("/")]
        if route not in {"atomupd", "ostree", "swupd"} or len(parts) < 3:
            return _NOTHING
        if route != "swupd" or len(parts) < 6 or not parts[4].isdigit():
            return ReleaseId(product=parts[1], variant="", arch="", version="", build_id="")
        return ReleaseId(product=parts[1], variant=parts[2], arch=parts[3], version=parts[4], build_id="")


def _releases_of_files(catalogue: Catalogue) -> dict[str, ReleaseId]:
    found: dict[str, ReleaseId] = {}
    for release in catalogue.releases:
        earlier = {file for pack in release.image.packs[release.image.own_packs :] for file in pack.files}
        for file in files_of(release):
            if file not in earlier:
                found.setdefault(file.path, release.id)
    return found


class ServedHours:
    """The hours in the database; every method blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, counted: Mapping[tuple[str, ReleaseId], Sequence[int]], *, now: int) -> None:
        """Add to the hour that `now` is in."""
        if not counted:
            return
        dialect = postgresql if self._database.engine.dialect.name == "postgresql" else sqlite
        table = SERVED_HOURS
        rows = [
            {
                "hour": now - now % HOUR_S,
                "route": route,
                "product": release.product,
                "variant": release.variant,
                "arch": release.arch,
                "version": release.version,
                "build_id": release.build_id,
                "bytes": size,
                "requests": requests,
            }
            for (route, release), (size, requests) in sorted(counted.items(), key=lambda item: str(item[0]))
        ]
        insert = dialect.insert(table)
        adding = insert.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={
                "bytes": table.c.bytes + insert.excluded.bytes,
                "requests": table.c.requests + insert.excluded.requests,
            },
        )
        with self._database.writing() as connection:
            connection.execute(adding, rows)

    def read(self, *, since: int, product: str = "", route: str = "") -> tuple[Served, ...]:
        """Return the hours from `since` on, the oldest first."""
        table = SERVED_HOURS
        query = sa.select(table).where(table.c.hour >= since - HOUR_S).order_by(table.c.hour)
        if product:
            query = query.where(table.c.product == product)
        if route:
            query = query.where(table.c.route == route)
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(
            Served(
                hour=row["hour"],
                route=row["route"],
                release=ReleaseId(
                    product=row["product"],
                    variant=row["variant"],
                    arch=row["arch"],
                    version=row["version"],
                    build_id=row["build_id"],
                ),
                bytes=row["bytes"],
                requests=row["requests"],
            )
            for row in rows
        )

    def prune(self, *, before: int, keep_at_most: int = 500_000) -> int:
        """Remove the hours before `before`, and the oldest beyond `keep_at_most` rows; return how many rows."""
        table = SERVED_HOURS
        surplus = sa.select(table.c.hour).order_by(table.c.hour.desc()).offset(keep_at_most).limit(1)
        with self._database.writing() as connection:
            removed = connection.execute(table.delete().where(table.c.hour < before)).rowcount
            oldest = connection.execute(surplus).scalar()
            if oldest is not None:
                removed += connection.execute(table.delete().where(table.c.hour <= oldest)).rowcount
        return removed
