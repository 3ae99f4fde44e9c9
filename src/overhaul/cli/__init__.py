"""The command line: one module for each command group; only parsing and printing.

Groups are loaded when they are called, so that a device never imports what only a server needs.
"""

import importlib

import click

import overhaul

#: Command name -> (module below overhaul.cli, one-line help shown without loading it).
_COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("init", "Create a repository: keys, first signed metadata, configuration."),
    "publish": ("publish", "Publish an image, tree or tar as a release."),
    "release": ("release", "List, show, promote and recall releases."),
    "channel": ("channel", "List channels; set rollouts, hardware rules and floors."),
    "repository": ("repository", "Verify, refresh, prune and measure a repository."),
    "keys": ("keys", "List keys and the roles they sign."),
    "policy": ("policy", "Look after rollouts; try policies before they are signed."),
    "explain": ("explain", "Say why a device gets the answer it gets."),
    "serve": ("serve", "Serve a repository: static tree, API and status page."),
    "operator": ("operator", "Operators of the dashboard: accounts, desk, audit log."),
    "atomupd": ("atomupd", "SteamOS image pools: check them, write their static tree."),
    "swupd": ("swupd", "swupd versions: extract root file systems, process, check, prune."),
    "ostree": ("ostree", "OSTree commits: prepare trees, commit, make deltas, prune."),
    "builds": ("builds", "Images on demand: workers, catalogue, queue."),
    "sysupgrade": ("sysupgrade", "Update a device with an image built for its own packages."),
    "provision": ("provision", "Make a disk image to flash: boot loader, two slots, state."),
    "kit": ("kit", "Update devices without a network, by a stick or file."),
    "device": ("device", "The device's agent: check, update, confirm, roll back."),
}


class _LazyGroup(click.Group):
    """A group whose commands are imported on first use; each module exposes `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"overhaul.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, text) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(overhaul.__version__, prog_name="overhaul")
def cli() -> None:
    """Build, sign, publish, serve and install operating-system updates for Linux devices."""


def main() -> None:
    """Run the command line; the console script."""
    from overhaul.cli.output import run

    run(cli)
