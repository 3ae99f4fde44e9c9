"""Create the table of device reports."""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "device_reports",
        sa.Column("report_id", sa.String(32), primary_key=True),
        sa.Column("received_at", sa.BigInteger, nullable=False),
        sa.Column("product", sa.String(64), nullable=False),
        sa.Column("variant", sa.String(64), nullable=False),
        sa.Column("arch", sa.String(64), nullable=False),
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("from_version", sa.String(64), nullable=False),
        sa.Column("from_build_id", sa.String(64), nullable=False),
        sa.Column("to_version", sa.String(64)),
        sa.Column("to_build_id", sa.String(64)),
        sa.Column("outcome", sa.String(16), nullable=False),
        sa.Column("bytes_received", sa.BigInteger, nullable=False),
        sa.Column("requests", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("error", sa.String(64)),
    )
    op.create_index("device_reports_by_age", "device_reports", ["received_at"])
    op.create_index("device_reports_by_release", "device_reports", ["product", "to_version", "to_build_id", "outcome"])


def downgrade() -> None:
    op.drop_table("device_reports")
