"""The hook `post-apply.d/00-update-uefi-app`: OLD NEW are the directories of the deployments."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import click

from overhaul.dialects.ostree.device.mounts import Mounts, SystemMounts
from overhaul.dialects.ostree.device.uefiapp import (
    PartitionIds,
    UefiAppError,
    find_app,
    medium_of,
    root_partition_id,
    update_app,
)
from overhaul.errors import OverhaulError

_DEFAULT = PartitionIds()


@contextmanager
def mounted_esp(esp: Path, partition_id: str, *, mounts: Mounts, root: Path = Path("/")) -> Iterator[Path]:
    """Mount the first partition of the root file system's disk at `esp` for the block, unless it is mounted.

    Raises:
        UefiAppError: There is no such partition.
    """
    if esp.is_mount():
        yield esp
        return
    mounts.mount(first_partition(partition_id, root=root), esp, file_system="vfat")
    try:
        yield esp
    finally:
        mounts.unmount(esp)


def first_partition(partition_id: str, *, root: Path = Path("/")) -> Path:
    """Return the device of partition 1 on the disk that has the partition `partition_id`.

    Raises:
        UefiAppError: There is none.
    """
    link = root / "dev/disk/by-partuuid" / partition_id
    own = root / "sys/class/block" / link.resolve().name
    if link.exists() and own.exists():
        for number in own.resolve().parent.glob("*/partition"):
            if number.read_text().strip() == "1":
                return root / "dev" / number.parent.name
    raise UefiAppError(path=link, reason="the first partition of its disk, the ESP, is not found.")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("old")
@click.argument("new", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--esp", type=click.Path(path_type=Path), default=Path("/boot/efi"), help="Where the ESP is mounted.")
@click.option("--command-line", type=click.Path(path_type=Path), default=Path("/proc/cmdline"), help="Names the root.")
@click.option("--external-partuuid", default=_DEFAULT.external, show_default=True, help="Root on removable media.")
@click.option("--internal-partuuid", default=_DEFAULT.internal, show_default=True, help="Root on internal storage.")
@click.option("--dry-run", is_flag=True, help="Tell what would be done, and do nothing.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(*, old: str, new: Path, esp: Path, command_line: Path, dry_run: bool, **options: str | bool) -> None:
    """Bring the UEFI application of the deployment NEW to the ESP; OLD is the one before and is not looked at."""
    del old
    ids = PartitionIds(external=str(options["external_partuuid"]), internal=str(options["internal_partuuid"]))
    partition_id = root_partition_id(command_line.read_text())
    app = find_app(new, medium_of(partition_id, ids))
    with mounted_esp(esp, partition_id, mounts=SystemMounts()):
        is_changed = update_app(app, esp, dry_run=dry_run)
    if is_changed:
        click.echo(f"{'would update' if dry_run else 'updated'} {app.name} to {app.digest}")


def main() -> NoReturn:
    """Run the hook; the updater goes on only when its exit code is 0."""
    try:
        command.main(standalone_mode=False)
    except (OverhaulError, OSError) as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, OverhaulError) else 6)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(0)
