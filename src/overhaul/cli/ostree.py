"""`overhaul ostree`: prepare trees, commit them, make deltas, prune; for repositories of any origin."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from overhaul.cli.output import human_bytes, json_option, print_json, progress_bars

if TYPE_CHECKING:
    from overhaul.dialects.ostree.signatures import Signer

_REPOSITORY = click.argument("repository", metavar="REPO", type=click.Path(path_type=Path, file_okay=False))
#: Where it is the only argument, it may come from the environment as well.
_ONLY_REPOSITORY = click.argument(
    "repository",
    metavar="REPO",
    envvar=["OSTREE_EXPORT", "OSTREE_REPO"],
    type=click.Path(path_type=Path, file_okay=False),
)
_GPG_HOME = click.option(
    "--gpg-home", envvar="OSTREE_GPGDIR", type=click.Path(path_type=Path), help="GnuPG home. [env: OSTREE_GPGDIR]"
)
_GPG_KEY = click.option("--gpg-key", envvar="OSTREE_GPGID", help="Key that signs. [env: OSTREE_GPGID]")
_ED25519 = click.option(
    "--ed25519-key", type=click.Path(path_type=Path), help="File with a base64 ed25519 secret key, as ostree takes it."
)
_LAYOUT = click.option(
    "--layout",
    type=click.Choice(["refkit", "generic"]),
    default="refkit",
    show_default=True,
    help="Where state is kept.",
)
_NO_KERNEL = click.option("--no-kernel", is_flag=True, help="Accept a tree without a kernel.")


@click.group(name="ostree")
def command() -> None:
    """OSTree commits: prepare trees, commit, make deltas, prune.

    `overhaul publish` does all of this for a product that has an [products.NAME.ostree] table; these commands are
    for builds that publish to a repository of their own.
    """


@command.command(name="prepare")
@click.argument("tree", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--plan", "plan_only", is_flag=True, help="Only list what would be changed.")
@_LAYOUT
@_NO_KERNEL
@json_option
def prepare(tree: Path, out: Path | None, plan_only: bool, layout: str, no_kernel: bool, as_json: bool) -> None:
    """Make a tree OUT that OSTree can deploy of the root file system TREE, which stays as it is.

    \b
    Examples:
      overhaul ostree prepare ./rootfs --plan
      overhaul ostree prepare ./rootfs ./rootfs.ostree
    """
    from overhaul.content.tree import scan_tree
    from overhaul.dialects.ostree.prepare import LAYOUTS, plan_tree, write_out

    if out is None and not plan_only:
        raise click.UsageError("Name the directory OUT to write, or ask for the plan only with --plan.")
    plan = plan_tree(tree, scan_tree(tree), places=LAYOUTS[layout], needs_kernel=not no_kernel)
    if out is not None and not plan_only:
        write_out(tree, plan.entries, out)
    if as_json:
        print_json({"changes": [{"step": c.step, "path": c.path, "what": c.what} for c in plan.changes]})
        return
    for change in plan.changes:
        click.echo(f"{change.step:<10} {change.path}: {change.what}")
    if not plan.changes:
        click.echo("Nothing to change: the tree is prepared already.")
    elif out is not None and not plan_only:
        click.echo(f"Wrote {out}, {len(plan.entries)} names.")


@command.command(name="commit")
@click.argument("tree", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--repository",
    "--export",
    envvar=["OSTREE_EXPORT", "OSTREE_REPO"],
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The common repository, made when it is not there. [env: OSTREE_EXPORT, OSTREE_REPO]",
)
@click.option("--branch", required=True, help="Branch, such as DISTRO/MACHINE/IMAGE.")
@click.option(
    "--image-repository",
    type=click.Path(path_type=Path, file_okay=False),
    help="A second repository that gets this commit alone, to make an image of.",
)
@click.option("--subject", default="", help="First line of the commit's description.")
@click.option("--version", default="", help="Version, shown in boot menus.")
@click.option("--prepare/--as-is", "wants_prepare", default=True, help="Prepare the tree first. [default: --prepare]")
@click.option("--deltas", default=1, show_default=True, type=click.IntRange(0, 32), help="Parents to make deltas from.")
@click.option("--delta-from-nothing", is_flag=True, help="Make a delta for new devices, too.")
@click.option("--no-xattrs", is_flag=True, help="Leave extended attributes out.")
@click.option("--unsigned", is_flag=True, help="Publish without any signature.")
@click.option(
    "--timestamp", type=click.IntRange(min=0), envvar="SOURCE_DATE_EPOCH", help="Time of the commit. [default: now]"
)
@_LAYOUT
@_NO_KERNEL
@_GPG_HOME
@_GPG_KEY
@_ED25519
@json_option
def commit(
    tree: Path,
    repository: Path,
    branch: str,
    image_repository: Path | None,
    subject: str,
    version: str,
    wants_prepare: bool,
    deltas: int,
    delta_from_nothing: bool,
    no_xattrs: bool,
    unsigned: bool,
    timestamp: int | None,
    layout: str,
    no_kernel: bool,
    gpg_home: Path | None,
    gpg_key: str | None,
    ed25519_key: Path | None,
    as_json: bool,
) -> None:
    """Commit the root file system TREE on a branch of a common repository, and publish it there.

    The same commit goes into the image repository, so that a device made from that image finds no update waiting.
    A tree whose content is the branch's already makes no new commit.

    \b
    Example:
      OSTREE_GPGDIR=./gnupg OSTREE_GPGID=updates@example.org overhaul ostree commit ./rootfs \\
          --repository /srv/ostree --branch mydistro/intel-corei7-64/my-image --version 1.4
    """
    from overhaul.dialects.ostree.exporting import Export, export

    signers = _signers(gpg_home, gpg_key, ed25519_key, unsigned=unsigned)
    request = Export(
        tree=tree,
        repository=repository,
        branch=branch,
        image_repository=image_repository,
        subject=subject,
        version=version,
        layout=layout if wants_prepare else None,
        needs_kernel=not no_kernel,
        xattrs=not no_xattrs,
        delta_sources=deltas,
        delta_from_nothing=delta_from_nothing,
        timestamp=timestamp if timestamp is not None else int(time.time()),
    )
    with progress_bars(quiet=as_json) as progress:
        done = export(request, signers=signers, workers=len(os.sched_getaffinity(0)), progress=progress)
    if as_json:
        print_json(
            {
                "commit": done.commit,
                "new": done.is_new,
                "new_objects": done.new_objects,
                "new_bytes": done.new_size,
                "deltas": [{"bytes": delta.size, "parts": delta.parts} for delta in done.deltas],
            }
        )
        return
    if not done.is_new:
        click.echo(f"{branch} has this tree already: {done.commit}")
        return
    click.echo(f"Committed {done.commit} on {branch}")
    click.echo(f"  objects {done.new_objects} new, {human_bytes(done.new_size)}")
    for delta in done.deltas:
        source = "nothing" if delta.source is None else delta.source.hex()[:12]
        click.echo(f"  delta   from {source}: {human_bytes(delta.size)} in {_parts(delta.parts)}")


@command.command(name="delta")
@_REPOSITORY
@click.argument("target", metavar="BRANCH|COMMIT")
@click.option("--from", "source", metavar="COMMIT", help="Commit to make it from. [default: the parent]")
@click.option("--from-nothing", is_flag=True, help="Make it for devices that have nothing.")
@_GPG_HOME
@_GPG_KEY
@_ED25519
@click.option("--unsigned", is_flag=True, help="Write the summary without a signature.")
@json_option
def delta(
    repository: Path,
    target: str,
    source: str | None,
    from_nothing: bool,
    gpg_home: Path | None,
    gpg_key: str | None,
    ed25519_key: Path | None,
    unsigned: bool,
    as_json: bool,
) -> None:
    """Make a static delta to a commit, and list it in the summary."""
    from overhaul.dialects.ostree.archive import ArchiveRepository
    from overhaul.dialects.ostree.delta_make import make_static_delta
    from overhaul.dialects.ostree.heads import move_heads

    if source and from_nothing:
        raise click.UsageError("--from and --from-nothing exclude each other.")
    signers = _signers(gpg_home, gpg_key, ed25519_key, unsigned=unsigned)
    opened = ArchiveRepository(repository)
    with progress_bars(quiet=as_json) as progress, opened.writing():
        wanted = opened.commit_named(target)
        parent = opened.commit(wanted).parent
        begin = None if from_nothing else parent if source is None else opened.commit_named(source)
        if begin is None and not from_nothing:
            raise click.UsageError(f"{target} has no parent; name a commit with --from, or use --from-nothing.")
        with opened.adding():
            made = make_static_delta(opened, begin, wanted, workers=len(os.sched_getaffinity(0)), progress=progress)
        move_heads(opened, {}, signers=signers, now=int(time.time()))
    if as_json:
        print_json({"bytes": made.size, "parts": made.parts, "objects": made.objects})
        return
    click.echo(f"Made a delta of {human_bytes(made.size)} in {_parts(made.parts)} for {made.objects} objects")
    click.echo(f"  files: {made.patched} patched, {made.copied} copied in pieces, {made.whole} whole")


@command.command(name="summary")
@_ONLY_REPOSITORY
@click.option("--force", is_flag=True, help="Write it even when it is current: after a change of keys.")
@_GPG_HOME
@_GPG_KEY
@_ED25519
@click.option("--unsigned", is_flag=True, help="Write it without a signature.")
def summary(
    repository: Path,
    force: bool,
    gpg_home: Path | None,
    gpg_key: str | None,
    ed25519_key: Path | None,
    unsigned: bool,
) -> None:
    """Write the summary and its signature anew, when they are not current. [env: OSTREE_EXPORT, OSTREE_REPO]"""
    from overhaul.dialects.ostree.archive import ArchiveRepository
    from overhaul.dialects.ostree.heads import move_heads

    signers = _signers(gpg_home, gpg_key, ed25519_key, unsigned=unsigned)
    opened = ArchiveRepository(repository)
    with opened.writing():
        changed = move_heads(opened, {}, signers=signers, now=int(time.time()), is_forced=force)
    click.echo("Wrote the summary." if changed else "The summary is current.")


@command.command(name="list")
@_ONLY_REPOSITORY
@json_option
def list_branches(repository: Path, as_json: bool) -> None:
    """List branches, their commits, and the deltas there are. [env: OSTREE_EXPORT, OSTREE_REPO]"""
    from overhaul.dialects.ostree.archive import ArchiveRepository
    from overhaul.dialects.ostree.heads import deltas_in

    opened = ArchiveRepository(repository)
    branches = {name: (commit, opened.commit(commit)) for name, commit in sorted(opened.branches().items())}
    deltas = Counter(target for _source, target in deltas_in(opened))
    if as_json:
        print_json(
            {
                name: {"commit": checksum.hex(), "version": held.version, "timestamp": held.timestamp}
                for name, (checksum, held) in branches.items()
            }
        )
        return
    for name, (checksum, held) in branches.items():
        click.echo(f"{name}  {checksum.hex()}  {held.version or '-'}  deltas: {deltas[checksum]}")


@command.command(name="prune")
@_ONLY_REPOSITORY
@click.option("--depth", default=5, show_default=True, type=click.IntRange(0), help="Parents of each branch to keep.")
@click.option("--keep-days", default=90.0, show_default=True, help="Keep all that is younger.")
@click.option("--dry-run", is_flag=True, help="Only tell what would go.")
@_GPG_HOME
@_GPG_KEY
@_ED25519
@click.option("--unsigned", is_flag=True, help="Write the summary without a signature.")
@json_option
def prune_repository(
    repository: Path,
    depth: int,
    keep_days: float,
    dry_run: bool,
    gpg_home: Path | None,
    gpg_key: str | None,
    ed25519_key: Path | None,
    unsigned: bool,
    as_json: bool,
) -> None:
    """Remove commits, objects and deltas that no device needs any more. [env: OSTREE_EXPORT, OSTREE_REPO]"""
    from overhaul.dialects.ostree.archive import ArchiveRepository
    from overhaul.dialects.ostree.heads import move_heads
    from overhaul.dialects.ostree.pruning import prune

    signers = () if dry_run else _signers(gpg_home, gpg_key, ed25519_key, unsigned=unsigned)
    opened = ArchiveRepository(repository)
    now = time.time()
    with opened.writing():
        done = prune(opened, depth=depth, keep_s=keep_days * 86_400, now=now, dry_run=dry_run)
        if not dry_run:
            # Even when nothing went: a run before this one may have died between the two.
            move_heads(opened, {}, signers=signers, now=int(now))
    if as_json:
        print_json(
            {
                "commits": done.commits,
                "refs": done.refs,
                "deltas": done.deltas,
                "objects": done.objects,
                "bytes": done.size,
                "dry_run": dry_run,
            }
        )
        return
    click.echo(
        f"{'Would remove' if dry_run else 'Removed'} {len(done.commits)} commits, {done.objects} objects and "
        f"{len(done.deltas)} deltas, {human_bytes(done.size)}; {done.kept_commits} commits are kept."
    )


@command.command(name="remote")
@click.option("--url", envvar="OSTREE_REMOTE", required=True, help="Where devices pull from. [env: OSTREE_REMOTE]")
@click.option("--name", default="updates", show_default=True, help="Name of the remote.")
@click.option("--into", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="Repository of the device's tree, such as SYSROOT/ostree/repo.")  # fmt: skip
@_GPG_HOME
@_GPG_KEY
def remote(url: str, name: str, into: Path, gpg_home: Path | None, gpg_key: str | None) -> None:
    """Tell a device's repository where updates come from, and which key signs them."""
    from overhaul.dialects.ostree.exporting import add_remote
    from overhaul.dialects.ostree.signatures import GpgSigner

    if gpg_home is None or not gpg_key:
        raise click.UsageError("Name the key with --gpg-home and --gpg-key: a remote without one verifies nothing.")
    add_remote(into, name=name, url=url, keys=GpgSigner(home=gpg_home, key=gpg_key).public_keys())
    click.echo(f"{into} pulls from {url} and trusts {gpg_key}.")


def _signers(
    gpg_home: Path | None, gpg_key: str | None, ed25519_key: Path | None, *, unsigned: bool
) -> "tuple[Signer, ...]":
    from overhaul.dialects.ostree.settings import OstreeSettings

    if unsigned:
        return ()
    settings = OstreeSettings(
        gpg_home="" if gpg_home is None or not gpg_key else str(gpg_home.absolute()),
        gpg_key=gpg_key if gpg_key and gpg_home is not None else "",
        ed25519_key_file="" if ed25519_key is None else str(ed25519_key.absolute()),
    )
    if not settings.gpg_key and not settings.ed25519_key_file:
        raise click.UsageError("Name a key (--gpg-home and --gpg-key, or --ed25519-key), or say --unsigned.")
    return settings.checked().signers(Path())


def _parts(number: int) -> str:
    return "1 part" if number == 1 else f"{number} parts"
