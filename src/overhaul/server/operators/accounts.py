"""Operators in the server's database: their names, roles and passwords; every method blocks.

A change of password or role, and the removal of an operator, end that operator's sessions in the same transaction.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import sqlalchemy as sa

from overhaul.errors import InputError
from overhaul.release.names import check_name
from overhaul.server.database.engine import Database
from overhaul.server.database.tables import OPERATOR_SESSIONS, OPERATORS
from overhaul.server.operators.passwords import check_password, hash_password, password_matches


class Role(StrEnum):
    """What an operator may do."""

    #: Look at everything, change nothing.
    VIEWER = "viewer"
    #: Also change what channels offer.
    OPERATOR = "operator"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One person."""

    name: str
    role: Role
    #: False for those whom an identity provider vouches for.
    has_password: bool
    #: Seconds since 1970 UTC of the last change of role or password.
    changed_at: int


class UnknownOperatorError(InputError):
    """An operator who is not there."""

    http_status = 404

    def __init__(self, *, name: str) -> None:
        self.name = name
        super().__init__(f"There is no operator {name!r}; `overhaul operator list` shows them.")


class DuplicateOperatorError(InputError):
    """An operator who is there already."""

    http_status = 409

    def __init__(self, *, name: str) -> None:
        self.name = name
        super().__init__(f"There is an operator {name!r} already; change the password, or remove the operator first.")


class Operators:
    """The operators of one server."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add(self, name: str, *, role: Role, password: str | None) -> Operator:
        """Add an operator; without a password only an identity provider can vouch for them.

        Raises:
            UnusableNameError, WeakPasswordError, DuplicateOperatorError: It cannot be done.
        """
        check_name("operator", name)
        if password is not None:
            check_password(password, name=name)
        kept = None if password is None else hash_password(password)
        row = {"name": name, "role": role.value, "password_hash": kept, "changed_at": int(self._clock())}
        with self._database.writing() as connection:
            if connection.execute(sa.select(OPERATORS.c.name).where(OPERATORS.c.name == name)).first():
                raise DuplicateOperatorError(name=name)
            connection.execute(OPERATORS.insert().values(row))
        return self.get(name)

    def get(self, name: str) -> Operator:
        """Return an operator; raise `UnknownOperatorError` when there is none."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(OPERATORS).where(OPERATORS.c.name == name)).mappings().first()
        if row is None:
            raise UnknownOperatorError(name=name)
        return _operator(row)

    def all(self) -> tuple[Operator, ...]:
        """Return every operator, by name."""
        with self._database.reading() as connection:
            rows = connection.execute(sa.select(OPERATORS).order_by(OPERATORS.c.name)).mappings().all()
        return tuple(map(_operator, rows))

    def set_password(self, name: str, password: str) -> None:
        """Give an operator another password."""
        check_password(password, name=name)
        self._change(name, {"password_hash": hash_password(password)})

    def set_role(self, name: str, role: Role) -> None:
        """Give an operator another role."""
        self._change(name, {"role": role.value})

    def remove(self, name: str) -> None:
        """Remove an operator."""
        with self._database.writing() as connection:
            removed = connection.execute(OPERATORS.delete().where(OPERATORS.c.name == name)).rowcount
            connection.execute(OPERATOR_SESSIONS.delete().where(OPERATOR_SESSIONS.c.operator == name))
        if removed == 0:
            raise UnknownOperatorError(name=name)

    def check(self, name: str, password: str) -> Operator | None:
        """Return the operator when the password is theirs, else None; both take as long."""
        query = sa.select(OPERATORS).where(OPERATORS.c.name == name)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        matches = password_matches(password, None if row is None else row["password_hash"])
        return _operator(row) if matches and row is not None else None

    def _change(self, name: str, values: dict[str, object]) -> None:
        changed = OPERATORS.update().where(OPERATORS.c.name == name).values(**values, changed_at=int(self._clock()))
        with self._database.writing() as connection:
            if connection.execute(changed).rowcount == 0:
                raise UnknownOperatorError(name=name)
            connection.execute(OPERATOR_SESSIONS.delete().where(OPERATOR_SESSIONS.c.operator == name))


def _operator(row: sa.RowMapping) -> Operator:
    return Operator(
        name=row["name"],
        role=Role(row["role"]),
        has_password=row["password_hash"] is not None,
        changed_at=row["changed_at"],
    )
