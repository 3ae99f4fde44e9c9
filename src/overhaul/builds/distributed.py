"""The queue across machines: Procrastinate on PostgreSQL hands out the builds.

The row of a build stays the truth. Its job is deferred, fetched, retried and finished by Procrastinate's own job
manager inside the same transaction that changes the row, so neither can be there without the other. What it adds
to the lease table: workers on any machine are woken at once by a notification instead of looking every second, they
skip rows that others are fetching, and Procrastinate's tools show the jobs.
"""

import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TypeVar

import psycopg
import sqlalchemy as sa
from procrastinate.jobs import Job, Status
from procrastinate.manager import JobManager
from procrastinate.schema import SchemaManager
from procrastinate.sync_psycopg_connector import SyncPsycopgConnector
from psycopg.rows import DictRow, dict_row
from sqlalchemy.engine import Connection

from overhaul.builds import database as tables
from overhaul.builds.database import Connections
from overhaul.builds.leasing import LeaseQueue
from overhaul.builds.records import BuildRecord, BuildState, Lifetimes, QueueLimits
from overhaul.builds.tables import BUILDS
from overhaul.errors import OperatorError

_B = BUILDS.c
_TASK = "overhaul.build"
_QUEUE_PREFIX = "overhaul-"
_MAX_PRIORITY = (1 << 31) - 1
#: Any number, as long as nothing else in the database uses it for its own locks.
_POSTGRESQL_LOCK = 7_216_093_313

_Answer = TypeVar("_Answer")


class NotPostgresError(OperatorError):
    """Procrastinate was asked for on another database."""

    def __init__(self, *, url: str) -> None:
        self.url = url
        super().__init__(f"Procrastinate needs PostgreSQL and the database is {url}; name a postgresql:// address.")


def upgrade(database: Connections) -> None:
    """Bring the queue's tables to the newest revision, and create those of Procrastinate where they are missing.

    Raises:
        NotPostgresError: The database is not PostgreSQL.
    """
    tables.upgrade(database)
    with database.writing() as connection:
        if connection.dialect.name != "postgresql":
            raise NotPostgresError(url=database.name)
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})"))
        if connection.execute(sa.text("SELECT to_regclass('procrastinate_jobs')")).scalar() is None:
            SchemaManager(_Connector(connection)).apply_schema()


class ProcrastinateQueue(LeaseQueue):
    """Builds in PostgreSQL, handed out by Procrastinate; `address` is that of the same database."""

    def __init__(
        self,
        database: Connections,
        *,
        address: str,
        limits: QueueLimits | None = None,
        lifetimes: Lifetimes | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(database, limits=limits, lifetimes=lifetimes, clock=clock)
        self._address = address
        self._listener: psycopg.Connection[Any] | None = None

    def wait(self, timeout_s: float) -> None:
        """Return when something may have been submitted anywhere, or after `timeout_s`."""
        try:
            for _notification in self._listening().notifies(timeout=timeout_s, stop_after=1):
                return
        except psycopg.OperationalError:
            # The database went away; whoever asks it next gets the error that says so.
            self.close()

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _listening(self) -> psycopg.Connection[Any]:
        if self._listener is None:
            self._listener = psycopg.connect(self._address, autocommit=True)
            self._listener.execute("LISTEN procrastinate_any_queue_v1")
        return self._listener

    def _announce(self, connection: Connection, build: BuildRecord, turn: int) -> None:
        job = Job(
            queue=_queue(build.recipe.builder),
            # The highest priority goes first, so earlier turns have higher ones.
            priority=max(-turn, -_MAX_PRIORITY),
            lock=None,
            queueing_lock=None,
            task_name=_TASK,
            task_kwargs={"build_id": build.build_id},
        )
        job = JobManager(_Connector(connection)).defer_job(job)
        connection.execute(sa.update(BUILDS).where(_B.build_id == build.build_id).values(job_id=job.id))

    def _next(self, connection: Connection, builders: Sequence[str]) -> int | None:
        manager = JobManager(_Connector(connection))
        while True:
            # Procrastinate's own workers are not used, so nothing is registered for this job to belong to.
            job = _now(manager.fetch_job([_queue(name) for name in builders], None))  # type: ignore[arg-type]
            if job is None:
                return None
            build_id = int(str(job.task_kwargs["build_id"]))
            known = sa.select(_B.build_id).where(
                _B.build_id == build_id, _B.job_id == job.id, _B.state == BuildState.QUEUED.value
            )
            if connection.execute(known).first() is not None:
                return build_id
            # A job from before the tables were emptied, or put there by hand: the row is the truth.
            _now(manager.finish_job(job, status=Status.ABORTED, delete_job=True))

    def _again(self, connection: Connection, build_id: int) -> None:
        manager = JobManager(_Connector(connection))
        # Any time that is past for PostgreSQL, which counts from the begin of the transaction.
        manager.retry_job_by_id(self._job_of(connection, build_id), retry_at=datetime.fromtimestamp(0, UTC))

    def _over(self, connection: Connection, build_id: int) -> None:
        manager = JobManager(_Connector(connection))
        job_id = self._job_of(connection, build_id)
        if manager.cancel_job_by_id(job_id, delete_job=True):
            return
        _now(manager.finish_job_by_id_async(job_id=job_id, status=Status.SUCCEEDED, delete_job=True))

    def _job_of(self, connection: Connection, build_id: int) -> int:
        return int(connection.execute(sa.select(_B.job_id).where(_B.build_id == build_id)).scalar_one())


class _Connector(SyncPsycopgConnector):
    """Procrastinate's way to a database, bound to a connection whose transaction is somebody else's."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)  # noqa: S101 - the only driver we open PostgreSQL with
        self._driver: psycopg.Connection[Any] = driver

    @contextmanager
    def _get_cursor(self, connection: psycopg.Connection[Any] | None = None) -> Iterator[psycopg.Cursor[DictRow]]:
        with (connection or self._driver).cursor(row_factory=dict_row) as cursor:
            yield cursor

    def execute_query(self, query: str, **arguments: Any) -> None:
        self._driver.execute(query.encode(), self._wrap_json(arguments))

    async def execute_query_async(self, query: str, **arguments: Any) -> None:
        self.execute_query(query, **arguments)

    async def execute_query_one_async(self, query: Any, **arguments: Any) -> dict[str, Any]:
        return self.execute_query_one(query, **arguments)


def _queue(builder: str) -> str:
    return _QUEUE_PREFIX + builder


def _now(coroutine: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Run a coroutine that never waits, because its connector does not."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: _Answer = end.value
        return answer
    coroutine.close()
    raise AssertionError(f"{json.dumps(repr(coroutine))} waited for something")
