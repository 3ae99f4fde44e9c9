"""`overhaul keys`: which keys sign what."""

from pathlib import Path

import click

from overhaul.cli.opening import repository_option
from overhaul.cli.output import json_option, print_json
from overhaul.trust.keys import DEMO_WARNING


@click.group(name="keys")
def command() -> None:
    """List keys and the roles they sign."""


@command.command(name="list")
@repository_option
@json_option
def list_keys(directory: Path, as_json: bool) -> None:
    """List the keys of every role, and which private halves are here.

    \b
    Example:
      overhaul keys list --repository /srv/updates
    """
    from overhaul.publishing.opening import open_repository

    repository = open_repository(directory)
    keyring = repository.keyring
    listing = keyring.listing()
    if as_json:
        print_json({"directory": str(keyring.directory), "demo": keyring.demo, "roles": listing})
        return
    click.echo(f"Keys in {keyring.directory}")
    for role in listing:
        click.echo(f"{role.role}: {role.threshold} of {len(role.keyids)} must sign")
        for keyid in role.keyids:
            click.echo(f"  {keyid[:16]}  {'here' if keyid in role.held else 'not here'}")
    if keyring.demo:
        click.secho(DEMO_WARNING, fg="red", bold=True, err=True)
