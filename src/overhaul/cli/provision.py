"""`overhaul provision`: a disk image to flash."""

from pathlib import Path
from typing import Literal

import click

from overhaul.cli.opening import parse_release, parse_size, repository_option
from overhaul.cli.output import human_bytes, json_option, print_json, progress_bars


@click.command(name="provision")
@click.argument("release", metavar="RELEASE")
@click.argument("disk", metavar="DISK.img", type=click.Path(path_type=Path))
@click.option("--channel", required=True, help="Channel the device will follow.")
@click.option("--url", "urls", multiple=True, required=True, help="Repository address; further ones are mirrors.")
@click.option("--allow-http", is_flag=True, help="Allow plain http addresses.")
@click.option("--report-url", default="", help="Opt in: where devices tell how updates went.")
@click.option("--slot-size", metavar="SIZE", help="Size of each slot.  [default: a quarter more than the image]")
@click.option("--esp-size", metavar="SIZE", default="64M", show_default=True, help="Size of the EFI system partition.")
@click.option("--state-size", metavar="SIZE", default="64M", show_default=True, help="Size of the state partition.")
@click.option(
    "--boot",
    "loader",
    type=click.Choice(["grub", "systemd-boot"]),
    default="grub",
    show_default=True,
    help="The boot loader.",
)
@click.option("--kernel", default="/vmlinuz", show_default=True, help="The kernel inside the image.")
@click.option("--initrd", default="/initrd.img", show_default=True, help="The initrd inside the image; may be absent.")
@click.option("--kernel-options", default="", help="Added to the kernel's command line.")
@click.option(
    "--carry",
    type=click.Choice(["nothing", "merged"]),
    default="nothing",
    show_default=True,
    help="What comes along of changes in /etc at an update; for merged the initrd must have overhaul-mount-etc.",
)
@click.option("--esp-mount", default="/boot/efi", show_default=True, help="Where the image mounts the ESP.")
@click.option(
    "--state-mount", default="/var/lib/overhaul", show_default=True, help="Where the image mounts the state partition."
)
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@repository_option
@json_option
def command(
    release: str,
    disk: Path,
    channel: str,
    urls: tuple[str, ...],
    allow_http: bool,
    report_url: str,
    slot_size: str | None,
    esp_size: str,
    state_size: str,
    loader: str,
    kernel: str,
    initrd: str,
    kernel_options: str,
    carry: Literal["nothing", "merged"],
    esp_mount: str,
    state_mount: str,
    force: bool,
    directory: Path,
    as_json: bool,
) -> None:
    """Make DISK.img of RELEASE (PRODUCT/VARIANT/ARCH/VERSION/BUILD): a UEFI disk that boots and updates itself.

    It holds a boot loader, two slots of which the first has the release, and a state partition with the device's
    configuration and trust anchor. The image must mount the partitions `esp` and `state`.

    \b
    Example:
      overhaul provision kiosk/shop/x86_64/2.0/1 kiosk.img --channel stable --url https://updates.example.com
      dd if=kiosk.img of=/dev/sdX bs=4M conv=fsync
    """
    from overhaul.publishing.boot_partition import Loader
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.provisioning import DiskRequest, provision_disk

    request = DiskRequest(
        release=parse_release(release),
        channel=channel,
        urls=urls,
        allow_http=allow_http,
        report_url=report_url,
        slot_size=None if slot_size is None else parse_size(slot_size),
        esp_size=parse_size(esp_size),
        state_size=parse_size(state_size),
        loader=Loader(loader),
        kernel=kernel,
        initrd=initrd,
        kernel_options=kernel_options,
        carry=carry,
        esp_mount=esp_mount,
        state_mount=state_mount,
    )
    with progress_bars(quiet=as_json) as progress:
        done = provision_disk(open_repository(directory), disk, request, force=force, progress=progress)
    if as_json:
        print_json(done)
        return
    click.echo(f"Disk   {done.path}, {human_bytes(done.size)}, with {done.release}")
    for name, (offset, size) in done.partitions.items():
        click.echo(f"  {name:<8} {human_bytes(size)} at byte {offset}")
