"""Create the tables of the build queue."""

import sqlalchemy as sa
from alembic import op

revision = "b0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "builds",
        sa.Column("build_id", number, primary_key=True, autoincrement=True),
        sa.Column("recipe_key", sa.String(64), nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("builder", sa.String(128), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("client", sa.String(128), nullable=False),
        sa.Column("client_label", sa.String(128), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("enqueued_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("expires_at", sa.Double),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("worker", sa.String(128)),
        sa.Column("cancel_requested", sa.Boolean, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("failure", sa.Text),
        sa.Column("turn", sa.BigInteger, nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("lease_ends_at", sa.Double, nullable=False),
        sa.Column("log_size", sa.Integer, nullable=False),
        sa.Column("job_id", sa.BigInteger),
    )
    op.create_index("builds_by_recipe", "builds", ["recipe_key", "build_id"])
    op.create_index("builds_by_turn", "builds", ["state", "turn", "build_id"])
    op.create_index("builds_by_age", "builds", ["enqueued_at"])
    alive = sa.text("state IN ('queued', 'started')")
    op.create_index(
        "builds_one_alive", "builds", ["recipe_key"], unique=True, sqlite_where=alive, postgresql_where=alive
    )
    op.create_table(
        "build_names",
        sa.Column("name", sa.String(128), primary_key=True),
        sa.Column("recipe_key", sa.String(64), nullable=False),
    )
    op.create_table(
        "build_logs",
        sa.Column("build_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("offset", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    turns = op.create_table(
        "build_turns",
        sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("turn", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(turns, [{"only": 1, "turn": 0}])


def downgrade() -> None:
    for table in ("build_turns", "build_logs", "build_names", "builds"):
        op.drop_table(table)
