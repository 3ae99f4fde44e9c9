"""`overhaul kit`: updates for devices without a network, on a stick or in a file, and their receipts back."""

from datetime import UTC, datetime
from pathlib import Path

import click

from overhaul.cli.opening import repository_option
from overhaul.cli.output import human_bytes, json_option, print_json, progress_bars
from overhaul.install.settings import DEFAULT_PATH


@click.group()
def command() -> None:
    """Update devices that have no network: make a kit, install from it, bring the receipts home.

    \b
    On the publisher's machine, the device, and the publisher's machine again:
      overhaul kit export /media/stick --product kiosk --channel stable
      overhaul kit install /media/stick
      overhaul kit receipts /media/stick
    """


@command.command()
@click.argument("path", metavar="DIRECTORY|FILE", type=click.Path(path_type=Path))
@click.option("--product", required=True, help="Product of the devices.")
@click.option("--channel", required=True, help="Channel they follow.")
@click.option("--variant", default=None, help="Only this variant.")
@click.option("--arch", default=None, help="Only this architecture.")
@click.option(
    "--from",
    "sources",
    multiple=True,
    metavar="VERSION[/BUILD]",
    help="Only for devices on this release, which makes the kit small; may be repeated. [default: any]",
)
@click.option("--with-packs", is_flag=True, help="With --from: also what a device with a damaged slot needs.")
@click.option(
    "--with-mends",
    is_flag=True,
    help="With --from: also what mends a few wrong blocks of a slot, a third of what packs take.",
)
@click.option(
    "--valid-days",
    type=click.IntRange(1, 365),
    default=None,
    help="Sign again, so that devices take the kit for so long. [default: as long as the timestamp lasts]",
)
@repository_option
@json_option
def export(
    path: Path,
    product: str,
    channel: str,
    variant: str | None,
    arch: str | None,
    sources: tuple[str, ...],
    with_packs: bool,
    with_mends: bool,
    valid_days: int | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Write a kit into DIRECTORY, or as one FILE.

    It holds what the channel's policy offers to these devices, stops at checkpoints included. Run again on a
    directory it copies only what is new. Other files in the directory are left alone.

    \b
    Examples:
      overhaul kit export /media/stick --product kiosk --channel stable --valid-days 30
      overhaul kit export kiosk-2.0.kit --product kiosk --channel stable --from 1.9
    """
    from overhaul.publishing.kit_choice import KitRequest
    from overhaul.publishing.kits import export_kit
    from overhaul.publishing.opening import open_repository

    request = KitRequest(
        product=product,
        channel=channel,
        variant=variant,
        arch=arch,
        sources=sources,
        with_packs=with_packs,
        with_mends=with_mends,
        valid_days=valid_days,
    )
    with progress_bars(quiet=as_json) as progress:
        done = export_kit(open_repository(directory), path, request, progress=progress)
    if as_json:
        print_json(done)
        return
    releases = ", ".join(f"{one.version} ({one.build_id})" for one in done.manifest.releases)
    until = datetime.fromtimestamp(done.manifest.usable_until, UTC)
    click.echo(f"Kit         {done.path}: {done.files} files, {human_bytes(done.size)}")
    if done.kept_bytes:
        click.echo(f"Kept        {human_bytes(done.kept_bytes)} that it held already")
    click.echo(f"Releases    {releases}")
    click.echo(f"Use it      until {until:%Y-%m-%d %H:%M} UTC; devices refuse it afterwards")


@command.command()
@click.argument("path", metavar="DIRECTORY|FILE", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    default=DEFAULT_PATH,
    show_default=True,
    help="The device's configuration.",
)
@click.option(
    "--receipts",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Directory for the receipt, where the kit cannot be written.  [default: the kit]",
)
@json_option
def install(path: Path, config: Path, receipts: Path | None, as_json: bool) -> int:
    """On the device: install from a kit what its policy offers, and leave a receipt in it.

    The kit is believed for its signatures, as the network would be. After the restart, plug it in once more and the
    receipt of how it ended is added. Exit codes are those of `overhaul device update`.

    \b
    Example:
      overhaul kit install /media/stick && reboot
    """
    from overhaul.agent.kits import install_from_kit
    from overhaul.cli.device import show_updated
    from overhaul.install.settings import load_settings
    from overhaul.transfer.kit import open_kit

    settings = load_settings(config)
    with progress_bars(quiet=as_json) as progress:
        done = install_from_kit(settings, open_kit(path), receipts=receipts, progress=progress)
    if as_json:
        print_json(done)
    else:
        show_updated(done.answer)
        for name in done.receipts:
            click.echo(f"Receipt      {name}")
    if done.receipt_fault:
        click.echo(f"Warning: no receipt was written ({done.receipt_fault}); name a place with --receipts.", err=True)
    return done.exit_code


@command.command()
@click.argument("path", metavar="DIRECTORY|FILE", type=click.Path(path_type=Path, exists=True))
@click.option("--no-import", is_flag=True, help="Only show them.")
@repository_option
@json_option
def receipts(path: Path, no_import: bool, directory: Path, as_json: bool) -> None:
    """Check the receipts that came back in a kit, and add them to the server's device reports.

    One that was imported before is not counted twice.

    \b
    Examples:
      overhaul kit receipts /media/stick
      overhaul kit receipts kiosk-2.0.kit --no-import --json
    """
    from overhaul.publishing.kit_receipts import collect_receipts
    from overhaul.publishing.opening import open_repository
    from overhaul.server.receipts import parse_reports, store_reports
    from overhaul.transfer.kit import open_kit

    collected = collect_receipts(open_repository(directory), open_kit(path))
    parsed = parse_reports([(one.name, one.report) for one in collected.receipts])
    new = 0 if no_import else store_reports(directory, parsed.reports)
    refused = (*collected.refused, *parsed.refused)
    if as_json:
        reports = [report.model_dump(mode="json", exclude_none=True) for report in parsed.reports]
        print_json({"receipts": reports, "imported": new, "refused": refused})
        return
    for report in parsed.reports:
        sought = f"{report.to_version} ({report.to_build_id})" if report.to_version else "nothing"
        click.echo(f"{report.outcome.value:<12} {sought} from {report.from_version} ({report.from_build_id})")
    for sentence in refused:
        click.echo(f"Refused: {sentence}", err=True)
    told = "" if no_import else f"; {new} new ones imported"
    click.echo(f"{len(parsed.reports)} receipts{told}.")
