"""Bring a database to the newest shape, or back: Alembic, with the scripts that are packaged beside it.

Several server processes may start at once. The whole upgrade is one write transaction that only one process
can be in; the others wait for it and then find nothing left to do.
"""

from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from overhaul.errors import OperatorError
from overhaul.server.database.engine import Database
from overhaul.server.database.tables import METADATA

_SCRIPTS = Path(__file__).parent.parent / "migrations"
#: Any number, as long as nothing else in the database uses it for its own locks.
_POSTGRESQL_LOCK = 7_216_093_311


class NewerDatabaseError(OperatorError):
    """The database was written by a newer Overhaul."""

    def __init__(self, *, url: str, revision: str) -> None:
        self.url = url
        self.revision = revision
        super().__init__(
            f"The database {url} has revision {revision}, which this Overhaul does not know; update Overhaul, or "
            "restore the copy of the database made before the update."
        )


def upgrade(database: Database) -> None:
    """Bring `database` to the newest revision.

    Raises:
        NewerDatabaseError: A newer Overhaul has been here.
    """
    _migrate(database, "upgrade", "head")


def downgrade(database: Database, *, to: str = "base") -> None:
    """Bring `database` back to the revision `to`; what only newer revisions hold is lost."""
    _migrate(database, "downgrade", to)


def revision_of(database: Database) -> str | None:
    """Return the revision `database` is at, or None when it is empty."""
    with database.reading() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def newest_revision() -> str:
    """Return the revision this code works with."""
    head = ScriptDirectory(str(_SCRIPTS)).get_current_head()
    assert head is not None  # noqa: S101 - the scripts are part of this package
    return head


def differences(database: Database) -> list[object]:
    """Return how `database` differs from the tables this code works with."""
    with database.reading() as connection:
        return list(compare_metadata(MigrationContext.configure(connection), METADATA))


def _migrate(database: Database, direction: str, revision: str) -> None:
    with database.upgrading() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})"))
        config = Config()
        config.set_main_option("script_location", str(_SCRIPTS))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        try:
            if direction == "upgrade":
                command.upgrade(config, revision)
            else:
                command.downgrade(config, revision)
        except CommandError as error:
            current = MigrationContext.configure(connection).get_current_revision() or "none"
            raise NewerDatabaseError(url=database.name, revision=current) from error
