"""`overhaul publish`: one image, tree or tar becomes a signed release."""

import os
from pathlib import Path

import click

from overhaul.cli.opening import parse_percent, parse_size, release_id, repository_option
from overhaul.cli.output import human_bytes, json_option, print_json, progress_bars


@click.command(name="publish")
@click.argument("source", metavar="IMAGE|TREE|TAR", type=click.Path(path_type=Path))
@click.option("--product", required=True, help="Product the release belongs to.")
@click.option("--variant", required=True, help="Variant of the product, such as a form of hardware.")
@click.option("--arch", required=True, help="Processor architecture, such as x86_64 or aarch64.")
@click.option("--channel", required=True, help="Channel that offers it.")
@click.option("--version", required=True, help="Version: 1.2.3, 20260501, or snapshot.")
@click.option("--build-id", required=True, help="Build id: tells builds of one version apart.")
@click.option("--checkpoint", is_flag=True, help="Devices below it must stop here before they go on.")
@click.option(
    "--rollout", metavar="PERCENT", default="all", show_default=True, help="Part of the devices it is open to at first."
)
@click.option(
    "--delta-from",
    "delta_from",
    multiple=True,
    metavar="VERSION[/BUILD]",
    help="Older release to make a delta from; may be repeated. [default: the channel's newest]",
)
@click.option("--no-delta", is_flag=True, help="Make no delta.")
@click.option(
    "--castr/--no-castr", default=None, help="Write a casync chunk store too. [default: the product's setting]"
)
@click.option("--image-size", metavar="SIZE", help="Size of the image made of a tree or tar, such as 2G.")
@click.option("--notes", default="", help="A sentence for people about what is new.")
@click.option(
    "--workers", type=click.IntRange(1, 256), default=None, help="Threads that work at once. [default: one a processor]"
)
@repository_option
@json_option
def command(
    source: Path,
    product: str,
    variant: str,
    arch: str,
    channel: str,
    version: str,
    build_id: str,
    checkpoint: bool,
    rollout: str,
    delta_from: tuple[str, ...],
    no_delta: bool,
    castr: bool | None,
    image_size: str | None,
    notes: str,
    workers: int | None,
    directory: Path,
    as_json: bool,
) -> None:
    """Publish IMAGE, TREE or TAR as a release.

    A directory tree or tar becomes an ext4 image first, the same image for the same tree (times come from
    $SOURCE_DATE_EPOCH when it is set). Devices see the old state until everything is in place; a publish that was
    interrupted is simply run again. Publishing the same release again changes nothing.

    \b
    Examples:
      overhaul publish rootfs.ext4 --product kiosk --variant shop --arch x86_64 --channel beta \\
          --version 1.4.0 --build-id 20260501.1
      overhaul publish ./rootfs --product kiosk --variant shop --arch x86_64 --channel stable \\
          --version 2.0 --build-id 1 --checkpoint --rollout 10
      overhaul publish rootfs.tar.zst ... --delta-from 1.4.0 --delta-from 1.3.2/7
    """
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.publish import PublishRequest, publish

    if no_delta and delta_from:
        raise click.UsageError("--no-delta and --delta-from exclude each other.")
    request = PublishRequest(
        source=source,
        release=release_id(product=product, variant=variant, arch=arch, version=version, build_id=build_id),
        channel=channel,
        checkpoint=checkpoint,
        rollout_percent=parse_percent(rollout),
        delta_from=() if no_delta else delta_from or None,
        notes=notes,
        image_size_bytes=None if image_size is None else parse_size(image_size),
        timestamp=_source_date(),
        castr=castr,
    )
    threads = workers or len(os.sched_getaffinity(0))
    with progress_bars(quiet=as_json) as progress:
        done = publish(open_repository(directory), request, workers=threads, progress=progress)
    if as_json:
        print_json(done)
        return
    image = done.release.image
    if not done.changed:
        click.echo(f"{done.release.id} is in channel {done.channel} already, with exactly these bytes.")
        if done.new_chunks:
            click.echo("Files of it were missing or damaged; they are stored again.")
        return
    click.echo(f"Published {done.release.id} in channel {done.channel}.")
    click.echo(f"  image   {human_bytes(image.size)} {image.filesystem}")
    if done.was_published:
        click.echo("  content was published before")
    else:
        click.echo(
            f"  pack    {human_bytes(done.new_pack_size)} for {done.new_chunks} of {done.chunks} chunks;"
            f" packs used: {len(image.packs)}"
        )
    for delta in done.deltas:
        click.echo(
            f"  delta   {human_bytes(delta.size)} from {delta.source.version} ({delta.source.build_id})"
            f" in {delta.seconds:.1f} s"
        )
    for skipped in done.skipped_deltas:
        click.echo(f"  no delta from {skipped.source.version} ({skipped.source.build_id}): {skipped.reason}")
    if done.castr_files:
        click.echo(f"  castr   {done.castr_files} new chunk files")
    for dialect in done.written_dialects:
        shown = "devices see it" if dialect in done.pointed_dialects else "devices see it when it is open to all"
        click.echo(f"  {dialect:7} stored; {shown}")
    click.echo(f"  time    {sum(done.seconds.values()):.1f} s")


def _source_date() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isascii() and text.isdigit() else None
