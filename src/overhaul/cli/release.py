"""`overhaul release`: list, show, promote, recall and drop releases."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from overhaul.cli.opening import parse_percent, parse_release, release_text, repository_option
from overhaul.cli.output import human_bytes, json_option, print_json
from overhaul.errors import InputError
from overhaul.policy.rollout import Rollout, as_utc
from overhaul.release.record import Release
from overhaul.release.versions import release_order_key

if TYPE_CHECKING:
    from overhaul.publishing.delta_reports import DeltaReport


@click.group(name="release")
def command() -> None:
    """List, show, promote and recall releases.

    A release is named as PRODUCT/VARIANT/ARCH/VERSION/BUILD.
    """


@command.command(name="list")
@click.option("--product", help="Only of this product.")
@click.option("--channel", help="Only those this channel lists.")
@repository_option
@json_option
def list_releases(product: str | None, channel: str | None, directory: Path, as_json: bool) -> None:
    """List the published releases, the newest first.

    \b
    Examples:
      overhaul release list
      overhaul release list --product kiosk --channel stable --json
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.repository.signed import check_trusted

    repository = open_repository(directory)
    published = repository.published()
    check_trusted(published)
    rows: list[tuple[Release, tuple[str, ...]]] = []
    for release in published.releases.values():
        channels = published.channels_of(release.id)
        if (product is None or release.id.product == product) and (channel is None or channel in channels):
            rows.append((release, channels))
    if not rows:
        # Nothing is an answer about a product and a channel that there are.
        repository.settings.check_names(product=product, channel=channel)
    rows.sort(key=lambda row: release_order_key(row[0].id.version, row[0].id.build_id), reverse=True)
    rows.sort(key=lambda row: (row[0].id.product, row[0].id.variant, row[0].id.arch))
    if as_json:
        print_json([{"release": release_text(one.id), "channels": channels, "record": one} for one, channels in rows])
        return
    if not rows:
        click.echo("No release is published.")
    for release, channels in rows:
        marks = " checkpoint" if release.checkpoint else ""
        click.echo(
            f"{release_text(release.id):<48} {human_bytes(release.image.size):>9}  "
            f"{len(release.image.deltas)} deltas  {', '.join(channels) or 'no channel'}{marks}"
        )


@command.command(name="show")
@click.argument("release")
@click.option("--delta", "with_deltas", is_flag=True, help="List how every changed file travels in its deltas.")
@repository_option
@json_option
def show_release(release: str, with_deltas: bool, directory: Path, as_json: bool) -> None:
    """Show everything about RELEASE.

    \b
    Examples:
      overhaul release show kiosk/shop/x86_64/1.4.0/20260501.1
      overhaul release show kiosk/shop/x86_64/1.4.0/20260501.1 --delta
    """
    from overhaul.publishing.delta_reports import read_delta_report
    from overhaul.publishing.opening import open_repository
    from overhaul.repository.signed import check_trusted

    repository = open_repository(directory)
    published = repository.published()
    check_trusted(published)
    identity = parse_release(release)
    record = published.release(identity)
    if record is None:
        raise InputError(f"{identity} is not published; `overhaul release list` shows what is.")
    entries = {
        policy.channel: policy.entry(identity)
        for policy in published.policies.values()
        if policy.product == identity.product and policy.entry(identity) is not None
    }
    image = record.image
    known = {delta.file.sha256: read_delta_report(repository.storage, delta.file.sha256) for delta in image.deltas}
    if as_json:
        shown = {"release": release_text(identity), "record": record, "channels": entries}
        print_json({**shown, "deltas": known} if with_deltas else shown)
        return
    click.echo(f"{identity}")
    click.echo(f"  published  {as_utc(record.published_at)}{', checkpoint' if record.checkpoint else ''}")
    if record.notes:
        click.echo(f"  notes      {record.notes}")
    click.echo(f"  image      {human_bytes(image.size)} {image.filesystem}, index {image.index.sha256}")
    for pack in image.packs:
        click.echo(f"  pack       {human_bytes(pack.pack.size)} {pack.pack.path}")
    for delta in image.deltas:
        source = f"{delta.source_version} ({delta.source_build_id})"
        again = delta.fetched_size(range(len(delta.rebuilds)))
        less = f" ({human_bytes(again)} where files are packed again)" if delta.rebuilds else ""
        click.echo(
            f"  delta      {human_bytes(delta.fetched_size())}{less} from {source}, coders {', '.join(delta.coders)}"
        )
        if with_deltas:
            _show_delta(known[delta.file.sha256])
    for channel, entry in entries.items():
        if entry is not None and entry.recall is not None:
            state = f"recalled: {entry.recall.reason}"
        elif entry is not None and entry.rollout is not None:
            state = f"open to {entry.rollout.percent:g} % of the devices at first"
        else:
            state = "open to all devices"
        click.echo(f"  channel    {channel}, {state}")


def _show_delta(report: "DeltaReport | None") -> None:
    if report is None:
        click.echo("    how its files travel was not kept; publish the release again to a new repository to see it")
        return
    click.echo(f"    {human_bytes(report.copied_size)} are copied; {human_bytes(report.metadata_size)} for directories")
    click.echo(f"    and inodes, {human_bytes(report.header_size)} header; by file, the largest share first:")
    for file in sorted(report.files, key=lambda file: (-file.delta_size, file.path)):
        told = "" if file.reference in {None, file.path} else f" from {file.reference}"
        alone = " (new)" if file.reference is None else ""
        click.echo(f"    {file.delta_size:>10} of {file.size:>10}  {file.method:32} {file.path}{told}{alone}")


@command.command(name="promote")
@click.argument("release")
@click.option("--from", "source", required=True, help="Channel that holds it.")
@click.option("--to", "target", required=True, help="More stable channel that gets it.")
@click.option(
    "--rollout", metavar="PERCENT", default="all", show_default=True, help="Part of the devices it is open to at first."
)
@repository_option
@json_option
def promote_release(release: str, source: str, target: str, rollout: str, directory: Path, as_json: bool) -> None:
    """Put RELEASE into a more stable channel.

    Deltas from what the target channel held before are made by publishing the image there again.

    \b
    Example:
      overhaul release promote kiosk/shop/x86_64/1.4.0/20260501.1 --from beta --to stable --rollout 5
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.policies import promote

    identity = parse_release(release)
    percent = parse_percent(rollout)
    opened = None if percent is None else Rollout(percent=percent)
    done = promote(open_repository(directory), identity, source=source, target=target, rollout=opened)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{identity} is in channel {target}{'' if done.changed else ' already'}.")


@command.command(name="recall")
@click.argument("release")
@click.option("--channel", required=True, help="Channel that offers it.")
@click.option("--reason", required=True, help="Why; people and devices are shown it.")
@click.option("--allow-lower", is_flag=True, help="Devices that run it may go back to an older release.")
@click.option("--replaced-by", metavar="VERSION/BUILD", help="Checkpoint that stands in for this recalled one.")
@repository_option
@json_option
def recall_release(
    release: str,
    channel: str,
    reason: str,
    allow_lower: bool,
    replaced_by: str | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Offer RELEASE to nobody any more.

    A recall is in force as soon as devices see it and cannot be taken back; publish a successor instead.

    \b
    Example:
      overhaul release recall kiosk/shop/x86_64/1.4.0/20260501.1 --channel stable \\
          --reason "loses the network after resume" --allow-lower
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.policies import recall

    identity = parse_release(release)
    replacement = None
    if replaced_by is not None:
        version, slash, build_id = replaced_by.partition("/")
        if not slash:
            raise InputError(f"{replaced_by!r} does not name a checkpoint; write it as VERSION/BUILD.")
        replacement = (version, build_id)
    done = recall(
        open_repository(directory),
        identity,
        channel=channel,
        reason=reason,
        allow_lower=allow_lower,
        replaced_by=replacement,
    )
    if as_json:
        print_json(done)
    else:
        click.echo(f"{identity} is {'' if done.changed else 'already '}recalled from channel {channel}.")


@command.command(name="drop")
@click.argument("release")
@click.option("--channel", required=True, help="Channel that lists it.")
@repository_option
@json_option
def drop_release(release: str, channel: str, directory: Path, as_json: bool) -> None:
    """Take RELEASE out of a channel; devices that run it keep running it.

    Once no channel lists it and the support floor is above it, `overhaul repository prune` removes its bytes.

    \b
    Example:
      overhaul release drop kiosk/shop/x86_64/1.1.0/3 --channel stable
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.policies import drop

    identity = parse_release(release)
    done = drop(open_repository(directory), identity, channel=channel)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{identity} is no longer in channel {channel}.")
