"""Create the tables of operators and of what the dashboard plots over time."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None

_RELEASE = ("product", "variant", "arch", "version", "build_id")


def upgrade() -> None:
    op.create_table(
        "served_hours",
        sa.Column("hour", sa.BigInteger, primary_key=True),
        sa.Column("route", sa.String(16), primary_key=True),
        *(sa.Column(name, sa.String(64), primary_key=True) for name in _RELEASE),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "exposure_changes",
        sa.Column("product", sa.String(64), primary_key=True),
        sa.Column("channel", sa.String(64), primary_key=True),
        *(sa.Column(name, sa.String(64), primary_key=True) for name in _RELEASE[1:]),
        sa.Column("at", sa.BigInteger, primary_key=True),
        sa.Column("percent", sa.Float, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
    )
    op.create_index("exposure_changes_by_age", "exposure_changes", ["at"])
    op.create_table(
        "operators",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.String(200)),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "operator_sessions",
        sa.Column("token_sha256", sa.String(64), primary_key=True),
        sa.Column("operator", sa.String(64), nullable=False),
        sa.Column("began_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
    )
    op.create_index("operator_sessions_by_operator", "operator_sessions", ["operator"])
    op.create_table(
        "login_attempts",
        sa.Column("attempt_id", sa.String(32), primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("account", sa.String(64), nullable=False),
        sa.Column("address", sa.String(64), nullable=False),
    )
    op.create_index("login_attempts_by_age", "login_attempts", ["at"])


def downgrade() -> None:
    for table in ("login_attempts", "operator_sessions", "operators", "exposure_changes", "served_hours"):
        op.drop_table(table)
