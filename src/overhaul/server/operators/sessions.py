"""Sessions: who is signed in, kept in the database so that every worker knows and each can be ended.

The cookie holds 256 random bits and the database their SHA-256. The token of a form is derived from the cookie's bits,
so it needs no place of its own and is worth nothing without the session.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from overhaul.server.database.engine import Database
from overhaul.server.database.tables import OPERATOR_SESSIONS, OPERATORS
from overhaul.server.operators.accounts import Role

#: A session that is used is written at most this often.
_TOUCH_EVERY_S = 60
#: Sessions one operator may have; the oldest ends when another begins.
MAX_SESSIONS = 16


@dataclass(frozen=True, kw_only=True)
class Session:
    """One operator, signed in."""

    operator: str
    role: Role
    #: What a form of this session must carry.
    form_token: str


class Sessions:
    """The sessions of one server; every method blocks, and takes the time as seconds since 1970 UTC."""

    def __init__(self, database: Database, *, idle_s: int, longest_s: int) -> None:
        self._database = database
        self._idle_s = idle_s
        self._longest_s = longest_s

    def begin(self, operator: str, *, now: int) -> str:
        """Begin a session; return what the cookie holds."""
        token = secrets.token_urlsafe(32)
        columns = OPERATOR_SESSIONS.c
        mine = columns.operator == operator
        surplus = sa.select(columns.token_sha256).where(mine).order_by(columns.began_at.desc()).offset(MAX_SESSIONS - 1)
        row = {"token_sha256": _digest(token), "operator": operator, "began_at": now, "seen_at": now}
        with self._database.writing() as connection:
            connection.execute(OPERATOR_SESSIONS.delete().where(self._has_ended(now)))
            oldest = [row[0] for row in connection.execute(surplus)]
            connection.execute(OPERATOR_SESSIONS.delete().where(columns.token_sha256.in_(oldest)))
            connection.execute(OPERATOR_SESSIONS.insert().values(row))
        return token

    def find(self, token: str, *, now: int) -> Session | None:
        """Return the session of a cookie, or None when it has ended or never was; using it keeps it from idling."""
        columns = OPERATOR_SESSIONS.c
        digest = _digest(token)
        query = (
            sa.select(columns.operator, columns.seen_at, OPERATORS.c.role)
            .join(OPERATORS, OPERATORS.c.name == columns.operator)
            .where(columns.token_sha256 == digest, ~self._has_ended(now))
        )
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        if row is None:
            return None
        if now - row.seen_at >= _TOUCH_EVERY_S:
            with self._database.writing() as connection:
                connection.execute(OPERATOR_SESSIONS.update().where(columns.token_sha256 == digest).values(seen_at=now))
        return Session(operator=row.operator, role=Role(row.role), form_token=form_token(token))

    def end(self, token: str) -> None:
        """End the session of a cookie."""
        with self._database.writing() as connection:
            connection.execute(OPERATOR_SESSIONS.delete().where(OPERATOR_SESSIONS.c.token_sha256 == _digest(token)))

    def _has_ended(self, now: int) -> sa.ColumnElement[bool]:
        columns = OPERATOR_SESSIONS.c
        return sa.or_(
            columns.seen_at <= now - self._idle_s,
            columns.began_at <= now - self._longest_s,
            # A clock that was set back must not make sessions last longer.
            columns.began_at > now + self._longest_s,
        )


def form_token(cookie: str) -> str:
    """Return what a form must carry when it is sent with `cookie`."""
    return hmac.new(cookie.encode(), b"overhaul form 1", hashlib.sha256).hexdigest()


def form_token_matches(given: str, cookie: str) -> bool:
    """Tell whether a form belongs to `cookie`, in constant time."""
    return hmac.compare_digest(given.encode(), form_token(cookie).encode())


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
