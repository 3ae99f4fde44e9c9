"""How Alembic reaches the database: through the connection that `builds.database` hands over."""

from alembic import context

from overhaul.builds.database import VERSION_TABLE
from overhaul.builds.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    render_as_batch=True,  # SQLite cannot alter columns in place
    transaction_per_migration=False,
)
context.run_migrations()
