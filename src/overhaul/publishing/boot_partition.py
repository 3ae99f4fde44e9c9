"""The EFI system partition of a new disk, made without root, loop device or mount; one form for each boot loader.

```
GRUB           EFI/BOOT/BOOTX64.EFI   GRUB, found by the firmware without any entry of its own
               grub/grub.cfg          starts what the script chose, by the number of its partition
               grub/overhaul.cfg      the counting of attempts (install/overhaul.cfg)
               grub/grubenv           slot A confirmed, slot B bad
systemd-boot   EFI/BOOT/BOOTX64.EFI   systemd-boot
               loader/loader.conf     the first of our entries is the default, and no menu
               loader/entries/overhaul-A.conf
               overhaul/A/linux, initrd   copied out of the image, since systemd-boot reads no Linux file system
```
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from overhaul.errors import OperatorError
from overhaul.host.processes import ProgramFailedError, run
from overhaul.install.countdown import BootVariables, SlotCounter, render_variables
from overhaul.install.envblock import write_block
from overhaul.install.loaderentry import DEFAULT_PATTERN, EntryName, kernel_directory, render_entry

_SECTOR = 512
#: Directories, tables and entries take less than this beside the kernels.
_SPARE_BYTES = 4 << 20
_GRUB_MODULES = (
    "part_gpt", "fat", "ext2", "normal", "configfile", "linux", "loadenv", "regexp", "test", "eval", "echo", "sleep",
    "reboot", "gzio", "all_video", "serial", "terminal", "boot",
)  # fmt: skip
_OVERHAUL_CFG = Path(__file__).parent.parent / "install/overhaul.cfg"
_SYSTEMD_BOOT = Path("/usr/lib/systemd/boot/efi")
_LINKS_MAX = 8
_LINK_LINE = re.compile(rb'^Fast link dest: "(.*)"$', re.MULTILINE)
_TYPE_LINE = re.compile(rb"\bType: (\w+)")


class Loader(StrEnum):
    """The boot loaders a disk can be made with."""

    GRUB = "grub"
    SYSTEMD_BOOT = "systemd-boot"


@dataclass(frozen=True, kw_only=True)
class Platform:
    """One architecture, in the words of GRUB, the firmware and systemd."""

    grub: str
    firmware_file: str
    systemd_file: str


_X86_64 = Platform(grub="x86_64-efi", firmware_file="BOOTX64.EFI", systemd_file="systemd-bootx64.efi")
_ARM64 = Platform(grub="arm64-efi", firmware_file="BOOTAA64.EFI", systemd_file="systemd-bootaa64.efi")
PLATFORMS = {"x86_64": _X86_64, "amd64": _X86_64, "aarch64": _ARM64, "arm64": _ARM64}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is started: paths inside the image, and the kernel's command line with `{slot}` for the slot's name."""

    kernel: str
    initrd: str
    options: str


class UnbootableDiskError(OperatorError):
    """The boot loader would not find what it should start."""

    def __init__(self, *, kernel: str, reason: str) -> None:
        self.kernel = kernel
        self.reason = reason
        super().__init__(
            f"The kernel {kernel} in the slot cannot be started ({reason}), so the disk would not boot; name the "
            "kernel with --kernel, or make the image with file-system features that the boot loader knows."
        )


class LoaderMissingError(OperatorError):
    """The boot loader itself is not installed here."""

    def __init__(self, *, file: Path) -> None:
        self.file = file
        super().__init__(f"There is no {file}; install systemd-boot's EFI files (Debian: systemd-boot-efi).")


class PartitionTooSmallError(OperatorError):
    """The boot partition has no room for the kernels of two slots."""

    def __init__(self, *, size: int, needed: int) -> None:
        self.size = size
        self.needed = needed
        super().__init__(
            f"A boot partition of {size >> 20} MiB has no room for the kernels of two slots; say "
            f"--esp-size {-(-needed >> 20)}M or more."
        )


def make_grub_partition(work: Path, start: Start, *, platform: Platform, size: int) -> Path:
    """Return an image of a partition from which GRUB boots; slot A is confirmed and slot B bad."""
    core = work / platform.firmware_file
    run(["grub-mkimage", "-O", platform.grub, "-p", "/grub", "-o", core, *_GRUB_MODULES])
    variables = BootVariables(order=("A", "B"), slots={"A": SlotCounter(is_ok=True), "B": SlotCounter(is_ok=False)})
    (work / "grub.cfg").write_text(grub_configuration(start))
    (work / "grubenv").write_bytes(write_block(render_variables(variables)))
    partition = _format(work, size, ["EFI", "EFI/BOOT", "grub"])
    run(["mcopy", "-i", partition, core, f"::/EFI/BOOT/{platform.firmware_file}"])
    run(["mcopy", "-i", partition, work / "grub.cfg", work / "grubenv", _OVERHAUL_CFG, "::/grub"])
    return partition


def make_systemd_boot_partition(work: Path, start: Start, image: Path, *, platform: Platform, size: int) -> Path:
    """Return an image of a partition from which systemd-boot starts slot A with the kernel in the ext4 `image`.

    Raises:
        UnbootableDiskError: The image has no such kernel.
        PartitionTooSmallError: There is no room for another slot's kernel beside this one.
    """
    loader = _SYSTEMD_BOOT / platform.systemd_file
    if not loader.is_file():
        raise LoaderMissingError(file=loader)
    kernel = file_of(image, start.kernel, work / "linux")
    if kernel is None:
        raise UnbootableDiskError(kernel=start.kernel, reason="there is no such file")
    initrd = file_of(image, start.initrd, work / "initrd")
    files = [kernel] if initrd is None else [kernel, initrd]
    needed = 2 * sum(file.stat().st_size for file in files) + _SPARE_BYTES
    if needed > size:
        raise PartitionTooSmallError(size=size, needed=needed)
    (work / "loader.conf").write_text(f"timeout 0\neditor no\ndefault {DEFAULT_PATTERN}\n")
    entry = render_entry("A", version=1, options=start.options, has_initrd=initrd is not None)
    (work / str(EntryName(slot="A"))).write_bytes(entry)
    folders = ["EFI", "EFI/BOOT", "loader", "loader/entries", "overhaul", kernel_directory("A")]
    partition = _format(work, size, folders)
    run(["mcopy", "-i", partition, loader, f"::/EFI/BOOT/{platform.firmware_file}"])
    run(["mcopy", "-i", partition, work / "loader.conf", "::/loader"])
    run(["mcopy", "-i", partition, work / str(EntryName(slot="A")), "::/loader/entries"])
    run(["mcopy", "-i", partition, *files, f"::/{kernel_directory('A')}"])
    return partition


def grub_configuration(start: Start) -> str:
    """Return the grub.cfg of the disk.

    There is no menu: a slot that does not start must not wait for a key, it restarts and so uses up its attempts.
    """
    options = start.options.replace("{slot}", "$overhaul_slot")
    return f"""\
# Starts the slot that overhaul.cfg chooses. Both hold the same labels and UUIDs, so partitions tell them apart.
source $prefix/overhaul.cfg

regexp --set=1:overhaul_disk '^([^,]*),' "$root"
set overhaul_part=gpt2
if [ "$overhaul_slot" = "B" ]; then
  set overhaul_part=gpt3
fi
set root="$overhaul_disk,$overhaul_part"

linux {start.kernel} {options} overhaul.slot=$overhaul_slot
if [ -e {start.initrd} ]; then
  initrd {start.initrd}
fi
boot

echo "Slot $overhaul_slot does not start; trying again."
sleep 5
reboot
"""


def require_grub_reads(disk: Path, kernel: str) -> None:
    """Ask GRUB's own reader for the kernel in slot A of `disk`; its drivers know fewer features than Linux does."""
    try:
        found = run(["grub-fstest", "-r", "loop0,gpt2", disk, "crc", f"(loop0,gpt2){kernel}"])
    except ProgramFailedError as error:
        raise UnbootableDiskError(kernel=kernel, reason=error.stderr_tail or error.reason) from error
    if not found.stdout.strip():
        raise UnbootableDiskError(kernel=kernel, reason="it says nothing")


def _format(work: Path, size: int, folders: Sequence[str]) -> Path:
    partition = work / "esp"
    with partition.open("wb") as stream:
        stream.truncate(size)
    # One sector a cluster: the smallest FAT32 that every firmware takes.
    shape = ["-F", "-c", "1", "-T", str(size // _SECTOR), "-h", "255", "-s", "63", "-v", "ESP"]
    run(["mformat", "-i", partition, *shape, "::"])
    run(["mmd", "-i", partition, *(f"::/{folder}" for folder in folders)])
    return partition


def file_of(image: Path, path: str, target: Path) -> Path | None:
    """Copy the file `path` of an ext4 image to `target`, following links; None when it is not there."""
    for _ in range(_LINKS_MAX):
        if not path.isprintable() or '"' in path:
            return None
        told = run(["debugfs", "-R", f'stat "{path}"', image]).stdout
        kind, link = _TYPE_LINE.search(told), _LINK_LINE.search(told)
        if kind is not None and kind[1] == b"regular":
            run(["debugfs", "-R", f'dump "{path}" {target.name}', image.absolute()], directory=target.parent)
            return target
        if link is None:
            return None
        path = str(Path("/", path).parent / link[1].decode(errors="replace"))
    return None
