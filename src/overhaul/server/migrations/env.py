"""How Alembic reaches the database: through the connection that `database.migrating` hands over."""

from alembic import context

from overhaul.server.database.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite cannot alter columns in place
    transaction_per_migration=False,
)
context.run_migrations()
