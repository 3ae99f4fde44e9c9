"""How `overhaul device preview` is shown to people."""

import click

from overhaul.agent.previewing import Previewed, PreviewedFile
from overhaul.install.configuration.merging import Fate

_HEADINGS = {
    Fate.CONFLICT: "Changed here and by the release, and not to be merged: this device's stays, look at these",
    Fate.LOST: "Lost: here now, and not in the new system",
    Fate.MERGED: "Changed here and by the release, and merged",
    Fate.KEPT: "Changed here: stays",
    Fate.TAKEN: "Changed by the release: taken",
    Fate.SAME: "Changed here and by the release in the same way",
}


def show_preview(outcome: Previewed) -> None:
    """Print what becomes of the configuration, the most important first."""
    running, release = outcome.running, outcome.release
    click.echo(f"From {running.version} ({running.build_id}) to {release.version} ({release.build_id}):")
    if not outcome.carries:
        click.echo(
            "Nothing is carried over: the configuration says so (`carry` in [configuration]), "
            "so the new system has what its release ships."
        )
    if not outcome.running_is_known:
        click.echo(
            "What the running release shipped is not known: what lies in its layer, or is to be kept, counts as "
            "changed here, and nothing else comes along."
        )
    if not outcome.release_is_known:
        click.echo("The release does not tell what it ships; what is changed here is laid over it as it is.")
    for fate, heading in _HEADINGS.items():
        files = outcome.of(fate)
        if files:
            click.echo(f"\n{heading} ({len(files)}):")
            _show_files(files)
    click.echo(f"\n{outcome.unchanged} others are as they were shipped.")


def _show_files(files: tuple[PreviewedFile, ...]) -> None:
    for file in files:
        if file.fate in {Fate.CONFLICT, Fate.MERGED}:
            _show_both_changed(file)
            continue
        about = f" ({file.here})" if file.fate is not Fate.TAKEN else f" ({file.release})"
        click.echo(f"  {file.path}{about}" + (f": {file.reason}" if file.reason else ""))


def _show_both_changed(file: PreviewedFile) -> None:
    click.echo(f"  {file.path}" + (f": {file.reason}" if file.reason else ""))
    if file.beside is not None:
        click.echo(f"    the release's will lie beside it as {file.beside}")
    if file.difference:
        for line in file.difference.splitlines():
            click.echo(f"    {line}")
    if file.text is not None:
        click.echo("    as it will be:")
        for line in file.text.splitlines():
            click.echo(f"    | {line}")
