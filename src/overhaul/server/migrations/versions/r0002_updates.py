"""Tell which reports are about the same update."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("device_reports", sa.Column("update_id", sa.String(32)))


def downgrade() -> None:
    op.drop_column("device_reports", "update_id")
