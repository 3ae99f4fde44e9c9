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

#: Body bytes and requests answered, by the hour: what devices download, and how often they ask.
SERVED_HOURS = sa.Table(
    "served_hours",
    METADATA,
    #: Seconds since 1970 UTC at which the hour began.
    sa.Column("hour", sa.BigInteger, primary_key=True),
    #: The class of route, as in the metrics.
    sa.Column("route", sa.String(16), primary_key=True),
    #: The release the bytes belong to, as far as it is known; else empty.
    sa.Column("product", sa.String(64), primary_key=True),
    sa.Column("variant", sa.String(64), primary_key=True),
    sa.Column("arch", sa.String(64), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("build_id", sa.String(64), primary_key=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("requests", sa.BigInteger, nullable=False),
)

#: When the part of the devices that a release is open to changed, as the server saw it.
EXPOSURE_CHANGES = sa.Table(
    "exposure_changes",
    METADATA,
    sa.Column("product", sa.String(64), primary_key=True),
    sa.Column("channel", sa.String(64), primary_key=True),
    sa.Column("variant", sa.String(64), primary_key=True),
    sa.Column("arch", sa.String(64), primary_key=True),
    sa.Column("version", sa.String(64), primary_key=True),
    sa.Column("build_id", sa.String(64), primary_key=True),
    sa.Column("at", sa.BigInteger, primary_key=True),
    sa.Column("percent", sa.Float, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Index("exposure_changes_by_age", "at"),
)

#: Who may look and act. A row without a password belongs to somebody whom an identity provider vouches for.
OPERATORS = sa.Table(
    "operators",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("password_hash", sa.String(200)),
    sa.Column("changed_at", sa.BigInteger, nullable=False),
)

#: Who is signed in. A thief of the database learns no token: only its digest is kept.
OPERATOR_SESSIONS = sa.Table(
    "operator_sessions",
    METADATA,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("operator", sa.String(64), nullable=False),
    sa.Column("began_at", sa.BigInteger, nullable=False),
    sa.Column("seen_at", sa.BigInteger, nullable=False),
    sa.Index("operator_sessions_by_operator", "operator"),
)

#: Attempts to sign in that did not succeed, or have not yet: what the limits count.
LOGIN_ATTEMPTS = sa.Table(
    "login_attempts",
    METADATA,
    sa.Column("attempt_id", sa.String(32), primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("account", sa.String(64), nullable=False),
    sa.Column("address", sa.String(64), nullable=False),
    sa.Index("login_attempts_by_age", "at"),
)
