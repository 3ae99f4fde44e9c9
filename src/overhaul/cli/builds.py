"""`overhaul builds`: workers, the signer, the queue and what is stored."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from overhaul.cli.output import human_bytes, json_option, print_json

if TYPE_CHECKING:
    from overhaul.builds.database import Connections
    from overhaul.builds.leasing import LeaseQueue
    from overhaul.builds.opening import Works
    from overhaul.builds.records import BuildRecord
    from overhaul.server.database.engine import Database

_settings_option: Callable[[Any], Any] = click.option(
    "--settings",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="OVERHAUL_BUILDS",
    default="builds.toml",
    show_default=True,
    help="Settings of images on demand (also $OVERHAUL_BUILDS).",
)


@click.group("builds")
def command() -> None:
    """Images on demand: workers, the signer, the queue and what is stored."""


@command.command("worker")
@_settings_option
@click.option("--once", is_flag=True, help="Build what waits and end.")
def worker(path: Path, once: bool) -> None:
    """Build what is asked for, one image at a time; run several for more.

    \b
    Examples:
      overhaul builds worker --settings /etc/overhaul/builds.toml
      overhaul builds worker --once

    SIGTERM and Ctrl-C stop it; the build under way goes back to the queue.
    """
    from overhaul.builds import cgroups
    from overhaul.builds.sandbox import check_sandbox

    cgroups.settle()
    check_sandbox()
    works = _works(path)
    with _database(works) as database:
        made = works.worker(database)
        if once:
            while made.run_one():
                pass
            return
        made.run(_stopped_by_signals())


@command.command("signer")
@_settings_option
def signer(path: Path) -> None:
    """Sign what workers build, after checking it. Runs where the key is and no build ever runs."""
    works = _works(path)
    with _database(works) as database:
        run_signer(works, database)


@command.command("collect")
@_settings_option
@json_option
def collect(path: Path, as_json: bool) -> None:
    """Remove images past their time, old logs and leftovers. A timer runs it every hour."""
    from overhaul.builds.retention import collect_garbage

    works = _works(path)
    with _database(works) as database:
        imagebuilders = works.imagebuilders() if works.settings.openwrt.enabled else None
        done = collect_garbage(
            works.queue(database),
            works.store(),
            now=time.time(),
            retention=works.retention,
            imagebuilders=imagebuilders,
        )
    if as_json:
        print_json(done)
        return
    click.echo(
        f"{done.artefacts} images ({human_bytes(done.freed_bytes)}), {done.logs} logs, {done.leftovers} leftovers and "
        f"{done.imagebuilders} ImageBuilders removed"
    )


@command.group("queue")
def queue() -> None:
    """Look at builds and cancel them."""


@queue.command("list")
@_settings_option
@click.option("--state", "states", multiple=True, help="Only builds in this state; may be repeated.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@json_option
def list_builds(path: Path, states: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List builds, the newest first."""
    with _queue(path) as opened:
        found = opened.recent(limit=limit, states=states)
    if as_json:
        print_json([_summary(build) for build in found])
        return
    for build in found:
        recipe = build.recipe
        when = datetime.fromtimestamp(build.enqueued_at, UTC).strftime("%Y-%m-%d %H:%M:%S")
        words = f"{recipe.distribution} {recipe.version} {recipe.target} {recipe.profile}"
        click.echo(f"{build.build_id:>7}  {when}  {build.state:<9}  {words}")


@queue.command("show")
@_settings_option
@click.argument("build_id", type=click.IntRange(1))
@click.option("--log", "with_log", is_flag=True, help="Print the log too.")
@json_option
def show(path: Path, build_id: int, with_log: bool, as_json: bool) -> None:
    """Show one build."""
    with _queue(path) as opened:
        build = opened.find(build_id)
        summary = {**_summary(build), "position": opened.position(build_id)}
        log = opened.read_log(build_id).text if with_log else ""
    if as_json:
        print_json({**summary, "log": log})
        return
    for name, value in summary.items():
        click.echo(f"{name}: {value}")
    if log:
        click.echo(log)


@queue.command("cancel")
@_settings_option
@click.argument("build_id", type=click.IntRange(1))
def cancel(path: Path, build_id: int) -> None:
    """Cancel a build; a running one stops within seconds."""
    with _queue(path) as opened:
        click.echo(f"build {build_id}: {opened.cancel(build_id).state}")


def run_signer(works: "Works", database: "Connections") -> None:
    """Sign until SIGTERM or Ctrl-C; `works` says with which key and where Debian images are published."""
    from overhaul.builds.signer_process import SignerServer
    from overhaul.publishing.on_demand import image_publisher, statement_recorder
    from overhaul.publishing.opening import open_repository

    table = works.settings.signer
    publish = record = None
    if table.repository:
        repository = open_repository(works.base / table.repository)
        publish = image_publisher(repository, channel=table.channel)
        record = statement_recorder(repository)
    key_signer = works.signer(database, publish=publish, record_statement=record)
    server = SignerServer(works.socket, key_signer, note=lambda text: click.echo(text, err=True))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    click.echo(f"signing with key {key_signer.key.public.key_id} at {works.socket}", err=True)
    server.run()


def _works(path: Path) -> "Works":
    from overhaul.builds.opening import Works
    from overhaul.builds.settings import load_settings

    return Works(settings=load_settings(path), base=path.absolute().parent)


@contextmanager
def _database(works: "Works") -> Iterator["Database"]:
    from overhaul.server.database.engine import Database

    database = Database(works.database_url())
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _queue(path: Path) -> Iterator["LeaseQueue"]:
    works = _works(path)
    with _database(works) as database:
        yield works.queue(database)


def _stopped_by_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _summary(build: "BuildRecord") -> dict[str, object]:
    recipe = build.recipe
    return {
        "build_id": build.build_id,
        "name": build.name,
        "state": build.state.value,
        "phase": build.phase.value,
        "builder": recipe.builder,
        "distribution": recipe.distribution,
        "version": recipe.version,
        "target": recipe.target,
        "profile": recipe.profile,
        "packages": list(recipe.packages),
        "client": build.client,
        "requests": build.requests,
        "attempts": build.attempts,
        "worker": build.worker,
        "enqueued_at": build.enqueued_at,
        "started_at": build.started_at,
        "finished_at": build.finished_at,
        "failure": None if build.failure is None else build.failure.detail,
    }
