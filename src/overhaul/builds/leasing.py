"""The queue in a database: a lease table on SQLite or PostgreSQL.

Who submits or leases first locks the one row of `build_turns` (on SQLite, the whole database), so those steps
happen one after another, and the rest are single conditional updates: a lease that has ended changes no row.
On PostgreSQL all times are the database's own, so that the clocks of workers need not agree.
"""

import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from overhaul.builds.database import Connections
from overhaul.builds.queue import (
    ClientLimitError,
    LogPart,
    LostLeaseError,
    QueueFullError,
    Submitted,
    UnknownBuildError,
)
from overhaul.builds.recipe import Recipe, decode_recipe, encode_recipe, same_recipe
from overhaul.builds.records import (
    BuildRecord,
    BuildState,
    Lease,
    Lifetimes,
    QueueLimits,
    ended,
    lost_failure,
    requeued,
)
from overhaul.builds.results import BuildFailure, BuildResult, Phase
from overhaul.builds.tables import BUILD_LOGS, BUILD_NAMES, BUILD_TURNS, BUILDS

_B = BUILDS.c
#: How long a worker sleeps at most before it looks for builds that another process submitted.
_POLL_S = 1.0
_LABEL_CHARACTERS = 128

# What every submit asks is made once: building a statement costs more than SQLite takes to answer it.
_COUNT_REQUEST = sa.update(BUILDS).where(_B.build_id == sa.bindparam("wanted")).values(requests=_B.requests + 1)
_KEY_OF_NAME = sa.select(BUILD_NAMES.c.recipe_key).where(BUILD_NAMES.c.name == sa.bindparam("wanted"))
_BIND_NAME = sa.insert(BUILD_NAMES)
_NEWEST = sa.select(BUILDS).where(_B.recipe_key == sa.bindparam("wanted")).order_by(_B.build_id.desc()).limit(1)
_INSERT = sa.insert(BUILDS).returning(_B.build_id)
_IS_MINE = _B.client == sa.bindparam("wanted")
_WAITING = sa.select(
    sa.func.count(), sa.func.count(sa.case((_IS_MINE, 1))), sa.func.max(sa.case((_IS_MINE, _B.turn)))
).where(_B.state == BuildState.QUEUED.value)
_ALL_WAITING = sa.select(sa.func.count()).where(_B.state == BuildState.QUEUED.value)
_TURN = sa.select(BUILD_TURNS.c.turn).with_for_update()
_PLACE = sa.select(_B.turn, _B.state).where(_B.build_id == sa.bindparam("wanted"))
_BEFORE = sa.select(sa.func.count()).where(
    _B.state == BuildState.QUEUED.value,
    sa.or_(
        _B.turn < sa.bindparam("turn"),
        sa.and_(_B.turn == sa.bindparam("turn"), _B.build_id < sa.bindparam("wanted")),
    ),
)
_POSTGRESQL_NOW = sa.text("SELECT extract(epoch FROM clock_timestamp())")


class LeaseQueue:
    """Builds in a database. Bring its tables to the newest revision first (`database.upgrade`)."""

    def __init__(
        self,
        database: Connections,
        *,
        limits: QueueLimits | None = None,
        lifetimes: Lifetimes | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._database = database
        self._limits = limits or QueueLimits()
        self._lifetimes = lifetimes or Lifetimes()
        self._clock = clock
        self._submitted = threading.Event()

    def submit(
        self, recipe: Recipe, *, names: Sequence[str], client: str, client_label: str = "unknown/0"
    ) -> Submitted:
        """Return the build that answers a request for `recipe`."""
        key = recipe.key
        with self._database.writing() as connection:
            turn = self._lock(connection)
            now = self._now(connection)
            name = self._bind_first(connection, [*names, key], key) or key
            found = self._newest(connection, key)
            if found is not None and same_recipe(found.recipe, recipe) and found.answers(now):
                connection.execute(_COUNT_REQUEST, {"wanted": found.build_id})
                build = msgspec.structs.replace(found, requests=found.requests + 1)
                return Submitted(build=build, name=name, is_new=False)
            client = client[:_LABEL_CHARACTERS]
            turn = self._admit(connection, client, turn)
            build = BuildRecord(
                build_id=0,
                recipe=recipe,
                recipe_key=key,
                name=name,
                client=client,
                client_label=client_label[:_LABEL_CHARACTERS],
                state=BuildState.QUEUED,
                phase=Phase.INIT,
                enqueued_at=now,
            )
            build = self._insert(connection, build, turn)
            self._announce(connection, build, turn)
        self._submitted.set()
        return Submitted(build=build, name=name, is_new=True)

    def find(self, build_id: int) -> BuildRecord:
        """Return a build by its number."""
        with self._database.reading() as connection:
            return self._find(connection, build_id)

    def find_named(self, name: str) -> BuildRecord | None:
        """Return the newest build of the recipe that `name` stands for."""
        query = (
            sa.select(BUILDS)
            .join(BUILD_NAMES, BUILD_NAMES.c.recipe_key == _B.recipe_key)
            .where(BUILD_NAMES.c.name == name)
            .order_by(_B.build_id.desc())
            .limit(1)
        )
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _record(row)

    def find_recipe(self, recipe: Recipe) -> BuildRecord | None:
        """Return the newest build of `recipe`."""
        with self._database.reading() as connection:
            found = self._newest(connection, recipe.key)
        return found if found is not None and same_recipe(found.recipe, recipe) else None

    def bind(self, name: str, recipe_key: str) -> bool:
        """Let `name` stand for a recipe too."""
        with self._database.writing() as connection:
            self._lock(connection)
            return self._bind_first(connection, [name], recipe_key) is not None

    def position(self, build_id: int) -> int:
        """Return how many builds come before a waiting one."""
        with self._database.reading() as connection:
            row = connection.execute(_PLACE, {"wanted": build_id}).first()
            if row is None:
                raise UnknownBuildError(build_id=build_id)
            if row.state != BuildState.QUEUED:
                return 0
            before = connection.execute(_BEFORE, {"turn": row.turn, "wanted": build_id})
            return int(before.scalar_one())

    def waiting(self) -> int:
        """Return how many builds wait."""
        with self._database.reading() as connection:
            return int(connection.execute(_ALL_WAITING).scalar_one())

    def recent(self, *, limit: int, states: Collection[str] = (), since: float = 0.0) -> tuple[BuildRecord, ...]:
        """Return builds, the newest first."""
        query = sa.select(BUILDS).where(_B.enqueued_at >= since).order_by(_B.build_id.desc()).limit(limit)
        if states:
            query = query.where(_B.state.in_(sorted(states)))
        with self._database.reading() as connection:
            return tuple(_record(row) for row in connection.execute(query).mappings())

    def count_requests(self, build_id: int, amount: int) -> None:
        """Add `amount` to the requests that a build has answered."""
        update = sa.update(BUILDS).where(_B.build_id == build_id).values(requests=_B.requests + amount)
        with self._database.writing() as connection:
            if connection.execute(update).rowcount == 0:
                raise UnknownBuildError(build_id=build_id)

    def cancel(self, build_id: int) -> BuildRecord:
        """End a waiting build; ask the worker of a running one to stop."""
        with self._database.writing() as connection:
            self._lock(connection)
            build = self._find(connection, build_id)
            if build.state is BuildState.QUEUED:
                build = ended(build, None, now=self._now(connection), lifetimes=self._lifetimes)
                self._save(connection, build)
                self._over(connection, build_id)
            elif build.state is BuildState.STARTED:
                build = msgspec.structs.replace(build, cancel_requested=True)
                self._save(connection, build)
        return build

    def lease(self, *, worker: str, builders: Collection[str]) -> Lease | None:
        """Return the next build for `worker`."""
        with self._database.writing() as connection:
            turn = self._lock(connection)
            now = self._now(connection)
            self._take_back(connection, now)
            build_id = self._next(connection, sorted(builders))
            if build_id is None:
                return None
            build = self._find(connection, build_id)
            build = msgspec.structs.replace(
                build,
                state=BuildState.STARTED,
                phase=Phase.INIT,
                started_at=now,
                attempts=build.attempts + 1,
                worker=worker[:_LABEL_CHARACTERS],
            )
            token, ends_at = secrets.token_hex(16), now + self._limits.lease_s
            self._save(connection, build, token=token, lease_ends_at=ends_at)
            reached = sa.select(_B.turn).where(_B.build_id == build_id).scalar_subquery()
            connection.execute(sa.update(BUILD_TURNS).where(reached > turn).values(turn=reached))
        return Lease(build=build, token=token, worker=worker, ends_at=ends_at)

    def renew(self, lease: Lease, *, phase: Phase | None = None) -> Lease:
        """Move the end of `lease` on."""
        with self._database.writing() as connection:
            ends_at = self._now(connection) + self._limits.lease_s
            changes: dict[str, object] = {"lease_ends_at": ends_at}
            if phase is not None:
                changes["phase"] = phase.value
            build = self._change_held(connection, lease, changes)
        return Lease(build=build, token=lease.token, worker=lease.worker, ends_at=ends_at)

    def finish(self, lease: Lease, end: BuildResult | BuildFailure) -> BuildRecord:
        """End the build."""
        with self._database.writing() as connection:
            build = self._change_held(connection, lease, {"token": ""})
            build = ended(build, end, now=self._now(connection), lifetimes=self._lifetimes)
            self._save(connection, build)
            self._over(connection, build.build_id)
        return build

    def give_back(self, lease: Lease) -> None:
        """Let the build wait again."""
        with self._database.writing() as connection:
            build = self._change_held(connection, lease, {"token": ""})
            self._save(connection, requeued(build, attempts=build.attempts - 1))
            self._again(connection, build.build_id)
        self._submitted.set()

    def append_log(self, lease: Lease, text: str) -> None:
        """Add to the build's log."""
        text = text.replace("\0", "\ufffd")  # PostgreSQL keeps no NUL in a text
        with self._database.writing() as connection:
            build = self._change_held(connection, lease, {"token": lease.token})
            size_query = sa.select(_B.log_size).where(_B.build_id == build.build_id)
            size = int(connection.execute(size_query).scalar_one())
            taken = text[: max(0, self._limits.log_characters - size)]
            if taken:
                connection.execute(sa.insert(BUILD_LOGS).values(build_id=build.build_id, offset=size, text=taken))
                connection.execute(
                    sa.update(BUILDS).where(_B.build_id == build.build_id).values(log_size=size + len(taken))
                )

    def read_log(self, build_id: int, *, offset: int = 0) -> LogPart:
        """Return the log from `offset` characters on."""
        end = BUILD_LOGS.c.offset + sa.func.length(BUILD_LOGS.c.text)
        query = (
            sa.select(BUILD_LOGS.c.offset, BUILD_LOGS.c.text)
            .where(BUILD_LOGS.c.build_id == build_id, end > offset)
            .order_by(BUILD_LOGS.c.offset)
        )
        with self._database.reading() as connection:
            self._find(connection, build_id)
            rows = connection.execute(query).all()
        if not rows:
            return LogPart(text="", next_offset=offset)
        text = "".join(row.text for row in rows)
        first = int(rows[0].offset)
        return LogPart(text=text[max(0, offset - first) :], next_offset=first + len(text))

    def forget_logs(self, *, before: float) -> int:
        """Remove logs of builds that were over before `before`."""
        old = sa.select(_B.build_id).where(_B.finished_at < before)
        pieces = BUILD_LOGS.c.build_id.in_(old)
        with self._database.writing() as connection:
            count = connection.execute(sa.select(sa.func.count(BUILD_LOGS.c.build_id.distinct())).where(pieces))
            forgotten = int(count.scalar_one())
            connection.execute(sa.delete(BUILD_LOGS).where(pieces))
        return forgotten

    def expire(self, build_id: int) -> None:
        """Let the end of a build answer no more requests."""
        is_over = _B.state.not_in([BuildState.QUEUED.value, BuildState.STARTED.value])
        with self._database.writing() as connection:
            self._find(connection, build_id)
            connection.execute(sa.update(BUILDS).where(_B.build_id == build_id, is_over).values(expires_at=0.0))

    def wait(self, timeout_s: float) -> None:
        """Return when something may have been submitted, or after `timeout_s`."""
        self._submitted.wait(min(timeout_s, _POLL_S))
        self._submitted.clear()

    # What a queue with a dispatcher of its own does otherwise.

    def _announce(self, connection: Connection, build: BuildRecord, turn: int) -> None:
        """A build waits since now."""

    def _next(self, connection: Connection, builders: Sequence[str]) -> int | None:
        """Return the waiting build whose turn it is."""
        query = (
            sa.select(_B.build_id)
            .where(_B.state == BuildState.QUEUED.value, _B.builder.in_(builders))
            .order_by(_B.turn, _B.build_id)
            .limit(1)
        )
        found: int | None = connection.execute(query).scalar()
        return found

    def _again(self, connection: Connection, build_id: int) -> None:
        """A build that had begun waits again."""

    def _over(self, connection: Connection, build_id: int) -> None:
        """A build is over."""

    def _lock(self, connection: Connection) -> int:
        """Keep every other submit and lease out until the transaction ends; return the turn reached."""
        return int(connection.execute(_TURN).scalar_one())

    def _now(self, connection: Connection) -> float:
        if self._clock is not None:
            return self._clock()
        if connection.dialect.name == "postgresql":
            return float(connection.execute(_POSTGRESQL_NOW).scalar_one())
        return time.time()

    def _take_back(self, connection: Connection, now: float) -> None:
        """Let builds of workers that did not renew their lease wait again, or end those that killed too many."""
        query = sa.select(BUILDS).where(_B.state == BuildState.STARTED.value, _B.lease_ends_at <= now)
        for row in connection.execute(query).mappings().all():
            build = _record(row)
            if build.cancel_requested:
                build = ended(build, None, now=now, lifetimes=self._lifetimes)
            elif build.attempts >= self._limits.attempts:
                build = ended(build, lost_failure(build.attempts), now=now, lifetimes=self._lifetimes)
            else:
                build = requeued(build, attempts=build.attempts)
            self._save(connection, build, token="")
            if build.state.is_over:
                self._over(connection, build.build_id)
            else:
                self._again(connection, build.build_id)

    def _admit(self, connection: Connection, client: str, turn: int) -> int:
        """Return the turn of the next build of `client`; raise when it may not wait."""
        waiting, mine, latest = connection.execute(_WAITING, {"wanted": client}).one()
        if waiting >= self._limits.waiting:
            raise QueueFullError(waiting=waiting, limit=self._limits.waiting)
        if mine >= self._limits.waiting_of_client:
            raise ClientLimitError(client=client, waiting=mine, limit=self._limits.waiting_of_client)
        return turn if latest is None else max(turn, latest + 1)

    def _insert(self, connection: Connection, build: BuildRecord, turn: int) -> BuildRecord:
        row = {
            **_columns(build),
            "recipe_key": build.recipe_key,
            "recipe": encode_recipe(build.recipe),
            "builder": build.recipe.builder,
            "name": build.name,
            "client": build.client,
            "client_label": build.client_label,
            "enqueued_at": build.enqueued_at,
            "requests": build.requests,
            "turn": turn,
            "token": "",
            "lease_ends_at": 0.0,
            "log_size": 0,
        }
        number = connection.execute(_INSERT, row).scalar_one()
        return msgspec.structs.replace(build, build_id=int(number))

    def _bind_first(self, connection: Connection, names: Sequence[str], key: str) -> str | None:
        """Return the first of `names` that stands for the recipe `key`, or does from now on."""
        for name in names:
            bound = connection.execute(_KEY_OF_NAME, {"wanted": name}).scalar()
            if bound is None:
                connection.execute(_BIND_NAME, {"name": name, "recipe_key": key})
            if bound in {None, key}:
                return name
        return None

    def _newest(self, connection: Connection, key: str) -> BuildRecord | None:
        row = connection.execute(_NEWEST, {"wanted": key}).mappings().first()
        return None if row is None else _record(row)

    def _find(self, connection: Connection, build_id: int) -> BuildRecord:
        row = connection.execute(sa.select(BUILDS).where(_B.build_id == build_id)).mappings().first()
        if row is None:
            raise UnknownBuildError(build_id=build_id)
        return _record(row)

    def _save(self, connection: Connection, build: BuildRecord, **more: object) -> None:
        update = sa.update(BUILDS).where(_B.build_id == build.build_id).values({**_columns(build), **more})
        connection.execute(update)

    def _change_held(self, connection: Connection, lease: Lease, changes: dict[str, object]) -> BuildRecord:
        """Change the row of a build whose lease is held, and return it as it is then."""
        update = (
            sa.update(BUILDS)
            .where(
                _B.build_id == lease.build.build_id,
                _B.token == lease.token,
                _B.state == BuildState.STARTED.value,
                _B.lease_ends_at > self._now(connection),
            )
            .values(changes)
            .returning(BUILDS)
        )
        row = connection.execute(update).mappings().first()
        if row is None:
            raise LostLeaseError(build_id=lease.build.build_id)
        return _record(row)


def _columns(build: BuildRecord) -> dict[str, object]:
    """Return the columns that a build's life changes."""
    return {
        "state": build.state.value,
        "phase": build.phase.value,
        "started_at": build.started_at,
        "finished_at": build.finished_at,
        "expires_at": build.expires_at,
        "attempts": build.attempts,
        "worker": build.worker,
        "cancel_requested": build.cancel_requested,
        "result": None if build.result is None else msgspec.json.encode(build.result).decode(),
        "failure": None if build.failure is None else msgspec.json.encode(build.failure).decode(),
    }


def _record(row: RowMapping) -> BuildRecord:
    result, failure = row["result"], row["failure"]
    return BuildRecord(
        build_id=row["build_id"],
        recipe=decode_recipe(row["recipe"]),
        recipe_key=row["recipe_key"],
        name=row["name"],
        client=row["client"],
        client_label=row["client_label"],
        state=BuildState(row["state"]),
        phase=Phase(row["phase"]),
        enqueued_at=row["enqueued_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        expires_at=row["expires_at"],
        attempts=row["attempts"],
        worker=row["worker"],
        cancel_requested=bool(row["cancel_requested"]),
        requests=row["requests"],
        result=None if result is None else msgspec.json.decode(result, type=BuildResult),
        failure=None if failure is None else msgspec.json.decode(failure, type=BuildFailure),
    )
