"""`overhaul sysupgrade`: update this device with an image built for its own packages."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from overhaul.cli.output import json_option, print_json, progress_bars
from overhaul.dialects.asu.device.settings import DEFAULT_PATH, load_sysupgrade_settings

if TYPE_CHECKING:
    from overhaul.dialects.asu.device.upgrading import Checked, Upgrade

#: There is nothing newer; as `overhaul device check` ends.
_NOTHING_TO_DO = 20


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--config", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_PATH,
                         show_default=True, help="The configuration."),
            click.option("--server", default="", help="Address of the build server, instead of the configuration's."),
            click.option("--interface", type=click.Choice(("today", "seed")), default=None,
                         help="`seed` for servers of 2018 and 2019."),
            click.option("--allow-http", is_flag=True, help="Let the server be reached without https."),
            click.option("--device-config", default="", help="The agent's configuration, on a device with slots."),
            click.option("--add", multiple=True, metavar="PACKAGE", help="Have one more package; may be repeated."),
            click.option("--remove", multiple=True, metavar="PACKAGE", help="Do without one; may be repeated."),
            json_option,
        )
    ):  # fmt: skip
        function = option(function)
    return function


@click.group("sysupgrade")
def command() -> None:
    """Update a device with an image built for its own packages.

    \b
    Examples:
      overhaul sysupgrade check                        what is newer, and what would change
      overhaul sysupgrade fetch --add tmux             have it built, fetch and verify it
      overhaul sysupgrade install                      all of that, and install it
      overhaul sysupgrade check --server https://sysupgrade.example.org

    Works with attended-sysupgrade servers of all ages. On OpenWrt the image is handed to `sysupgrade`, on a device
    with two slots it is written into the idle one. Exit codes: 0 done, 20 nothing to do, 3 to 8 a failure by who
    must act.
    """


@command.command()
@_options
def check(add: tuple[str, ...], remove: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Say what is newer and what would change; nothing is built."""
    checked = _open(given).check(add=add, remove=remove)
    _print_changes(checked, as_json=as_json)
    if not checked.changes.is_any:
        raise SystemExit(_NOTHING_TO_DO)


@command.command()
@_options
def fetch(add: tuple[str, ...], remove: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Have the image built, fetch it and verify it; nothing is installed."""
    upgrade = _open(given)
    checked = upgrade.check(add=add, remove=remove)
    _fetch(upgrade, checked, as_json=as_json)


@command.command()
@click.option("--yes", is_flag=True, help="Do not ask before the image is built and installed.")
@click.option("--even-if-current", is_flag=True, help="Build and install though nothing is newer.")
@_options
def install(
    yes: bool, even_if_current: bool, add: tuple[str, ...], remove: tuple[str, ...], as_json: bool, **given: Any
) -> None:
    """Have the image built, fetch, verify and install it."""
    upgrade = _open(given)
    checked = upgrade.check(add=add, remove=remove)
    if not as_json:
        _print_changes(checked, as_json=False)
    if not checked.changes.is_any and not even_if_current:
        if as_json:
            _print_changes(checked, as_json=True)
        raise SystemExit(_NOTHING_TO_DO)
    if not yes:
        click.confirm("Build and install this?", abort=True, err=True)
    fetched = _fetch(upgrade, checked, as_json=False, quiet=as_json)
    with progress_bars(quiet=as_json) as progress:
        said = upgrade.install(fetched, progress=progress)
    if as_json:
        print_json({"installed": True, "sha256": fetched.sha256, "signed": fetched.is_signed, "next": said})
    else:
        click.echo(said)


def _open(given: dict[str, Any]) -> "Upgrade":
    from overhaul.dialects.asu.device.upgrading import open_upgrade

    config = given.pop("config")
    return open_upgrade(load_sysupgrade_settings(config, **given))


def _print_changes(checked: "Checked", *, as_json: bool) -> None:
    from overhaul.dialects.asu.device.changes import described

    if not as_json:
        click.echo("\n".join(described(checked.changes)))
        return
    changes = checked.changes
    print_json(
        {
            "from": changes.from_version,
            "to": changes.to_version,
            "newer": changes.is_newer,
            "upgraded": {name: list(pair) for name, pair in changes.upgraded.items()},
            "added": changes.added,
            "removed": changes.removed,
            "renamed": changes.renamed,
        }
    )


def _fetch(upgrade: "Upgrade", checked: "Checked", *, as_json: bool, quiet: bool = False) -> Any:
    wanted = upgrade.wanted(checked)

    def tell(state: str) -> None:
        if not (as_json or quiet):
            click.echo(f"The build {state}" if state.startswith("waits") else f"The build: {state}", err=True)

    fetched = upgrade.fetch(upgrade.build(wanted, tell=tell), wanted)
    if as_json:
        print_json({"file": str(fetched.path), "sha256": fetched.sha256, "signed": fetched.is_signed})
    elif not quiet:
        vouched = "signed by a trusted key" if fetched.is_signed else "only the connection to the server vouches for it"
        click.echo(f"{fetched.path} is verified: {vouched}.")
    return fetched
