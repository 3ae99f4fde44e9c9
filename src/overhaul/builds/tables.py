"""The tables of the queue as the newest migration leaves them; a test compares the two.

The row of a build is the truth about it, whatever else a queue keeps.
"""

import sqlalchemy as sa

METADATA = sa.MetaData()

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers rows by itself only for INTEGER

BUILDS = sa.Table(
    "builds",
    METADATA,
    sa.Column("build_id", _NUMBER, primary_key=True, autoincrement=True),
    sa.Column("recipe_key", sa.String(64), nullable=False),
    #: The whole recipe as JSON: compared on every hit, and kept as the record.
    sa.Column("recipe", sa.Text, nullable=False),
    sa.Column("builder", sa.String(128), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("client", sa.String(128), nullable=False),
    sa.Column("client_label", sa.String(128), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("phase", sa.String(32), nullable=False),
    #: Seconds since 1970 UTC, as all times here.
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
    #: Round of the fair queue in which it is built.
    sa.Column("turn", sa.BigInteger, nullable=False),
    sa.Column("token", sa.String(32), nullable=False),
    sa.Column("lease_ends_at", sa.Double, nullable=False),
    sa.Column("log_size", sa.Integer, nullable=False),
    #: Job of Procrastinate, where that hands out the builds.
    sa.Column("job_id", sa.BigInteger),
    sa.Index("builds_by_recipe", "recipe_key", "build_id"),
    sa.Index("builds_by_turn", "state", "turn", "build_id"),
    sa.Index("builds_by_age", "enqueued_at"),
)

#: Whatever goes wrong above, the database itself never holds two live builds of one recipe.
sa.Index(
    "builds_one_alive",
    BUILDS.c.recipe_key,
    unique=True,
    sqlite_where=BUILDS.c.state.in_(["queued", "started"]),
    postgresql_where=BUILDS.c.state.in_(["queued", "started"]),
)

#: Which recipe a public name stands for.
BUILD_NAMES = sa.Table(
    "build_names",
    METADATA,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("recipe_key", sa.String(64), nullable=False),
)

#: The live logs, in the pieces they came in; `offset` counts characters.
BUILD_LOGS = sa.Table(
    "build_logs",
    METADATA,
    sa.Column("build_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("offset", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("text", sa.Text, nullable=False),
)

#: One row: the turn the fair queue has reached. Whoever submits or leases locks it first.
BUILD_TURNS = sa.Table(
    "build_turns",
    METADATA,
    sa.Column("only", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("turn", sa.BigInteger, nullable=False),
)
