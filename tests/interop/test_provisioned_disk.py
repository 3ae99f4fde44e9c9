"""Provisioned disks, looked at by the real tools; tests/guests starts them with real firmware and boot loaders."""

import bz2
import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fleet import RealRepository, release_id
from tests.loopback import serving
from tests.tools import need, need_file

from overhaul.agent.checking import check
from overhaul.agent.outcomes import Updated
from overhaul.agent.updating import update
from overhaul.agent.wiring import open_device
from overhaul.install.configuration.layers import Layers
from overhaul.install.countdown import BootVariables, SlotCounter, parse_variables
from overhaul.install.envblock import read_block
from overhaul.install.settings import load_settings, parse_settings
from overhaul.policy.selection import Offer, UpToDate
from overhaul.progress import Silence
from overhaul.publishing.boot_partition import (
    Loader,
    PartitionTooSmallError,
    UnbootableDiskError,
    grub_configuration,
)
from overhaul.publishing.factory_layer import NoLayersInInitrdError
from overhaul.publishing.provisioning import (
    DiskExistsError,
    DiskRequest,
    ProvisionedDisk,
    UnprovisionableReleaseError,
    provision_disk,
)
from overhaul.release.configuration import decode_configuration

IMAGE_MIB = 8


def ext4(directory: Path, tree: Path, name: str, *, mib: int = IMAGE_MIB, features: str = "none") -> Path:
    """Make a root file system of a directory."""
    image = directory / f"{name}.ext4"
    extra = [] if features == "none" else ["-O", features]
    command = [need("mkfs.ext4"), "-q", "-b", "4096", *extra, "-d", str(tree), str(image), f"{mib}M"]
    subprocess.run(command, check=True, capture_output=True)
    return image


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> RealRepository:
    directory = tmp_path_factory.mktemp("repository")
    made = RealRepository(directory / "repository")
    tree = directory / "tree"
    tree.mkdir()
    (tree / "vmlinuz").write_bytes(b"a kernel, to everybody but a processor" * 1000)
    made.publish(ext4(directory, tree, "1.0"), "1.0")
    return made


REQUEST = DiskRequest(
    release=release_id("1.0"), channel="stable", urls=("https://updates.example.com",), esp_size=36 << 20,
    state_size=8 << 20,
)  # fmt: skip


def provision(repository: RealRepository, path: Path, request: DiskRequest = REQUEST) -> ProvisionedDisk:
    for program in ("sfdisk", "mcopy", "grub-mkimage", "grub-fstest", "mkfs.ext4"):
        need(program)
    need_file(Path("/usr/lib/grub/x86_64-efi/normal.mod"), package="grub-efi-amd64-bin")
    need_file(Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi"), package="systemd-boot-efi")
    return provision_disk(repository.opened, path, request, force=False, progress=Silence())


def part(disk: Path, made: ProvisionedDisk, name: str) -> bytes:
    offset, size = made.partitions[name]
    with disk.open("rb") as stream:
        return os.pread(stream.fileno(), size, offset)


def on_esp(disk: Path, made: ProvisionedDisk, name: str) -> bytes:
    command = [need("mcopy"), "-n", "-i", f"{disk}@@{made.partitions['esp'][0]}", f"::{name}", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def test_the_disk_is_what_sfdisk_mtools_and_debugfs_say(repository: RealRepository, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    made = provision(repository, disk)
    shown = subprocess.run([need("sfdisk"), "--json", disk], check=True, capture_output=True)
    table = json.loads(shown.stdout)["partitiontable"]
    assert [one["name"] for one in table["partitions"]] == ["esp", "root-A", "root-B", "state"]
    assert table["partitions"][0]["type"] == "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
    assert [(one["start"] * 512, one["size"] * 512) for one in table["partitions"]] == list(made.partitions.values())
    assert subprocess.run(["sfdisk", "--verify", disk], capture_output=True, check=False).returncode == 0

    image = (repository.directory.parent / "1.0.ext4").read_bytes()
    assert part(disk, made, "root-A")[: len(image)] == image
    assert not any(part(disk, made, "root-B"))

    assert on_esp(disk, made, "/EFI/BOOT/BOOTX64.EFI")[:2] == b"MZ"
    variables = parse_variables(read_block(on_esp(disk, made, "/grub/grubenv")), ("A", "B"))
    assert variables == BootVariables(
        order=("A", "B"), slots={"A": SlotCounter(is_ok=True), "B": SlotCounter(is_ok=False)}
    )

    state = tmp_path / "state.ext4"
    state.write_bytes(part(disk, made, "state"))
    assert subprocess.run(["e2fsck", "-fn", state], capture_output=True, check=False).returncode == 0
    listed = subprocess.run([need("debugfs"), "-R", "ls -p /", state], check=True, capture_output=True, text=True)
    assert {"device.toml", "root.json"} <= set(re.findall(r"[\w.]+", listed.stdout))
    # The disk is sparse, and nothing was left beside it.
    assert disk.stat().st_blocks * 512 < made.size / 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk.img", "state.ext4"]


def test_the_first_check_and_update_of_a_provisioned_device_work(repository: RealRepository, tmp_path: Path) -> None:
    own = repository.copy(tmp_path / "repository")
    with serving(own.public) as server:
        disk = tmp_path / "disk.img"
        made = provision(own, disk, replace(REQUEST, urls=(server.url,), allow_http=True))
        device = tmp_path / "device"
        device.mkdir()
        (tmp_path / "state.ext4").write_bytes(part(disk, made, "state"))
        subprocess.run(
            [need("debugfs"), "-R", f"rdump / {device}", tmp_path / "state.ext4"], check=True, capture_output=True
        )
        for slot in "AB":
            (device / slot).write_bytes(part(disk, made, f"root-{slot}"))
        # Only places are other ones here, and the boot loader is a file.
        text = (device / "device.toml").read_text()
        for old, new in {
            "/var/lib/overhaul/root.json": "root.json",
            '"/var/lib/overhaul"': '"."',
            "/dev/disk/by-partlabel/root-": "",
            '"grub"\n': '"file"\n',
            "/boot/efi/grub/grubenv": "boot.json",
        }.items():
            assert old in text
            text = text.replace(old, new)
        (device / "device.toml").write_text(text)
        opened = open_device(load_settings(device / "device.toml"))
        assert isinstance(check(opened).decision, UpToDate)
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "vmlinuz").write_bytes(b"another kernel" * 1000)
        own.publish(ext4(tmp_path, tree, "2.0"), "2.0")
        assert isinstance(check(opened).decision, Offer)
        done = update(opened, progress=Silence())
        assert isinstance(done, Updated)
        # What the factory wrote is found among the published releases, so a delta from it can be used.
        assert done.way == "delta"


def test_two_disks_share_no_place_in_rollouts(repository: RealRepository, tmp_path: Path) -> None:
    made = provision(repository, tmp_path / "disk.img")
    assert b"rollout_id" not in part(tmp_path / "disk.img", made, "state")


def test_a_disk_that_could_not_boot_is_not_made(repository: RealRepository, tmp_path: Path) -> None:
    for kernel in ("/boot/bzImage", "/lost+found"):
        with pytest.raises(UnbootableDiskError, match=re.escape(kernel)):
            provision(repository, tmp_path / "disk.img", replace(REQUEST, kernel=kernel))
    with pytest.raises(UnprovisionableReleaseError, match="not published"):
        provision(repository, tmp_path / "disk.img", replace(REQUEST, release=release_id("9.9")))
    with pytest.raises(UnprovisionableReleaseError, match="slot of"):
        provision(repository, tmp_path / "disk.img", replace(REQUEST, slot_size=1 << 20))
    with pytest.raises(UnprovisionableReleaseError, match="FAT32"):
        provision(repository, tmp_path / "disk.img", replace(REQUEST, esp_size=1 << 20))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_force_is_said(repository: RealRepository, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"precious")
    with pytest.raises(DiskExistsError):
        provision(repository, tmp_path / "disk.img")
    assert (tmp_path / "disk.img").read_bytes() == b"precious"
    provision_disk(repository.opened, tmp_path / "disk.img", REQUEST, force=True, progress=Silence())
    assert (tmp_path / "disk.img").stat().st_size > 1 << 20


def test_grub_takes_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "grub.cfg").write_text(grub_configuration(replace(REQUEST, kernel_options="console=ttyS0").start))
    subprocess.run([need("grub-script-check"), tmp_path / "grub.cfg"], check=True, capture_output=True)


def test_a_disk_for_systemd_boot_has_the_kernel_where_it_can_be_read(tmp_path: Path) -> None:
    own = RealRepository(tmp_path / "repository")
    tree = tmp_path / "tree"
    (tree / "boot").mkdir(parents=True)
    kernel = b"a kernel behind a link" * 1000
    (tree / "boot/vmlinuz-6.1").write_bytes(kernel)
    (tree / "vmlinuz").symlink_to("boot/vmlinuz-6.1")
    own.publish(ext4(tmp_path, tree, "1.0"), "1.0")
    request = replace(REQUEST, loader=Loader.SYSTEMD_BOOT, kernel_options="quiet")
    made = provision(own, tmp_path / "disk.img", request)
    assert on_esp(tmp_path / "disk.img", made, "/EFI/BOOT/BOOTX64.EFI")[:2] == b"MZ"
    assert on_esp(tmp_path / "disk.img", made, "/overhaul/A/linux") == kernel
    assert b"\ndefault overhaul-*\n" in on_esp(tmp_path / "disk.img", made, "/loader/loader.conf")
    entry = on_esp(tmp_path / "disk.img", made, "/loader/entries/overhaul-A.conf").decode()
    assert entry.startswith("\nlinux /overhaul/A/linux\n")
    assert entry.endswith("options root=PARTLABEL=root-A ro panic=10 quiet overhaul.slot=A\n")
    assert "initrd" not in entry
    with pytest.raises(UnbootableDiskError, match="/bzImage"):
        provision(own, tmp_path / "other.img", replace(request, kernel="/bzImage"))
    (tree / "initrd.img").write_bytes(bytes(20 << 20))
    own.publish(ext4(tmp_path, tree, "2.0", mib=32), "2.0")
    with pytest.raises(PartitionTooSmallError, match="--esp-size 45M"):
        provision(own, tmp_path / "other.img", replace(request, release=release_id("2.0")))


def archive(directory: Path, name: str) -> bytes:
    """Return an initial RAM file system that holds one file."""
    (place := directory / name).parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"#!/bin/sh\n")
    command = [need("cpio"), "-o", "-H", "newc", "--quiet"]
    return subprocess.run(command, cwd=directory, input=name.encode(), check=True, capture_output=True).stdout


def publish_with_initrd(repository: RealRepository, directory: Path, initrd: bytes | None) -> None:
    """Publish a release with something in /etc, and this initrd."""
    tree = directory / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/motd").write_text("shipped\n")
    (tree / "vmlinuz").write_bytes(b"a kernel" * 1000)
    if initrd is not None:
        (tree / "initrd.img").write_bytes(initrd)
    repository.publish(ext4(directory, tree, "2.0"), "2.0")


@pytest.mark.parametrize("loader", list(Loader))
@pytest.mark.parametrize("pack", ["gzip", "zstd", "none"])
def test_a_disk_that_carries_configuration_over_begins_with_an_empty_layer(
    repository: RealRepository, tmp_path: Path, loader: Loader, pack: str
) -> None:
    own = repository.copy(tmp_path / "repository")
    initrd = archive(tmp_path / "initrd", "usr/lib/overhaul/overhaul-mount-etc")
    if pack != "none":
        initrd = subprocess.run([need(pack), "-c"], input=initrd, check=True, capture_output=True).stdout
    publish_with_initrd(own, tmp_path, initrd)
    disk = tmp_path / "disk.img"
    made = provision(own, disk, replace(REQUEST, release=release_id("2.0"), carry="merged", loader=loader))

    state = tmp_path / "state.ext4"
    state.write_bytes(part(disk, made, "state"))
    (unpacked := tmp_path / "state").mkdir()
    subprocess.run([need("debugfs"), "-R", f"rdump / {unpacked}", state], check=True, capture_output=True)
    layers = Layers(unpacked / "etc")
    upper = layers.upper("A")
    assert upper is not None
    assert (list(upper.iterdir()), stat.S_IMODE(upper.stat().st_mode)) == ([], 0o755)
    assert upper.with_name("work").is_dir()
    assert layers.upper("B") is None
    shipped = layers.shipped("A")
    assert shipped is not None
    assert decode_configuration(shipped).nodes[b"motd"].sha256 == hashlib.sha256(b"shipped\n").digest()

    settings = parse_settings((unpacked / "device.toml").read_bytes(), Path("/var/lib/overhaul/device.toml"))
    assert settings.configuration.carry == "merged"
    place = "/grub/grub.cfg" if loader is Loader.GRUB else "/loader/entries/overhaul-A.conf"
    assert b" overhaul.state=PARTLABEL=state" in on_esp(disk, made, place)
    # So it stays in the entries that the device writes.
    if loader is Loader.SYSTEMD_BOOT:
        assert "overhaul.state=PARTLABEL=state" in settings.boot.options


def test_the_state_partition_is_roots_whoever_made_the_disk(repository: RealRepository, tmp_path: Path) -> None:
    own = repository.copy(tmp_path / "repository")
    publish_with_initrd(own, tmp_path, archive(tmp_path / "initrd", "usr/lib/overhaul/overhaul-mount-etc"))
    disk = tmp_path / "disk.img"
    # In a name space of its own without a mapping everything belongs to nobody, as 65534.
    words = [
        "provision", "weather/lite/amd64/2.0/b2.0", str(disk), "--repository", str(own.directory),
        "--channel", "stable", "--url", "https://updates.example.com", "--carry", "merged", "--json",
    ]  # fmt: skip
    command = [need("unshare"), "--user", sys.executable, "-m", "overhaul", *words]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    offset = json.loads(shown.stdout)["partitions"]["state"][0]

    for name in ("/device.toml", "/root.json", "/etc", "/etc/A.factory", "/etc/A.factory/upper", "/etc/A.factory/work"):
        told = subprocess.run(
            [need("debugfs"), "-R", f"stat {name}", f"{disk}?offset={offset}"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert re.search(r"User:\s+0\s+Group:\s+0\s", told.stdout), told.stdout


@pytest.mark.parametrize(
    ("name", "pack", "reason"),
    [
        (None, "none", "no such file"),
        ("init", "none", "overhaul-mount-etc is not in it"),
        ("usr/lib/overhaul/overhaul-mount-etc", "bzip2", "no archive"),
    ],
)
def test_configuration_is_not_promised_where_the_initrd_would_not_lay_it(
    repository: RealRepository, tmp_path: Path, name: str | None, pack: str, reason: str
) -> None:
    own = repository.copy(tmp_path / "repository")
    initrd = None if name is None else archive(tmp_path / "initrd", name)
    if pack == "bzip2" and initrd is not None:
        initrd = bz2.compress(initrd)
    publish_with_initrd(own, tmp_path, initrd)
    disk = tmp_path / "disk.img"

    with pytest.raises(NoLayersInInitrdError, match=rf"/initrd\.img.*{reason}.*deploy/configuration"):
        provision(own, disk, replace(REQUEST, release=release_id("2.0"), carry="merged"))

    assert not disk.exists()
