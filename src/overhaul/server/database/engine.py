"""Connections and transactions, alike for SQLite and PostgreSQL.

SQLite is the embedded default: write-ahead log, so that readers never wait for the writer; a busy time-out, so
that writers of several processes queue; foreign keys on; and write transactions that take their lock at the
start, because a transaction that begins by reading and then writes can fail at once whatever the time-out.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from overhaul.errors import OperatorError
from overhaul.host.rights import create_as_directory_says

_BUSY_TIMEOUT_MS = 10_000
#: How long whoever upgrades waits for another process that does: large tables take minutes.
_UPGRADE_TIMEOUT_MS = 3_600_000
_WRITING = "overhaul_writing"
_UPGRADING = "overhaul_upgrading"


class DatabaseFailedError(OperatorError):
    """The database cannot be opened, or refused what the server needs of it."""

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(
            f"The database {url} failed: {reason}. Check its address, rights and free space in overhaul.toml."
        )


class Database:
    """An opened database."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self._writing_engine = self.engine.execution_options(**{_WRITING: True})

    @property
    def name(self) -> str:
        """The address without its password, for people."""
        return self.engine.url.render_as_string(hide_password=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Yield a connection whose transaction only reads."""
        with self._explained(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Yield a connection whose transaction is committed when the block ends without an error."""
        with self._explained(), self._writing_engine.begin() as connection:
            yield connection

    @contextmanager
    def upgrading(self) -> Iterator[Connection]:
        """Do as `writing`, and wait for a writer however long its upgrade takes."""
        engine = self._writing_engine.execution_options(**{_UPGRADING: True})
        with self._explained(), engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise DatabaseFailedError(url=self.name, reason=reason) from error


def sqlite_url(path: Path) -> str:
    """Return the address of the SQLite database in the file `path`."""
    return f"sqlite:///{path.absolute()}"


def _prepare_file(path: Path) -> None:
    """Have the file of a database; SQLite gives its own files beside it the same rights."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with suppress(PermissionError):
            # Whoever may not make it is told so by the first question.
            create_as_directory_says(path)


def _engine(url: str) -> Engine:
    try:
        parsed = sqlalchemy.make_url(url)
        if parsed.drivername == "postgresql":
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "sqlite" and parsed.database and parsed.database != ":memory:":
            _prepare_file(Path(parsed.database))
        engine = sqlalchemy.create_engine(parsed, pool_pre_ping=parsed.get_backend_name() != "sqlite")
    except (ArgumentError, NoSuchModuleError, ImportError, OSError) as error:
        raise DatabaseFailedError(url=_without_password(url), reason=str(error)) from error
    if engine.dialect.name == "sqlite":
        sqlalchemy.event.listen(engine, "connect", _prepare_sqlite)
        sqlalchemy.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver would otherwise begin transactions by itself
    for pragma in (f"busy_timeout={_BUSY_TIMEOUT_MS}", "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    upgrading = options.get(_UPGRADING, False)
    if upgrading:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={_UPGRADE_TIMEOUT_MS}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get(_WRITING, False) else "BEGIN")
    if upgrading:
        connection.exec_driver_sql(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
