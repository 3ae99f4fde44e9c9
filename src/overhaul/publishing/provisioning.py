"""A disk image to flash: boot loader, two slots, and a state partition from which the first check works.

```
GPT
1  esp       FAT32   GRUB or systemd-boot (publishing/boot_partition.py): slot A confirmed, slot B bad
2  root-A            the release's image, assembled and read back as on a device
3  root-B            empty
4  state     ext4    device.toml, root.json, etc (an empty layer for slot A, where configuration is carried over);
                     everything else is made by the device itself
```

Slots are found by partition, since both hold file systems with the same label and UUID. No agent state is written:
the rollout id must be made on each device, or a flashed fleet would stand in one place of every rollout; what runs is
told by `device.toml`, and the device finds the deltas that begin there in the release's published record.

Whether it can boot is not left to the first device: GRUB's own reader is asked for the kernel inside the slot, and for
systemd-boot the kernel is brought to the boot partition.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from overhaul.content.assembler import assemble
from overhaul.content.cache import ContentCache
from overhaul.content.configuration import PublishedConfiguration
from overhaul.content.preparing import Materials
from overhaul.errors import InputError
from overhaul.host.files import sync_directory
from overhaul.host.images import Partition, read_partitions
from overhaul.host.processes import run
from overhaul.install.settings import parse_settings
from overhaul.install.template import Answers, render_template
from overhaul.progress import Progress
from overhaul.publishing.boot_partition import (
    PLATFORMS,
    Loader,
    Start,
    file_of,
    make_grub_partition,
    make_systemd_boot_partition,
    require_grub_reads,
)
from overhaul.publishing.factory_layer import make_factory_layer, require_laying_initrd
from overhaul.publishing.opening import Repository
from overhaul.publishing.policies import check_channel
from overhaul.release.configuration import Configuration
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
    loader: Loader = Loader.GRUB
    kernel: str = "/vmlinuz"
    initrd: str = "/initrd.img"
    kernel_options: str = ""
    #: What becomes of changes in /etc at an update, as in `device.toml`.
    carry: Literal["nothing", "merged"] = "nothing"
    #: Where the image mounts the ESP and the state partition.
    esp_mount: str = "/boot/efi"
    state_mount: str = "/var/lib/overhaul"

    @property
    def start(self) -> Start:
        """What the boot loader starts."""
        more = f" overhaul.state=PARTLABEL={STATE}" if self.carry == "merged" else ""
        more += f" {self.kernel_options}" if self.kernel_options else ""
        return Start(kernel=self.kernel, initrd=self.initrd, options=f"root=PARTLABEL=root-{{slot}} ro panic=10{more}")


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
        UnbootableDiskError: The boot loader would not find the kernel in the slot.
        PartitionTooSmallError: The boot partition has no room for the kernels of two slots.
        NoLayersInInitrdError: Configuration should be carried over, and the initrd would not lay it over /etc.
        ProgramMissingError: sfdisk, mtools, e2fsprogs or GRUB's tools are not installed.
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
        stored = KitFetcher(_StoredFiles(repository.storage))
        assemble(release, Materials(base_url=KIT_URL, fetcher=stored, progress=progress), target=image)
        if request.carry == "merged":
            initrd = file_of(image, request.initrd, work / "looked-into")
            require_laying_initrd(None if initrd is None else initrd.read_bytes(), name=request.initrd)
        _copy_into(disk, partitions["root-A"], image)
        _copy_into(disk, partitions[ESP], _make_esp(work, request, image, sizes[ESP]))
        image.unlink()
        shipped = _shipped(repository, release, work=work) if request.carry == "merged" else None
        state = _make_state(work, files, sizes[STATE], layer=request.carry == "merged", shipped=shipped)
        _copy_into(disk, partitions[STATE], state)
        if request.loader is Loader.GRUB:
            require_grub_reads(disk, request.kernel)
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
    if wanted.arch not in PLATFORMS:
        known = ", ".join(PLATFORMS)
        raise UnprovisionableReleaseError(release=wanted, reason=f"a UEFI loader is made for {known} only")
    if release.image.filesystem != "ext4":
        reason = f"its image is {release.image.filesystem}, and disks are made of ext4 only"
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
        boot_backend=str(request.loader),
        boot_file=f"{request.esp_mount}/grub/grubenv" if request.loader is Loader.GRUB else request.esp_mount,
        boot_kernel=request.kernel,
        boot_initrd=request.initrd,
        boot_options=request.start.options,
        report_url=request.report_url,
        carry=request.carry,
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


def _make_esp(work: Path, request: DiskRequest, image: Path, size: int) -> Path:
    platform = PLATFORMS[request.release.arch]
    if request.loader is Loader.SYSTEMD_BOOT:
        return make_systemd_boot_partition(work, request.start, image, platform=platform, size=size)
    return make_grub_partition(work, request.start, platform=platform, size=size)


def _shipped(repository: Repository, release: Release, *, work: Path) -> Configuration | None:
    """Return what the release has below /etc, where it tells that."""
    if release.configuration is msgspec.UNSET:
        return None
    return PublishedConfiguration(
        release.configuration,
        base_url=KIT_URL,
        fetcher=KitFetcher(_StoredFiles(repository.storage)),
        cache=ContentCache(work / "configuration"),
    ).configuration


def _make_state(
    work: Path, files: Mapping[str, bytes], size: int, *, layer: bool, shipped: Configuration | None
) -> Path:
    folder = work / "state-files"
    folder.mkdir(mode=0o700)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if layer:
        make_factory_layer(folder / "etc", SLOTS[0], shipped)
    image = work / "state"
    # Features that every kernel of the last ten years mounts.
    run(["mke2fs", "-q", "-t", "ext4", "-L", STATE, "-E", "root_owner=0:0", "-d", folder, image, f"{size >> 10}k"])
    # All of it is root's on the device, whoever made the disk.
    names = [path.relative_to(folder) for path in folder.rglob("*")]
    script = "".join(f'sif "/{name}" {field} 0\n' for name in names for field in ("uid", "gid"))
    run(["debugfs", "-w", "-f", "-", image], input_bytes=script.encode())
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
