"""`overhaul repository`: verify, refresh, prune and measure a repository."""

import math
from pathlib import Path

import click

from overhaul.cli.opening import release_text, repository_option
from overhaul.cli.output import human_bytes, json_option, print_json, progress_bars
from overhaul.errors import OperatorError, TrustError
from overhaul.policy.rollout import as_utc
from overhaul.repository.layout import PUBLIC, kind_of
from overhaul.repository.prune import WaitingFile


@click.group(name="repository")
def command() -> None:
    """Verify, refresh, prune and measure a repository."""


@command.command(name="verify")
@click.option("--quick", is_flag=True, help="Compare only the sizes of content files; signed files are checked whole.")
@click.option(
    "--root",
    "anchor",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Root metadata that devices were given. [default: root.json in the repository]",
)
@repository_option
@json_option
def verify_command(quick: bool, anchor: Path | None, directory: Path, as_json: bool) -> None:
    """Check that everything devices are told of is there and is what was signed.

    Reads every file, decodes every chunk, and finds any flipped byte. Ends with status 4 when it found a fault.

    \b
    Examples:
      overhaul repository verify
      overhaul repository verify --quick --json
    """
    from overhaul.publishing.create import ROOT_FILE
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.upkeep import verify

    repository = open_repository(directory)
    own = directory / ROOT_FILE
    trusted = anchor.read_bytes() if anchor is not None else own.read_bytes() if own.exists() else None
    with progress_bars(quiet=as_json) as progress:
        report = verify(repository, progress=progress, anchor=trusted, quick=quick)
    if as_json:
        print_json(report)
    else:
        for finding in report.findings:
            click.echo(f"{finding.kind}: {finding.path}: {finding.sentence}")
        sizes: dict[str, list[int]] = {}
        for one in report.unreferenced:
            sizes.setdefault(kind_of(one.key.removeprefix(PUBLIC)), []).append(one.size)
        for kind, found in sizes.items():
            click.echo(f"unreferenced: {kind}: {len(found)} files, {human_bytes(sum(found))}")
        how = "sizes only" if report.quick else human_bytes(report.bytes_checked)
        click.echo(f"Checked {report.releases} releases in {report.files} files ({how}).")
    if not report.is_sound:
        raise TrustError(f"The repository has {len(report.findings)} faults; they are listed above.")


@command.command(name="refresh")
@repository_option
@json_option
def refresh_command(directory: Path, as_json: bool) -> None:
    """Sign again what would expire soon, with the keys that are here.

    Run it at least once a day (deploy/systemd has a timer), or devices will refuse the repository in the end.

    \b
    Example:
      overhaul repository refresh --repository /srv/updates
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.upkeep import refresh_repository

    report = refresh_repository(open_repository(directory))
    if as_json:
        print_json(report)
    else:
        click.echo(f"Signed again: {', '.join(report.renewed)}.")
        for status in report.expiring:
            click.echo(
                f"{status.role} expires on {status.expires:%Y-%m-%d}, and its keys are not here.",
                err=True,
            )
    if report.expiring:
        names = ", ".join(status.role for status in report.expiring)
        raise OperatorError(f"The signatures of {names} end soon; run `overhaul repository refresh` with their keys.")


@command.command(name="prune")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--grace-days",
    type=click.FloatRange(min=0, max=36_500),
    help="Days that files nothing names are kept. [default: the repository's setting]",
)
@repository_option
@json_option
def prune_command(dry_run: bool, grace_days: float | None, directory: Path, as_json: bool) -> None:
    """Remove what no channel and no supported device needs, and say what is kept and why.

    A release that no channel lists, that is no checkpoint and is below the support floor leaves the signed record;
    files that nothing names are removed when they have been so for the grace period.

    \b
    Examples:
      overhaul repository prune --dry-run
      overhaul repository prune --grace-days 30
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.upkeep import prune_repository

    if grace_days is not None and math.isnan(grace_days):
        raise click.BadParameter("nan is not a number of days.", param_hint="--grace-days")
    report = prune_repository(open_repository(directory), grace_days=grace_days, dry_run=dry_run)
    if as_json:
        print_json(report)
        return
    for kept in report.kept:
        channels = f" ({', '.join(kept.channels)})" if kept.channels else ""
        click.echo(f"keep   {release_text(kept.release)}: {kept.need}{channels}")
    for dropped in report.dropped:
        click.echo(f"drop   {release_text(dropped)}: no channel lists it and it is below the support floor")
    for unsigned in report.unsigned:
        click.echo(f"keep   {release_text(unsigned)}: nobody needs it, but the keys to drop it are not here")
    waiting: dict[str, list[WaitingFile]] = {}
    for one in report.waiting:
        waiting.setdefault(kind_of(one.path), []).append(one)
    for kind, files in waiting.items():
        first = as_utc(int(min(one.removed_after for one in files)))
        click.echo(f"wait   {kind}: {len(files)} files, {human_bytes(sum(one.size for one in files))}, from {first} on")
    act = "Would remove" if report.dry_run else "Removed"
    click.echo(f"{act} {len(report.removed)} files, {human_bytes(report.freed_bytes)}.")


@command.command(name="add-product")
@click.argument("product")
@click.option("--channel", "-c", "channels", multiple=True, help="Channel, the most stable first; may be repeated.")
@repository_option
@json_option
def add_product_command(product: str, channels: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Let the repository carry one more product: configuration, keys and delegation.

    The keys of targets must sign; where they are elsewhere, go on with `overhaul keys sign-request`. Run again after
    an interruption, it finishes what was begun.

    \b
    Example:
      overhaul repository add-product kiosk --channel stable --channel beta
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.products import add_product

    added = add_product(open_repository(directory), product, channels=channels or None)
    if as_json:
        print_json(added)
        return
    click.echo(f"{added.product} with the channels {', '.join(added.channels)}; keys {', '.join(added.key_files)}.")


@command.command(name="stats")
@repository_option
@json_option
def stats_command(directory: Path, as_json: bool) -> None:
    """Tell how big the repository is, and what of.

    \b
    Example:
      overhaul repository stats --json
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.repository.stats import measure

    repository = open_repository(directory)
    stats = measure(repository.storage, repository.published())
    if as_json:
        print_json(stats)
        return
    for product in stats.products:
        click.echo(
            f"{product.product}: {product.releases} releases in {', '.join(product.channels) or 'no channel'};"
            f" {human_bytes(product.image_bytes)} of images in {human_bytes(product.stored_bytes)}"
        )
    for kind in stats.kinds:
        click.echo(f"  {kind.kind:<18} {kind.files:>7} files {human_bytes(kind.bytes):>10}")
    click.echo(f"  {'all':<18} {stats.files:>7} files {human_bytes(stats.bytes):>10}")
