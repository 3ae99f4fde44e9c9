"""Provisioned disks, looked at by the real tools, and booted by real firmware and GRUB when that is asked for.

`OVERHAUL_GUEST_TESTS=1` boots one in a guest without acceleration: about half a minute a boot.
"""

import json
import os
import re
import shutil
import subprocess
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
from overhaul.install.countdown import BootVariables, SlotCounter, with_trial
from overhaul.install.envblock import read_block, write_block
from overhaul.install.grub import parse_variables, render_variables
from overhaul.install.settings import load_settings
from overhaul.policy.selection import Offer, UpToDate
from overhaul.progress import Silence
from overhaul.publishing.provisioning import (
    DiskExistsError,
    DiskRequest,
    ProvisionedDisk,
    UnbootableDiskError,
    UnprovisionableReleaseError,
    grub_configuration,
    provision_disk,
)

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
    (tmp_path / "grub.cfg").write_text(grub_configuration(replace(REQUEST, kernel_options="console=ttyS0")))
    subprocess.run([need("grub-script-check"), tmp_path / "grub.cfg"], check=True, capture_output=True)


# A guest --------------------------------------------------------------------------------------------------------

GUEST_INIT = """#!/bin/sh
# Finds the root partition by its label as any initramfs does, tells what the device would see, and switches off.
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules.list); do insmod /modules/$module; done
place() { for u in /sys/class/block/*/uevent; do grep -q "^PARTNAME=$1$" $u && basename $(dirname $u); done; }
label=$(sed 's/.*root=PARTLABEL=\\([^ ]*\\).*/\\1/' /proc/cmdline)
mkdir -p /root /state /esp
mount -o ro /dev/$(place $label) /root && mount -o ro /dev/$(place state) /state
echo "GUEST slot=$(sed 's/.*overhaul.slot=\\([^ ]*\\).*/\\1/' /proc/cmdline) root=$label release=$(cat /root/release)"
echo "GUEST config=$(grep -c '^product' /state/device.toml) anchor=$(wc -c < /state/root.json)"
echo "GUEST end"
poweroff -f
"""


@pytest.fixture(scope="module")
def guest_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if os.environ.get("OVERHAUL_GUEST_TESTS") != "1":
        pytest.skip("boots a guest without acceleration; set OVERHAUL_GUEST_TESTS=1 to run it")
    directory = tmp_path_factory.mktemp("guest")
    tree, ram = directory / "tree", directory / "ram"
    busybox = need_file(Path("/bin/busybox"), package="busybox-static")
    shown = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], check=True, capture_output=True, text=True
    )
    package = re.search(r"Depends: (linux-image-\S+)", shown.stdout)
    assert package is not None
    subprocess.run(["apt-get", "download", "-qq", package[1]], cwd=directory, check=True, capture_output=True)
    (archive,) = directory.glob("*.deb")
    subprocess.run(["dpkg", "-x", archive, directory / "kernel"], check=True)
    (modules,) = (directory / "kernel/lib/modules").iterdir()
    subprocess.run([need("depmod"), "-b", directory / "kernel", modules.name], check=True)
    command = [need("modprobe"), "-d", str(directory / "kernel"), "-S", modules.name, "--show-depends", "-a"]
    listed = subprocess.run([*command, "virtio_pci", "virtio_blk"], check=True, capture_output=True, text=True)
    wanted = list(dict.fromkeys(line.split()[1] for line in listed.stdout.splitlines() if line.startswith("insmod")))
    for folder in ("bin", "dev", "proc", "sys", "modules"):
        (ram / folder).mkdir(parents=True)
    shutil.copy(busybox, ram / "bin/busybox")
    (ram / "bin/sh").symlink_to("busybox")
    for module in wanted:
        shutil.copy(module, ram / "modules")
    (ram / "modules.list").write_text(" ".join(Path(module).name for module in wanted))
    (ram / "init").write_text(GUEST_INIT)
    (ram / "init").chmod(0o755)
    tree.mkdir()
    (kernel,) = (directory / "kernel/boot").glob("vmlinuz-*")
    shutil.copy(kernel, tree / "vmlinuz")
    names = "\n".join(str(path.relative_to(ram)) for path in sorted(ram.rglob("*")))
    packed = subprocess.run(
        [need("cpio"), "-o", "-H", "newc", "--quiet"], cwd=ram, input=names.encode(), check=True, capture_output=True
    )
    (tree / "initrd.img").write_bytes(packed.stdout)
    return tree


def boot(disk: Path, variables: Path) -> list[str]:
    """Start a guest from `disk` and return the lines it told."""
    done = subprocess.run(
        [need("qemu-system-x86_64"), "-accel", "tcg,thread=multi", "-machine", "q35", "-smp", "1", "-m", "512",
         "-display", "none", "-serial", "stdio", "-no-reboot", "-nic", "none",
         "-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd",
         "-drive", f"if=pflash,format=raw,file={variables}", "-drive", f"if=virtio,format=raw,file={disk}"],
        stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=240,
    )  # fmt: skip
    said = done.stdout.decode(errors="replace").replace("\r", "")
    lines = re.findall(r"GUEST (.*)", said)
    assert "end" in lines, said[-3000:]
    return lines


def test_a_guest_boots_the_disk_tries_the_other_slot_and_falls_back(guest_tree: Path, tmp_path: Path) -> None:
    need_file(Path("/usr/share/OVMF/OVMF_CODE.fd"), package="ovmf")
    repository = RealRepository(tmp_path / "repository")
    images = {}
    for version in ("1.0", "2.0"):
        (guest_tree / "release").write_text(version)
        images[version] = ext4(tmp_path, guest_tree, version, mib=48)
        repository.publish(images[version], version)
    disk = tmp_path / "disk.img"
    made = provision(repository, disk, replace(REQUEST, kernel_options="console=ttyS0 quiet"))
    shutil.copy("/usr/share/OVMF/OVMF_VARS.fd", tmp_path / "vars.fd")
    lines = boot(disk, tmp_path / "vars.fd")
    assert lines[0] == "slot=A root=root-A release=1.0"
    assert lines[1] == f"config=1 anchor={repository.root.stat().st_size}"

    # What an update does: the image in slot B, one attempt for it.
    with disk.open("r+b") as stream:
        os.pwrite(stream.fileno(), images["2.0"].read_bytes(), made.partitions["root-B"][0])
    before = parse_variables(read_block(on_esp(disk, made, "/grub/grubenv")), ("A", "B"))
    (tmp_path / "grubenv").write_bytes(write_block(render_variables(with_trial(before, "B", attempts=1))))
    place = f"{disk}@@{made.partitions['esp'][0]}"
    subprocess.run([need("mcopy"), "-o", "-i", place, tmp_path / "grubenv", "::/grub/grubenv"], check=True)
    assert boot(disk, tmp_path / "vars.fd")[0] == "slot=B root=root-B release=2.0"
    # The attempt was counted durably, and nobody confirmed it.
    after = parse_variables(read_block(on_esp(disk, made, "/grub/grubenv")), ("A", "B"))
    assert after.slots["B"] == SlotCounter(is_ok=False, attempts_left=0)
    assert boot(disk, tmp_path / "vars.fd")[0] == "slot=A root=root-A release=1.0"
