"""The queue's part of the database: what it needs of a connection, and its migrations.

The server's room opens the database; this one only asks for the two kinds of transactions. Both may share one
database, so the queue's revision is kept in a table of its own.
"""

import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection

from overhaul.builds.tables import METADATA
from overhaul.errors import OperatorError

VERSION_TABLE = "builds_alembic_version"
_SCRIPTS = Path(__file__).parent / "migrations"
#: Any number, as long as nothing else in the database uses it for its own locks.
_POSTGRESQL_LOCK = 7_216_093_312


class Connections(Protocol):
    """An opened database: SQLite or PostgreSQL."""

    @property
    def name(self) -> str:
        """Its address without the password, for people."""

    def reading(self) -> AbstractContextManager[Connection]:
        """Yield a connection whose transaction only reads."""

    def writing(self) -> AbstractContextManager[Connection]:
        """Yield a connection whose transaction is committed when the block ends without an error.

        On SQLite it takes the lock of the writer at its start.
        """

    def upgrading(self) -> AbstractContextManager[Connection]:
        """Do as `writing`, and wait for a writer however long its upgrade takes."""


class NewerQueueError(OperatorError):
    """The queue's tables were written by a newer Overhaul."""

    def __init__(self, *, url: str) -> None:
        self.url = url
        super().__init__(f"The build queue in {url} was made by a newer Overhaul; update this one.")


def upgrade(database: Connections) -> None:
    """Bring the queue's tables to the newest revision; processes that start together do it once."""
    _migrate(database, "upgrade", "head")


def downgrade(database: Connections) -> None:
    """Remove the queue's tables and all records."""
    _migrate(database, "downgrade", "base")


def newest_revision() -> str:
    """Return the revision this code works with."""
    head = ScriptDirectory(str(_SCRIPTS)).get_current_head()
    assert head is not None  # noqa: S101 - the scripts are part of this package
    return head


def differences(database: Connections) -> list[object]:
    """Return how the queue's tables in `database` differ from those this code works with."""
    with database.reading() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "version_table": VERSION_TABLE,
                "include_name": lambda name, kind, _parents: kind != "table" or name in METADATA.tables,
            },
        )
        return list(compare_metadata(context, METADATA))


#: Alembic keeps what it works on in globals, so threads of one process must take turns.
_ONE_THREAD = threading.Lock()


def _migrate(database: Connections, direction: str, revision: str) -> None:
    with _ONE_THREAD, database.upgrading() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})"))
        config = Config()
        config.set_main_option("script_location", str(_SCRIPTS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        try:
            (command.upgrade if direction == "upgrade" else command.downgrade)(config, revision)
        except CommandError as error:
            raise NewerQueueError(url=database.name) from error
