"""`overhaul atomupd`: look at SteamOS image pools, and write their static tree."""

import os
import sys
from pathlib import Path

import click

from overhaul.cli.output import json_option, print_json
from overhaul.errors import OperatorError

_configuration = click.argument("configuration", type=click.Path(path_type=Path, dir_okay=False))


class PoolProblemsError(OperatorError):
    """A pool in which images are left out."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(f"{count} images are left out; mend what is named above and check again.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """SteamOS image pools: check them, write their static tree, answer queries."""


@command.command()
@_configuration
@json_option
def check(configuration: Path, as_json: bool) -> None:
    """Say which images of a pool count, and what is wrong with the others.

    CONFIGURATION is the servers' INI file.
    """
    from overhaul.dialects.atomupd.catalogue import make_catalogue
    from overhaul.dialects.atomupd.pool import PoolScanner
    from overhaul.dialects.atomupd.server_configuration import read_server_configuration

    settings = read_server_configuration(configuration)
    found = PoolScanner(settings.pool, branches=settings.support.has_branches).scan()
    catalogue = make_catalogue(found, settings.support)
    if as_json:
        lists = {"/".join(part for part in key if part): len(entries) for key, entries in catalogue.lists.items()}
        print_json({"images": lists, "problems": catalogue.problems, "warnings": catalogue.warnings})
    else:
        for key, entries in sorted(catalogue.lists.items()):
            newest = max(entries, key=lambda entry: entry.image.build_id).image
            name = "/".join(part for part in key if part)
            click.echo(f"{name}: {len(entries)} images, the latest build is {newest.version} {newest.build_id}")
        for sentence in catalogue.problems:
            click.echo(f"left out: {sentence}", err=True)
        for sentence in catalogue.warnings:
            click.echo(f"warning: {sentence}", err=True)
    if catalogue.problems:
        raise PoolProblemsError(len(catalogue.problems))


@command.command()
@_configuration
@click.option("--into", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where the tree goes.")
@click.option("--run-daemon", is_flag=True, help="Write it again whenever `updated.txt` in the pool changes.")
@click.option("--verbose", is_flag=True, help="Say what is written.")
def static(configuration: Path, into: Path, run_daemon: bool, verbose: bool) -> None:
    """Write the answers for all images of a pool as JSON files; as `steamos-atomupd-staticserver` does.

    CONFIGURATION is the servers' INI file; its relative paths are taken from the directory of the tree.
    """
    from overhaul.dialects.atomupd.static_cli import main

    absolute = configuration.absolute()
    into.mkdir(parents=True, exist_ok=True)
    os.chdir(into)
    options = [*(["--run-daemon"] if run_daemon else []), *(["--verbose"] if verbose else [])]
    sys.exit(main(["--config", str(absolute), *options]))


@command.command()
@_configuration
@click.option("--debug", is_flag=True, help="Say everything.")
def serve(configuration: Path, debug: bool) -> None:
    """Answer update queries out of a pool; as `steamos-atomupd-server` does.

    CONFIGURATION is the servers' INI file.
    """
    from overhaul.dialects.atomupd.server_cli import main

    sys.exit(main(["--config", str(configuration), *(["--debug"] if debug else [])]))
