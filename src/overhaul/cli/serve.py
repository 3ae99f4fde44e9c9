"""`overhaul serve`: the embedded server for one repository."""

import contextlib
import os
from pathlib import Path

import click

from overhaul.cli.opening import repository_option
from overhaul.cli.output import json_option, print_json


@click.command("serve")
@repository_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option("--port", type=click.IntRange(0, 65535), default=8780, show_default=True, help="0 takes any free port.")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes that answer.")
@click.option(
    "--log-level",
    type=click.Choice(("debug", "info", "warning", "error")),
    default="warning",
    show_default=True,
    help="At `info` every request is one line on standard error.",
)
@json_option
def command(directory: Path, host: str, port: int, workers: int, log_level: str, as_json: bool) -> None:
    """Serve a repository: static tree, JSON interface, device reports and status page.

    Queries of atomupd devices are answered too. With a table [asu], images are built on demand: a signer and as many
    workers as `build_workers` says run beside the server.

    \b
    Examples:
      overhaul serve --repository /srv/updates
      overhaul serve --repository /srv/updates --host 0.0.0.0 --port 8780 --workers 2
      overhaul serve --port 0 --json          prints the address it took

    Ctrl-C or SIGTERM stops it; answers under way may end first. Under systemd it reports when it is ready and
    takes the socket of a socket unit.
    """
    from overhaul.host.listening import listen
    from overhaul.server import process, systemd
    from overhaul.server.companions import companions, desk_beside
    from overhaul.server.database.engine import Database
    from overhaul.server.database.migrating import upgrade
    from overhaul.server.settings import ServerSettings

    settings = ServerSettings.of_repository(directory)
    database = Database(settings.database_url)
    upgrade(database)
    database.close()
    listening = systemd.handed_over_socket(os.environ, process_id=os.getpid()) or listen(host, port)

    def ready() -> None:
        url = process.url_of(listening)
        if as_json:
            print_json({"url": url, "process_id": os.getpid()})
        else:
            click.echo(f"Serving {directory.absolute()} at {url}")
        systemd.notify(os.environ, f"READY=1\nSTATUS=Serving {directory.absolute()} at {url}")

    with contextlib.ExitStack() as beside:
        if settings.images_on_demand is not None:
            beside.enter_context(companions(settings.images_on_demand))
        if settings.operators is not None and settings.operators.run_desk:
            beside.enter_context(desk_beside(settings.operators.directory))
        process.run_server(settings, listening=listening, workers=workers, log_level=log_level, on_ready=ready)
    systemd.notify(os.environ, "STOPPING=1")
    if not as_json:
        click.echo("Stopped.")
