"""A disk image to flash: boot loader, two slots, and a state partition from which the first check works.

```
GPT
1  esp       FAT32   EFI/BOOT/BOOTX64.EFI   GRUB, found by the firmware without any entry of its own
                     grub/grub.cfg          starts what the script chose, by the number of its partition
                     grub/overhaul.cfg      the counting of attempts (install/overhaul.cfg)
                     grub/grubenv           slot A confirmed, slot B bad
2  root-A            the release's image, assembled and read back as on a device
3  root-B            empty
4  state     ext4    device.toml, root.json; everything else is made by the device itself
```

Slots are found by partition, since both hold file systems with the same label and UUID. No agent state is written:
the rollout id must be made on each device, or a flashed fleet would stand in one place of every rollout; what runs is
told by `device.toml`, and the device finds the deltas that begin there in the release's published record.

Whether it can boot is not left to the first device: GRUB's own reader is asked for the kernel inside the slot.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.assembler import assemble
from overhaul.errors import InputError, OperatorError
from overhaul.host.files import sync_directory
from overhaul.host.images import Partition, read_partitions
from overhaul.host.processes import ProgramFailedError, run
from overhaul.install.countdown import BootVariables, SlotCounter
from overhaul.install.envblock import write_block
from overhaul.install.grub import render_variables
from overhaul.install.settings import parse_settings
from overhaul.install.template import Answers, render_template
from overhaul.progress import Progress
from overhaul.publishing.opening import Repository
from overhaul.publishing.policies import check_channel
from overhaul.release.record import Release, ReleaseId
from overhaul.repository.layout import public_key
from overhaul.repository.signed import check_trusted, read_public
from overhaul.repository.storage import Storage
from overhaul.transfer.kit import KIT_URL, KitFetcher
from overhaul.trust import roles
from overhaul.trust.layout import metadata_key

SLOTS = ("A", "B")
ESP, STATE = "esp", "state"
_MIB = 1 << 20
_SECTOR = 512
_READ_BYTES = 4 << 20
#: FAT32 begins at 65 525 clusters; below this size the firmware would meet FAT16.
ESP_SIZE_MIN = 36 * _MIB
_ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_LINUX_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
_GRUB_MODULES = (
    "part_gpt", "fat", "ext2", "normal", "configfile", "linux", "loadenv", "regexp", "test", "eval", "echo", "sleep",
    "reboot", "gzio", "all_video", "serial", "terminal", "boot",
)  # fmt: skip
#: Architecture -> (GRUB's platform, the name the firmware looks for).
_PLATFORMS = {
    "x86_64": ("x86_64-efi", "BOOTX64.EFI"),
    "amd64": ("x86_64-efi", "BOOTX64.EFI"),
    "aarch64": ("arm64-efi", "BOOTAA64.EFI"),
    "arm64": ("arm64-efi", "BOOTAA64.EFI"),
}
_OVERHAUL_CFG = Path(__file__).parent.parent / "install/overhaul.cfg"


class DiskExistsError(InputError):
    """There is something where the disk image should go."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} exists already; say --force to write it anew, or name another file.")


class UnprovisionableReleaseError(InputError):
    """A release from which no disk can be made."""

    def __init__(self, *, release: ReleaseId, reason: str) -> None:
        self.release = release
        self.reason = reason
        super().__init__(f"No disk can be made of {release}: {reason}.")


class UnbootableDiskError(OperatorError):
    """GRUB does not find what it should start."""

    def __init__(self, *, kernel: str, reason: str) -> None:
        self.kernel = kernel
        self.reason = reason
        super().__init__(
            f"GRUB cannot read {kernel} in the slot ({reason}), so the disk would not boot; name the kernel with "
            "--kernel, or make the image with file-system features that GRUB knows."
        )


@dataclass(frozen=True, kw_only=True)
class DiskRequest:
    """What the disk should be. Paths are those inside the image, as seen on the device."""

    release: ReleaseId
    channel: str
    urls: tuple[str, ...]
    allow_http: bool = False
    report_url: str = ""
    #: Bytes; None: a quarter more than the image, to whole MiB.
    slot_size: int | None = None
    esp_size: int = 64 * _MIB
    state_size: int = 64 * _MIB
    kernel: str = "/vmlinuz"
    initrd: str = "/initrd.img"
    kernel_options: str = ""
    #: Where the image mounts the ESP and the state partition.
    esp_mount: str = "/boot/efi"
    state_mount: str = "/var/lib/overhaul"


@dataclass(frozen=True, kw_only=True)
class ProvisionedDisk:
    """What was written."""

    path: str
    release: ReleaseId
    size: int
    #: Partition name -> (offset, size) in bytes.
    partitions: Mapping[str, tuple[int, int]]


def provision_disk(
    repository: Repository, path: Path, request: DiskRequest, *, force: bool, progress: Progress
) -> ProvisionedDisk:
    """Write a disk image to `path`; it has that name only when it is whole and was looked through.

    Raises:
        DiskExistsError: There is one, and `force` was not said.
        UnprovisionableReleaseError: The release is not published, too large, or for a machine without this loader.
        UnbootableDiskError: GRUB does not read the kernel in the slot.
        ProgramMissingError: sfdisk, mtools, mke2fs or GRUB's tools are not installed.
    """
    if os.path.lexists(path) and not (force and path.is_file()):
        raise DiskExistsError(path=path)
    check_channel(repository, request.release.product, request.channel)
    release, root = _published(repository, request.release)
    sizes = _sizes(request, release)
    files = _state_files(request, root)
    # Beside the final name, so that the finished disk is only renamed.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.absolute().parent) as name:
        work = Path(name)
        disk = work / "disk"
        partitions = _partition(disk, sizes)
        image = work / "slot"
        with image.open("wb") as stream:
            stream.truncate(release.image.size)
        assemble(
            release,
            base_url=KIT_URL,
            fetcher=KitFetcher(_StoredFiles(repository.storage)),
            target=image,
            progress=progress,
        )
        _copy_into(disk, partitions["root-A"], image)
        image.unlink()
        _copy_into(disk, partitions[ESP], _make_esp(work, request, sizes[ESP]))
        _copy_into(disk, partitions[STATE], _make_state(work, files, sizes[STATE]))
        _require_bootable(disk, request)
        with disk.open("rb") as stream:
            os.fsync(stream.fileno())
        disk.chmod(0o644)
        disk.replace(path)
    sync_directory(path.absolute().parent)
    return ProvisionedDisk(
        path=str(path),
        release=release.id,
        size=path.stat().st_size,
        partitions={name: (one.offset, one.size) for name, one in partitions.items()},
    )


def _published(repository: Repository, wanted: ReleaseId) -> tuple[Release, bytes]:
    """Return the signed record and the newest root."""
    published = repository.published()
    check_trusted(published)
    release = published.release(wanted)
    if release is None:
        raise UnprovisionableReleaseError(release=wanted, reason="it is not published; see `overhaul release list`")
    if wanted.arch not in _PLATFORMS:
        known = ", ".join(_PLATFORMS)
        raise UnprovisionableReleaseError(release=wanted, reason=f"a UEFI loader is made for {known} only")
    if release.image.filesystem != "ext4":
        reason = f"its image is {release.image.filesystem}, and GRUB is set up for ext4"
        raise UnprovisionableReleaseError(release=wanted, reason=reason)
    root = read_public(repository.storage, metadata_key(roles.ROOT, published.report.roles[roles.ROOT][0]))
    if root is None:
        raise AssertionError("verified metadata is there")
    return release, root


def _sizes(request: DiskRequest, release: Release) -> dict[str, int]:
    needed = release.image.size
    slot = _whole_mib(needed + needed // 4) if request.slot_size is None else _whole_mib(request.slot_size)
    if slot < needed:
        raise UnprovisionableReleaseError(
            release=release.id, reason=f"its image has {needed} bytes, and a slot of {slot} was asked for"
        )
    if request.esp_size < ESP_SIZE_MIN:
        raise UnprovisionableReleaseError(
            release=release.id, reason=f"an ESP needs {ESP_SIZE_MIN // _MIB} MiB to be FAT32"
        )
    return {
        ESP: _whole_mib(request.esp_size),
        "root-A": slot,
        "root-B": slot,
        STATE: _whole_mib(request.state_size),
    }


def _whole_mib(size: int) -> int:
    return -(-size // _MIB) * _MIB


def _state_files(request: DiskRequest, root: bytes) -> dict[str, bytes]:
    """Return what the state partition begins with; the configuration is parsed as the device will."""
    identity = request.release
    answers = Answers(
        product=identity.product,
        variant=identity.variant,
        arch=identity.arch,
        channel=request.channel,
        version=identity.version,
        build_id=identity.build_id,
        urls=request.urls,
        allow_http=request.allow_http,
        slots={slot: f"/dev/disk/by-partlabel/root-{slot}" for slot in SLOTS},
        root_metadata=f"{request.state_mount}/root.json",
        state_directory=request.state_mount,
        boot_backend="grub",
        boot_file=f"{request.esp_mount}/grub/grubenv",
        report_url=request.report_url,
    )
    text = render_template(answers).encode()
    parse_settings(text, Path(request.state_mount) / "device.toml")
    return {"device.toml": text, "root.json": root}


def _partition(disk: Path, sizes: Mapping[str, int]) -> dict[str, Partition]:
    with disk.open("wb") as stream:
        # The first MiB, and one for the second table behind the last partition.
        stream.truncate(sum(sizes.values()) + 2 * _MIB)
    lines = ["label: gpt", "first-lba: 2048"]
    for name, size in sizes.items():
        kind = _ESP_TYPE if name == ESP else _LINUX_TYPE
        lines.append(f'size={size // _SECTOR}, type={kind}, name="{name}"')
    run(["sfdisk", "--quiet", disk], input_bytes="\n".join([*lines, ""]).encode())
    return dict(zip(sizes, read_partitions(disk), strict=True))


def _make_esp(work: Path, request: DiskRequest, size: int) -> Path:
    platform, loader = _PLATFORMS[request.release.arch]
    core = work / loader
    run(["grub-mkimage", "-O", platform, "-p", "/grub", "-o", core, *_GRUB_MODULES])
    variables = BootVariables(order=SLOTS, slots={"A": SlotCounter(is_ok=True), "B": SlotCounter(is_ok=False)})
    (work / "grub.cfg").write_text(grub_configuration(request))
    (work / "grubenv").write_bytes(write_block(render_variables(variables)))
    esp = work / "esp"
    with esp.open("wb") as stream:
        stream.truncate(size)
    # One sector a cluster: the smallest FAT32 that every firmware takes.
    run(["mformat", "-i", esp, "-F", "-c", "1", "-T", str(size // _SECTOR), "-h", "255", "-s", "63", "-v", "ESP", "::"])
    run(["mmd", "-i", esp, "::/EFI", "::/EFI/BOOT", "::/grub"])
    run(["mcopy", "-i", esp, core, f"::/EFI/BOOT/{loader}"])
    run(["mcopy", "-i", esp, work / "grub.cfg", work / "grubenv", _OVERHAUL_CFG, "::/grub"])
    return esp


def grub_configuration(request: DiskRequest) -> str:
    """Return the grub.cfg of the disk.

    There is no menu: a slot that does not start must not wait for a key, it restarts and so uses up its attempts.
    """
    options = f" {request.kernel_options}" if request.kernel_options else ""
    return f"""\
# Starts the slot that overhaul.cfg chooses. Both hold the same labels and UUIDs, so partitions tell them apart.
source $prefix/overhaul.cfg

regexp --set=1:overhaul_disk '^([^,]*),' "$root"
set overhaul_part=gpt2
if [ "$overhaul_slot" = "B" ]; then
  set overhaul_part=gpt3
fi
set root="$overhaul_disk,$overhaul_part"

linux {request.kernel} root=PARTLABEL=root-$overhaul_slot ro overhaul.slot=$overhaul_slot panic=10{options}
if [ -e {request.initrd} ]; then
  initrd {request.initrd}
fi
boot

echo "Slot $overhaul_slot does not start; trying again."
sleep 5
reboot
"""


def _make_state(work: Path, files: Mapping[str, bytes], size: int) -> Path:
    folder = work / "state-files"
    folder.mkdir(mode=0o700)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    image = work / "state"
    # Features that every kernel of the last ten years mounts.
    run(["mke2fs", "-q", "-t", "ext4", "-L", STATE, "-E", "root_owner=0:0", "-d", folder, image, f"{size >> 10}k"])
    return image


def _copy_into(disk: Path, partition: Partition, image: Path) -> None:
    """Copy the data of a sparse file into a partition, and leave its holes holes."""
    with image.open("rb") as reader, disk.open("r+b") as writer:
        for start, end in _data_extents(reader.fileno()):
            for position in range(start, end, _READ_BYTES):
                piece = os.pread(reader.fileno(), min(_READ_BYTES, end - position), position)
                os.pwrite(writer.fileno(), piece, partition.offset + position)


def _data_extents(descriptor: int) -> Iterator[tuple[int, int]]:
    size = os.fstat(descriptor).st_size
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError:
            # Only a hole is left.
            return
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


def _require_bootable(disk: Path, request: DiskRequest) -> None:
    """Ask GRUB's own reader for the kernel; its drivers know fewer features than Linux does."""
    try:
        found = run(["grub-fstest", "-r", "loop0,gpt2", disk, "crc", f"(loop0,gpt2){request.kernel}"])
    except ProgramFailedError as error:
        raise UnbootableDiskError(kernel=request.kernel, reason=error.stderr_tail or error.reason) from error
    if not found.stdout.strip():
        raise UnbootableDiskError(kernel=request.kernel, reason="it says nothing")


class _StoredFiles:
    """The public tree of a storage, as files that `KitFetcher` serves."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.path = Path(storage.place)

    def size(self, name: str) -> int | None:
        found = self._storage.stat(public_key(name))
        return None if found is None else found.size

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        for position in range(start, end, _READ_BYTES):
            yield self._storage.read(public_key(name), start=position, end=min(end, position + _READ_BYTES))

    def names(self, prefix: str) -> list[str]:
        listed = self._storage.list_objects(public_key(prefix))
        return [one.key.removeprefix(public_key("")) for one in listed]
