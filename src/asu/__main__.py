"""The old verbs: `python -m asu initdb`, `loaddb`, `resetdb`, `run-worker`."""

import signal
import threading
from pathlib import Path

import click

from asu.configuration import Configuration, configuration_path, load_configuration
from asu.entry import open_configured
from overhaul.builds.database import downgrade, upgrade
from overhaul.errors import NetworkError
from overhaul.server.database.engine import Database


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), default=None, help="Instead of /etc/asu/config.yml.")
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:
    """Run the old verbs of the attended-sysupgrade server; `overhaul serve` and `overhaul builds` do the same."""
    context.obj = load_configuration(config or configuration_path())


@cli.command()
@click.pass_obj
def initdb(configuration: Configuration) -> None:
    """Make the database's tables, or bring them to the newest shape."""
    database = Database(configuration.works.database_url())
    upgrade(database)
    database.close()
    click.echo(f"{database.name} is ready.")


@cli.command()
@click.pass_obj
def loaddb(configuration: Configuration) -> None:
    """Fetch distributions, versions, targets, devices and packages from upstream."""
    database = Database(configuration.works.database_url())
    server = open_configured(configuration, database)
    result = server.updater(base=configuration.path.absolute().parent).update()
    database.close()
    for problem in result.problems:
        click.echo(problem, err=True)
    click.echo(f"{result.asked} files asked about, {result.changed} new, {result.problems_total} problems.")
    server.parts.catalogue.look()
    if not server.parts.catalogue.now().systems:
        raise SystemExit(NetworkError.exit_code)


@cli.command()
@click.confirmation_option(prompt="Remove all records of builds?")
@click.pass_obj
def resetdb(configuration: Configuration) -> None:
    """Remove all records of builds and make the tables anew."""
    database = Database(configuration.works.database_url())
    upgrade(database)
    downgrade(database)
    upgrade(database)
    database.close()
    click.echo(f"{database.name} is empty.")


@cli.command("run-worker")
@click.pass_obj
def run_worker(configuration: Configuration) -> None:
    """Build what is asked for, and keep the catalogue up to date."""
    from overhaul.builds.sandbox import check_sandbox

    check_sandbox()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    database = Database(configuration.works.database_url())
    updater = open_configured(configuration, database).updater(base=configuration.path.absolute().parent)
    following = threading.Thread(target=updater.run, args=(stop,), name="catalogue", daemon=True)
    following.start()
    try:
        configuration.works.worker(database).run(stop)
    finally:
        stop.set()
        following.join()
        database.close()


if __name__ == "__main__":
    from overhaul.cli.output import run

    run(cli)
