"""`overhaul swupd`: a staging directory of root file systems becomes a tree that swupd's clients update from."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from overhaul.cli.output import human_bytes, json_option, print_json, progress_bars

if TYPE_CHECKING:
    from overhaul.dialects.swupd.build import BuiltVersion

_storage_option = click.option(
    "--storage", "-S", metavar="STORAGE", type=click.Path(path_type=Path, file_okay=False), default=Path(),
    show_default="the current directory", envvar="OVERHAUL_SWUPD_STORAGE",
    help="Staging directory with image/ and www/. [env: OVERHAUL_SWUPD_STORAGE]",
)  # fmt: skip


@click.group(name="swupd")
def command() -> None:
    """swupd versions: extract root file systems, process, check, prune.

    \b
    From an image to a version that devices see:
      overhaul swupd extract-rootfs my.dsk /srv/swupd 10 2
      overhaul swupd process 10 --storage /srv/swupd --key swupd.key --certificate swupd.pem
    Then serve /srv/swupd/www with any web server. The next build is version 20.
    """


@command.command(name="extract-rootfs")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("storage", metavar="STORAGE", type=click.Path(path_type=Path, file_okay=False))
@click.argument("version", type=click.IntRange(1, (1 << 31) - 1))
@click.argument("partition", type=click.IntRange(1, 128), required=False)
@click.option("--bundle", default="os-core", show_default=True, help="Bundle that the root file system becomes.")
@json_option
def extract_rootfs(image: Path, storage: Path, version: int, partition: int | None, bundle: str, as_json: bool) -> None:
    """Unpack PARTITION of IMAGE (a disk, a file system or a tar) into STORAGE/image/VERSION.

    Owners, rights and extended attributes are kept where STORAGE can hold them; what it would lose is said first.
    """
    from overhaul.dialects.swupd.staging import extract, preflight

    losses = preflight(storage)
    for loss in losses:
        click.echo(f"Warning: {loss}", err=True)
    with progress_bars(quiet=as_json) as progress:
        place = extract(image, storage, version=version, partition=partition, bundle=bundle, progress=progress)
    if as_json:
        print_json({"directory": str(place), "losses": losses})
        return
    click.echo(f"The root file system lies in {place}; now run `overhaul swupd process {version} -S {storage}`.")


@command.command()
@click.argument("storage", metavar="STORAGE", type=click.Path(path_type=Path, file_okay=False))
@json_option
def preflight(storage: Path, as_json: bool) -> None:
    """Say what STORAGE would lose of root file systems: owners, SELinux labels, capabilities and others."""
    from overhaul.dialects.swupd.staging import preflight as look

    losses = look(storage)
    if as_json:
        print_json({"losses": losses})
        return
    for loss in losses:
        click.echo(loss)
    click.echo("Nothing else would be lost." if losses else "Nothing would be lost.")


@command.command()
@click.argument("version", type=click.IntRange(1, (1 << 31) - 1))
@_storage_option
@click.option(
    "--format",
    "format_number",
    type=click.IntRange(3),
    default=None,
    help="Format of the version.  [default: that of the version before, or 4]",
)
@click.option(
    "--key", type=click.Path(path_type=Path), envvar="OVERHAUL_SWUPD_KEY", help="Private key (PEM) to sign with."
)
@click.option(
    "--certificate",
    type=click.Path(path_type=Path),
    envvar="OVERHAUL_SWUPD_CERTIFICATE",
    help="Its certificate (PEM), which devices trust.",
)
@click.option("--unsigned", is_flag=True, help="Sign nothing, for clients that do not check.")
@click.option("--minversion", type=click.IntRange(0), default=0, help="Make everything older than this version again.")
@click.option(
    "--packs-from",
    type=click.IntRange(0, 32),
    default=4,
    show_default=True,
    help="So many versions before get packs to this one.",
)
@click.option("--no-zero-packs", is_flag=True, help="Make no packs for fresh installations.")
@click.option(
    "--compression",
    type=click.Choice(["smallest", "xz", "gzip", "zstd", "none"]),
    default="smallest",
    show_default=True,
    help="smallest is readable by every client since 2016.",
)
@click.option(
    "--best", is_flag=True, help="Compress three to four times as long; full files get 3.4 % smaller, packs 8.4 %."
)
@click.option("--xattrs", is_flag=True, help="Put extended attributes into hashes, for clients built so.")
@click.option("--stateless", is_flag=True, help="Leave /etc out.")
@click.option("--no-debug", is_flag=True, help="Leave debugging files out.")
@click.option("--no-ghosts", is_flag=True, help="Delete boot files that are gone like all others.")
@click.option("--renames", is_flag=True, help="Mark renamed files in manifests, for clients before 3.16.")
@click.option("--as-it-is", is_flag=True, help="Put nothing into the trees that clients need and they lack.")
@click.option("--content-url", default="", help="Where devices fetch content; put into os-core.")
@click.option("--version-url", default="", help="Where devices poll; put into os-core.")
@click.option(
    "--timestamp",
    type=click.IntRange(0),
    envvar="SOURCE_DATE_EPOCH",
    default=None,
    help="Time of the build.  [default: now; env: SOURCE_DATE_EPOCH]",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=None,
    help="Threads that work at once.  [default: one a processor]",
)
@json_option
def process(
    version: int,
    storage: Path,
    format_number: int | None,
    key: Path | None,
    certificate: Path | None,
    unsigned: bool,
    minversion: int,
    packs_from: int,
    no_zero_packs: bool,
    compression: str,
    best: bool,
    xattrs: bool,
    stateless: bool,
    no_debug: bool,
    no_ghosts: bool,
    renames: bool,
    as_it_is: bool,
    content_url: str,
    version_url: str,
    timestamp: int | None,
    workers: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Build VERSION of what lies in STORAGE/image/VERSION, try it, and let devices see it.

    Versions go up in steps of ten. A run that was interrupted is simply repeated. When the format goes up, two
    versions are made: VERSION in the old format, and the one ten higher in the new.
    """
    from overhaul.dialects.swupd.options import BuildOptions
    from overhaul.dialects.swupd.signing import load_signer
    from overhaul.dialects.swupd.storage import Storage

    if (key is None) != (certificate is None):
        raise click.UsageError("--key and --certificate belong together.")
    if (key is None) != unsigned:
        raise click.UsageError("Name --key and --certificate, or say --unsigned.")
    place = Storage(storage)
    options = BuildOptions(
        format=format_number or place.last_format(),
        signer=None if key is None or certificate is None else load_signer(key=key, certificate=certificate),
        packs_from=packs_from,
        zero_packs=not no_zero_packs,
        compression=compression,  # type: ignore[arg-type]  # click has checked it
        fullfile_level=6 if best else BuildOptions.fullfile_level,
        pack_level=6 if best else BuildOptions.pack_level,
        xattrs=xattrs,
        stateless=stateless,
        debug=not no_debug,
        ghosts=not no_ghosts,
        renames=renames,
        complete=not as_it_is,
        content_url=content_url,
        version_url=version_url or content_url,
        workers=workers or os.cpu_count() or 1,
    )
    with progress_bars(quiet=as_json) as progress:
        done = place.process(
            version,
            options=options,
            timestamp=int(time.time()) if timestamp is None else timestamp,
            minversion=minversion,
            progress=progress,
        )
    if as_json:
        print_json({"built": done.built, "latest": {str(number): latest for number, latest in done.latest.items()}})
        return
    if not done.built:
        click.echo(f"Version {version} is built already; nothing changed.")
    for built in done.built:
        _show(built)
    for number, latest in sorted(done.latest.items()):
        click.echo(f"Devices of format {number} see version {latest}.")


def _show(built: "BuiltVersion") -> None:
    for warning in built.warnings:
        click.echo(f"Warning: {warning}", err=True)
    click.echo(
        f"Version {built.version}: {built.new_objects} new objects in {len(built.changed_bundles)} bundles, "
        f"{built.deltas} deltas, {built.packs} packs, {human_bytes(built.size)}."
    )


@command.command()
@_storage_option
@click.option(
    "--tree", "web", type=click.Path(path_type=Path, file_okay=False), help="A published tree instead of STORAGE/www."
)
@click.option(
    "--keep",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="Newest versions of each format that devices may still have.",
)
@click.option("--remove", is_flag=True, help="Remove what is not needed; without, only say it.")
@json_option
def prune(storage: Path, web: Path | None, keep: int, remove: bool, as_json: bool) -> None:  # fmt: skip
    """Say which old versions devices can still need and why, and remove the others when told to."""
    from overhaul.dialects.swupd.retention import prune as prune_tree
    from overhaul.dialects.swupd.storage import Storage

    done = prune_tree(web or Storage(storage).web, keep=keep, remove=remove)
    if as_json:
        print_json(done)
        return
    for one in done.needed:
        click.echo(f"{one.version}: needed, {one.reason}")
    verb = "removed" if remove else "not needed"
    for version in done.unneeded:
        click.echo(f"{version}: {verb}")
    click.echo(f"{human_bytes(done.freed_bytes)} {'freed' if remove else 'would be freed'}.")


@command.command()
@_storage_option
@click.option(
    "--tree", "web", type=click.Path(path_type=Path, file_okay=False), help="A published tree instead of STORAGE/www."
)
@click.option("--certificate", type=click.Path(path_type=Path), help="Certificate that signatures must lead to.")
@json_option
def check(storage: Path, web: Path | None, certificate: Path | None, as_json: bool) -> None:  # fmt: skip
    """Read all that devices of the newest versions can need, apply the packs that lead there, and say what is wrong."""
    from overhaul.dialects.swupd.checking import check_tree
    from overhaul.dialects.swupd.storage import Storage

    with progress_bars(quiet=as_json) as progress:
        found = check_tree(web or Storage(storage).web, certificate=certificate, progress=progress)
    if as_json:
        print_json(found)
    for problem in () if as_json else found.problems:
        click.echo(problem)
    if found.untried_deltas and not as_json:
        click.echo(
            f"{found.untried_deltas} deltas begin with objects that were pruned, and were not applied.", err=True
        )
    if found.problems:
        raise click.exceptions.Exit(7)
    if not as_json:
        click.echo(f"Everything is there and right; {found.deltas} deltas make what they say.")
