"""The tables as the newest migration leaves them; a test compares the two."""

import sqlalchemy as sa

METADATA = sa.MetaData()

#: What devices told of their updates. Nothing in it identifies a device: the id is made anew for each report, and
#: what ties the reports of one update together is made anew for each update.
DEVICE_REPORTS = sa.Table(
    "device_reports",
    METADATA,
    sa.Column("report_id", sa.String(32), primary_key=True),
    #: Seconds since 1970 UTC.
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
    sa.Column("update_id", sa.String(32)),
    sa.Index("device_reports_by_age", "received_at"),
    sa.Index("device_reports_by_release", "product", "to_version", "to_build_id", "outcome"),
)
