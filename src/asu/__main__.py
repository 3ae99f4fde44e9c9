"""The old verbs: `python -m asu initdb`, `loaddb`, `resetdb`, `run-worker`, `build-all`, `build-worker`."""

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from asu.configuration import Configuration, configuration_path, load_configuration
from asu.entry import open_configured
from asu.filling import WORKER_PACKAGES, a_worker, every_device, submit
from overhaul.builds.database import downgrade, upgrade
from overhaul.builds.opening import Works
from overhaul.builds.retention import collect_garbage
from overhaul.builds.worker import Worker
from overhaul.dialects.asu.catalogue import Catalogue
from overhaul.dialects.asu.refusals import RefusedRequestError
from overhaul.dialects.asu.seed_request import SeedRequest
from overhaul.errors import InputError, NetworkError, OverhaulError
from overhaul.server.database.engine import Database

_COLLECT_EVERY_S = 3600.0


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path), default=None, help="Instead of /etc/asu/config.yml.")
@click.pass_context
def cli(context: click.Context, config: Path | None) -> None:
    """Run the old verbs of the attended-sysupgrade server; `overhaul serve` and `overhaul builds` do the same."""
    context.obj = config or configuration_path()


def _configured(function: Callable[..., None]) -> Callable[..., None]:
    """Give a verb the configuration, read when the verb is really run and not only asked for its help."""

    def configured(context: click.Context, /, **given: object) -> None:
        function(load_configuration(context.find_object(Path) or configuration_path()), **given)

    return functools.update_wrapper(click.pass_context(configured), function)


@cli.command()
@_configured
def initdb(configuration: Configuration) -> None:
    """Make the database's tables, or bring them to the newest shape."""
    database = Database(configuration.works.database_url())
    upgrade(database)
    database.close()
    click.echo(f"{database.name} is ready.")


@cli.command()
@_configured
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
@_configured
def resetdb(configuration: Configuration) -> None:
    """Remove all records of builds and make the tables anew."""
    database = Database(configuration.works.database_url())
    upgrade(database)
    downgrade(database)
    upgrade(database)
    database.close()
    click.echo(f"{database.name} is empty.")


@cli.command("run-worker")
@_configured
def run_worker(configuration: Configuration) -> None:
    """Build what is asked for, remove what has had its time, and keep the catalogue up to date."""
    from overhaul.builds import cgroups
    from overhaul.builds.sandbox import check_sandbox

    cgroups.settle()
    check_sandbox()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    database = Database(configuration.works.database_url())
    updater = open_configured(configuration, database).updater(base=configuration.path.absolute().parent)
    worker = configuration.works.worker(database)
    beside = [
        threading.Thread(target=updater.run, args=(stop,), name="catalogue", daemon=True),
        threading.Thread(target=_collect, args=(configuration.works, worker, stop), name="collector", daemon=True),
    ]
    for thread in beside:
        thread.start()
    try:
        worker.run(stop)
    finally:
        stop.set()
        for thread in beside:
            thread.join()
        database.close()


@cli.command("run-signer")
@_configured
def run_signer(configuration: Configuration) -> None:
    """Check and sign what workers build; runs where the key is and no build ever runs."""
    from overhaul.cli.builds import run_signer as run

    database = Database(configuration.works.database_url())
    try:
        run(configuration.works, database)
    finally:
        database.close()


@cli.command("build-all")
@_configured
def build_all(configuration: Configuration) -> None:
    """Have the latest version built for every device, without further packages."""
    _fill(configuration, every_device)


@cli.command("build-worker")
@click.option("--package", "packages", multiple=True, help="Instead of the usual ones; may be repeated.")
@_configured
def build_worker(configuration: Configuration, packages: tuple[str, ...]) -> None:
    """Have an x86/64 image built that holds everything a worker needs."""
    _fill(configuration, lambda catalogue: [a_worker(catalogue, packages or WORKER_PACKAGES)])


def _fill(configuration: Configuration, requests: Callable[[Catalogue], Iterable[SeedRequest]]) -> None:
    database = Database(configuration.works.database_url())
    try:
        parts = open_configured(configuration, database).parts
        catalogue, begun, known, refused = parts.catalogue.now(), 0, 0, 0
        for request in requests(catalogue):
            try:
                is_new = submit(request, catalogue, parts.queue, wait=time.sleep)
            except RefusedRequestError as error:
                click.echo(f"{request.target} {request.board}: {error}", err=True)
                refused += 1
                continue
            begun, known = begun + is_new, known + (not is_new)
    finally:
        database.close()
    click.echo(f"{begun} builds queued, {known} were there already, {refused} refused.")
    if not begun + known:
        raise SystemExit(InputError.exit_code)


def _collect(works: Works, worker: Worker, stop: threading.Event) -> None:
    """Remove what has had its time, now and then until `stop` is set."""
    while not stop.is_set():
        try:
            imagebuilders = works.imagebuilders() if works.settings.openwrt.enabled else None
            collect_garbage(
                worker.queue,
                worker.store,
                now=time.time(),
                retention=works.retention,
                imagebuilders=imagebuilders,
            )
        except (OverhaulError, OSError) as error:
            click.echo(f"Nothing was removed: {error}", err=True)
        stop.wait(_COLLECT_EVERY_S)


if __name__ == "__main__":
    from overhaul.cli.output import run

    run(cli)
