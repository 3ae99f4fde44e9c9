"""The limits of guessing passwords: per account and per address, over all workers, counted before a guess is checked.

An attempt is written down first and struck out when it succeeds, so that guesses sent side by side count as well. Who
is over a limit learns only for how long; whether the account exists does not matter. A limit on an account lets a
stranger lock it for a while: the commands on the server's machine do not ask for it.
"""

import secrets

import sqlalchemy as sa

from overhaul.server.allowance import sender_of
from overhaul.server.database.engine import Database
from overhaul.server.database.tables import LOGIN_ATTEMPTS

WINDOW_S = 15 * 60
PER_ACCOUNT = 5
PER_ADDRESS = 20
#: Rows kept whatever happens; beyond them nobody signs in until the window has passed.
_MOST_ROWS = 20_000
#: Any number that nothing else in the database uses for its own locks.
_POSTGRESQL_LOCK = 7_216_093_312


class Guessing:
    """The attempts of one server; every method blocks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def attempt(self, *, account: str, address: str, now: int) -> tuple[str, int]:
        """Write an attempt down; return its id and 0, or nothing and the seconds to wait when it may not be made."""
        columns = LOGIN_ATTEMPTS.c
        account, sender = account[:64], sender_of(address)[:64]
        recent = columns.at > now - WINDOW_S
        with self._database.writing() as connection:
            if connection.dialect.name == "postgresql":
                # SQLite lets one writer in at a time; here two could count before either has written.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_POSTGRESQL_LOCK)))
            connection.execute(LOGIN_ATTEMPTS.delete().where(columns.at <= now - WINDOW_S))
            for limited, most in (
                (columns.account == account, PER_ACCOUNT),
                (columns.address == sender, PER_ADDRESS),
                (sa.true(), _MOST_ROWS),
            ):
                count, oldest = connection.execute(
                    sa.select(sa.func.count(), sa.func.min(columns.at)).where(recent, limited)
                ).one()
                if count >= most:
                    return "", max(1, oldest + WINDOW_S - now)
            identity = secrets.token_hex(16)
            connection.execute(
                LOGIN_ATTEMPTS.insert().values(attempt_id=identity, at=now, account=account, address=sender)
            )
        return identity, 0

    def succeeded(self, *, account: str) -> None:
        """Forget the attempts at an account whose operator has signed in."""
        with self._database.writing() as connection:
            connection.execute(LOGIN_ATTEMPTS.delete().where(LOGIN_ATTEMPTS.c.account == account))
