"""`overhaul policy`: how rollouts fare, and what a policy would do before it is signed."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from overhaul.cli.opening import release_text, repository_option
from overhaul.cli.output import HALTED_EXIT_CODE, json_option, print_json
from overhaul.cli.simulating import export_command, simulate_command
from overhaul.errors import BusyError
from overhaul.host.signals import handling
from overhaul.publishing.opening import Repository, open_repository
from overhaul.publishing.rollouts import (
    AskForEvidence,
    Looked,
    evaluate_rollouts,
    steer_rollouts,
)


@click.group(name="policy")
def command() -> None:
    """Look after rollouts, and try policies before they are signed."""


command.add_command(simulate_command)
command.add_command(export_command)


@command.command(name="evaluate")
@repository_option
@json_option
@click.pass_context
def evaluate_command(context: click.Context, directory: Path, as_json: bool) -> None:
    """Say how every rollout fares and what `watch` would do; changes nothing and needs no key.

    A rollout is looked after when its product has a table [products.NAME.rollout] in overhaul.toml. Ends with status
    22 when a rollout is halted, or would be.

    \b
    Examples:
      overhaul policy evaluate
      overhaul policy evaluate --json || page-somebody
    """
    repository = open_repository(directory)
    with _evidence(directory) as ask:
        looked = evaluate_rollouts(repository, ask)
    _show(looked, as_json=as_json)
    context.exit(_exit_code(looked))


@command.command(name="watch")
@click.option("--once", is_flag=True, help="Make one pass and end, for a timer.")
@click.option(
    "--every",
    "pause_s",
    type=click.FloatRange(min=1),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two passes.",
)
@repository_option
@json_option
@click.pass_context
def watch_command(context: click.Context, once: bool, pause_s: float, directory: Path, as_json: bool) -> None:
    """Bring every rollout on while its release is healthy, and halt those that harm devices.

    Each pass signs what changes with the policy key, which must be here; where that key is kept offline, run
    `evaluate` here and sign by hand. A halted release is offered to nobody any more; open it again with
    `overhaul channel rollout`, or recall it. Ends with status 22 when a rollout is halted; without --once it ends
    only when told to.

    \b
    Examples:
      overhaul policy watch --once
      overhaul policy watch --every 600
    """
    stopped = threading.Event()
    with _evidence(directory) as ask, handling((signal.SIGTERM, signal.SIGINT), lambda *_: stopped.set()):
        while True:
            looked = _pass(open_repository(directory), ask, retry=not once)
            _show(looked, as_json=as_json, only_signed=not once)
            if once or stopped.wait(pause_s):
                context.exit(_exit_code(looked))


def _pass(repository: Repository, ask: AskForEvidence, *, retry: bool) -> tuple[Looked, ...]:
    try:
        return steer_rollouts(repository, ask)
    except BusyError:
        # A publish holds the lock; the next pass finds the same evidence.
        if not retry:
            raise
        return ()


@contextmanager
def _evidence(directory: Path) -> Iterator[AskForEvidence]:
    from overhaul.server.database.engine import Database
    from overhaul.server.database.migrating import upgrade
    from overhaul.server.settings import ServerSettings
    from overhaul.server.update_health import evidence_of

    database = Database(ServerSettings.of_repository(directory).database_url)

    try:
        upgrade(database)
        yield partial(evidence_of, database)
    finally:
        database.close()


def _exit_code(looked: Sequence[Looked]) -> int:
    return HALTED_EXIT_CODE if any(one.is_halted for one in looked) else 0


def _show(looked: Sequence[Looked], *, as_json: bool, only_signed: bool = False) -> None:
    shown = [one for one in looked if one.signed or not only_signed]
    if as_json:
        if shown or not only_signed:
            print_json({"rollouts": shown})
        return
    for one in shown:
        mark = "signed: " if one.signed else ""
        click.echo(f"{release_text(one.release)} in {one.channel}, {one.step.health}: {mark}{one.step.text}")
    if not looked and not only_signed:
        click.echo("No rollout is looked after; see [products.NAME.rollout] in the reference of policies.")
