"""`overhaul operator`: who may sign in to the dashboard, the desk that carries their changes out, the audit log."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from overhaul.cli.opening import repository_option
from overhaul.cli.output import json_option, print_json
from overhaul.errors import InputError

if TYPE_CHECKING:
    from overhaul.server.database.engine import Database
    from overhaul.server.settings import OperatorAccess

_ROLES = ("viewer", "operator")
_MAX_PASSWORD_BYTES = 4096


@click.group(name="operator")
def command() -> None:
    """Operators of the dashboard: accounts, the desk, the audit log."""


@command.command(name="add")
@click.argument("name")
@click.option("--role", type=click.Choice(_ROLES), default="viewer", show_default=True, help="What they may do.")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking.")
@click.option("--no-password", is_flag=True, help="Only the identity provider can vouch for them.")
@repository_option
@json_option
def add(name: str, role: str, password_stdin: bool, no_password: bool, directory: Path, as_json: bool) -> None:
    """Add an operator; the password is asked for, or read from standard input.

    A viewer sees everything; an operator also promotes, pauses, resumes and recalls.

    \b
    Examples:
      overhaul operator add ada --role operator
      pass show overhaul/ada | overhaul operator add ada --role operator --password-stdin
    """
    from overhaul.server.operators.accounts import Operators, Role

    if no_password and password_stdin:
        raise click.UsageError("Give --password-stdin or --no-password.")
    with _opened(directory) as (database, access):
        password = None if no_password else _password(from_stdin=password_stdin)
        made = Operators(database).add(name, role=Role(role), password=password)
        _write_down(access, act="operator add", subject=name, details=f"as {role}")
    if as_json:
        print_json(made)
    else:
        click.echo(f"{name} may sign in as {role}.")


@command.command(name="list")
@repository_option
@json_option
def list_operators(directory: Path, as_json: bool) -> None:
    """List operators and what they may do."""
    from overhaul.server.operators.accounts import Operators

    with _opened(directory) as (database, _access):
        found = Operators(database).all()
    if as_json:
        print_json(found)
        return
    for each in found:
        changed = datetime.fromtimestamp(each.changed_at, UTC).strftime("%Y-%m-%d")
        click.echo(f"{each.name:24} {each.role.value:10} changed {changed}")
    if not found:
        click.echo("Nobody may sign in yet; add somebody with `overhaul operator add NAME --role operator`.")


@command.command(name="password")
@click.argument("name")
@click.option("--password-stdin", is_flag=True, help="Read the password from standard input instead of asking.")
@repository_option
def password(name: str, password_stdin: bool, directory: Path) -> None:
    """Give an operator another password; their sessions end."""
    from overhaul.server.operators.accounts import Operators

    with _opened(directory) as (database, access):
        operators = Operators(database)
        operators.get(name)
        operators.set_password(name, _password(from_stdin=password_stdin))
        _write_down(access, act="operator password", subject=name)
    click.echo(f"The password of {name} is changed; {name} has to sign in again.")


@command.command(name="role")
@click.argument("name")
@click.argument("role", type=click.Choice(_ROLES))
@repository_option
def role(name: str, role: str, directory: Path) -> None:
    """Give an operator another role; their sessions end."""
    from overhaul.server.operators.accounts import Operators, Role

    with _opened(directory) as (database, access):
        Operators(database).set_role(name, Role(role))
        _write_down(access, act="operator role", subject=name, details=f"now {role}")
    click.echo(f"{name} is {role} now.")


@command.command(name="remove")
@click.argument("name")
@repository_option
def remove(name: str, directory: Path) -> None:
    """Remove an operator; their sessions end at once."""
    from overhaul.server.operators.accounts import Operators

    with _opened(directory) as (database, access):
        Operators(database).remove(name)
        _write_down(access, act="operator remove", subject=name)
    click.echo(f"{name} may not sign in any more.")


@command.command(name="audit")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True, help="Newest lines shown.")
@click.option("--holds", metavar="DIGEST", help="Digest of a line, kept elsewhere, that must still be there.")
@repository_option
@json_option
def audit(limit: int, holds: str | None, directory: Path, as_json: bool) -> None:
    """Show who did what, after checking that no line was changed.

    The digest of the last line is printed: kept elsewhere and given with --holds, it shows whether lines were cut off.
    """
    from overhaul.server.operators.audit import AuditLog

    log = AuditLog(_access(directory).audit)
    lines, digest = log.verify(holds=holds)
    records = log.recent(limit=limit)
    if as_json:
        print_json({"lines": lines, "digest": digest, "records": records})
        return
    for record in reversed(records):
        moment = datetime.fromtimestamp(record.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        told = " · ".join(filter(None, (record.act, record.subject, record.details, record.result)))
        click.echo(f"{moment}  {record.operator or '-'} ({record.address})  {told}")
    click.echo(f"{lines} lines, chained and unchanged; the last has the digest {digest}")


@command.command(name="desk")
@repository_option
def desk(directory: Path) -> None:
    """Carry out what operators decide on the dashboard. Runs where the policy key is, and never faces the network.

    \b
    Example:
      overhaul operator desk --repository /srv/updates

    It needs the policy, snapshot and timestamp keys and may write the repository; `overhaul serve` needs neither.
    SIGTERM and Ctrl-C stop it; an act under way is finished first.
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.server.operators.audit import AuditLog
    from overhaul.server.operators.desk import Desk
    from overhaul.server.operators.sessions import Sessions

    open_repository(directory).keyring.listing()
    with _opened(directory) as (database, access):
        sessions = Sessions(database, idle_s=access.idle_s, longest_s=access.longest_s)
        made = Desk(lambda: open_repository(directory), sessions=sessions, audit=AuditLog(access.audit))
        answering = made.answering(access.desk)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: _once(answering.stop))
        click.echo(f"The desk answers at {access.desk}")
        answering.run()


def _once(stop: Callable[[], None]) -> None:
    with contextlib.suppress(OSError):  # a second signal finds it stopped
        stop()


def _access(directory: Path) -> "OperatorAccess":
    from overhaul.publishing.settings import SETTINGS_FILE, read_settings
    from overhaul.server.settings import operator_access

    return operator_access(read_settings(directory / SETTINGS_FILE), directory.absolute())


@contextmanager
def _opened(directory: Path) -> Iterator[tuple["Database", "OperatorAccess"]]:
    from overhaul.server.database.engine import Database
    from overhaul.server.database.migrating import upgrade
    from overhaul.server.settings import ServerSettings

    database = Database(ServerSettings.of_repository(directory).database_url)
    try:
        upgrade(database)
        yield database, _access(directory)
    finally:
        database.close()


def _write_down(access: "OperatorAccess", *, act: str, subject: str, details: str = "") -> None:
    import getpass
    import time

    from overhaul.server.operators.audit import AuditLog

    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        who = str(os.getuid())
    log = AuditLog(access.audit)
    log.append(at=time.time(), operator=who, address="local", act=act, subject=subject, details=details)


def _password(*, from_stdin: bool) -> str:
    """Return a password that was never an argument of a process."""
    if from_stdin:
        given = sys.stdin.buffer.read(_MAX_PASSWORD_BYTES + 1)
        if len(given) > _MAX_PASSWORD_BYTES:
            raise InputError(f"Standard input holds more than {_MAX_PASSWORD_BYTES} bytes; that is no password.")
        try:
            return given.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise InputError("The password on standard input is not UTF-8 text.") from error
    if not sys.stdin.isatty():
        raise InputError("There is no terminal to ask for the password on; give it with --password-stdin.")
    asked: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    return asked
