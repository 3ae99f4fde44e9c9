"""An ordinary OSTree system for a guest: Debian's own, unmodified `ostree-prepare-root` finds its deployment.

Kernel and initramfs lie in the tree, and the boot loader's entries name the deployment. The boot loader itself is
stood in for by `default_entry`, which reads the disk as a boot loader does: without mounting it. The rest is as in
`ostree_guest`; busybox does what systemd does around the programs of the package ostree-boot.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guests.machine import machine_without_loader
from tests.guests.parts import pack_initramfs, put_busybox, put_program, unpack_kernel, unpack_package
from tests.ostree_guest import begin_release, fill_system, switched_on
from tests.tools import need

_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "ext4")
_PREPARE_ROOT, _REMOUNT = "usr/lib/ostree/ostree-prepare-root", "usr/lib/ostree/ostree-remount"
_DISK_MIB = 320
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_EARLY_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
for module in $(cat /modules.list); do insmod /modules/$module; done
until [ -b /dev/vda ]; do sleep 0.1; done
root=$(sed 's/.*root=\\([^ ]*\\).*/\\1/' /proc/cmdline)
mount -t ext4 $(findfs $root) /sysroot
# With systemd a generator of the same package mounts /var later; without it the program is told to.
mkdir /run/ostree
touch /run/ostree/initramfs-mount-var
/usr/lib/ostree/ostree-prepare-root /sysroot > /run/prepared 2>&1 || cat /run/prepared
for place in proc sys dev run; do mount --move /$place /sysroot/$place; done
exec switch_root /sysroot /sbin/init
"""
#: What a device does by itself and by its owner, one start after the other.
_INIT = """#!/bin/sh
export PATH=/usr/bin:/usr/sbin
tell() { echo "GUEST $*"; }
/usr/lib/ostree/ostree-remount || tell "ostree-remount failed with $?"
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
route add default gw 10.0.2.2
start=$(($(cat /var/start 2>/dev/null || echo 0) + 1))
echo $start > /var/start
[ -e /run/ostree-booted ] && booted=yes
tell "start=$start release=$(cat /usr/lib/release) kernel=$(sed 's/.*release=//' /proc/cmdline) booted=$booted"
writable=
for place in /usr /etc /var /sysroot /boot; do
    touch $place/.written 2> /dev/null && rm $place/.written && writable="$writable $place"
done
tell "mine=$(cat /etc/mine 2>/dev/null) home=$(cat /home/kept) writable=$writable"
run() { refkit-ostree-update "$@" > /run/said 2>&1; tell "$1: $? $(tr '\\n' ' ' < /run/said)"; }
case $start in
    1) echo mine > /etc/mine; mkdir -p /var/home; echo kept > /home/kept; run --one-shot ;;
    2) run --confirm; run --rollback ;;
    *) run --one-shot ;;
esac
touch /sysroot/.written 2> /dev/null && tell "/sysroot became writable"
sync
[ $start = 3 ] && tell "end" && poweroff -f
reboot -f
"""


@dataclass(frozen=True, kw_only=True)
class PlainParts:
    """What all releases share."""

    kernel: Path
    modules: tuple[Path, ...]
    #: Busybox, Python and the updater.
    tree: Path
    #: The package ostree-boot, unpacked.
    package: Path


def prepare_plain_parts(directory: Path) -> PlainParts:
    """Put the shared parts together in `directory`."""
    kernel, modules = unpack_kernel(directory / "kernel", _MODULES)
    package = directory / "ostree-boot"
    unpack_package("ostree-boot", package)
    tree = directory / "common"
    fill_system(tree)
    put_program(package / _REMOUNT, tree / _REMOUNT, shared=tree / _LIBRARIES)
    return PlainParts(kernel=kernel, modules=modules, tree=tree, package=package)


def make_plain_release(parts: PlainParts, directory: Path, release: str) -> Path:
    """Return a finished root file system as a build leaves it, with kernel and initramfs in boot."""
    root = directory / f"root-{release}"
    begin_release(root, parts.tree, _INIT, release)
    (root / "boot").mkdir()
    # Another release of the kernel, as far as paths and checksums go.
    shutil.copy(parts.kernel, root / f"boot/vmlinuz-6.{release}")
    _make_initramfs(parts, root / f"boot/initrd.img-6.{release}", directory / "ram", release)
    return root


def make_plain_disk(sysroot: Path, disk: Path) -> None:
    """Write a disk that is one file system with `sysroot` in it."""
    with disk.open("wb") as stream:
        stream.truncate(_DISK_MIB << 20)
    subprocess.run(
        [need("mkfs.ext4"), "-q", "-m", "0", "-L", "root", "-d", sysroot, disk], check=True, capture_output=True
    )


def default_entry(disk: Path) -> dict[str, str]:
    """Return the lines of the boot loader's entry with the highest version; this stands in for a boot loader."""
    listed = _debugfs(disk, "ls -p /boot/loader/entries").decode()
    names = [line.split("/")[5] for line in listed.splitlines() if line.count("/") >= 5]
    texts = [_debugfs(disk, f"cat /boot/loader/entries/{name}").decode() for name in names if name.endswith(".conf")]
    entries = [dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line) for text in texts]
    return max(entries, key=lambda entry: int(entry["version"]))


@contextmanager
def plainly_started(disk: Path, scratch: Path) -> Iterator[Iterator[str]]:
    """Start the machine once with what the boot loader's default entry names; yields what it tells, up to its end."""
    entry = default_entry(disk)
    places = {}
    for key in ("linux", "initrd"):
        places[key] = scratch / key
        places[key].write_bytes(_debugfs(disk, f"cat /boot{entry[key]}"))
    kernel = re.search(r"6\.\d+", Path(entry["linux"]).name)
    assert kernel is not None
    arguments = ["console=ttyS0", "panic=-1", *entry["options"].split(), f"release={kernel[0]}"]
    command = machine_without_loader(
        drive=f"cache=unsafe,file={disk}",
        memory_mib=512,
        kernel=places["linux"],
        initramfs=places["initrd"],
        arguments=arguments,
    )
    with switched_on(command, scratch) as told:
        yield told


def _debugfs(disk: Path, request: str) -> bytes:
    done = subprocess.run([need("debugfs"), "-R", request, disk], check=True, capture_output=True)
    assert b"not found" not in done.stderr, done.stderr.decode()
    return done.stdout


def _make_initramfs(parts: PlainParts, initramfs: Path, ram: Path, release: str) -> None:
    for name in ("run", "sysroot", "bin"):
        (ram / name).mkdir(parents=True)
    put_busybox(ram / "bin")
    put_program(parts.package / _PREPARE_ROOT, ram / _PREPARE_ROOT, shared=ram / _LIBRARIES)
    # Where the program looks for its interpreter.
    (ram / "lib64").symlink_to(_LIBRARIES)
    (ram / "release").write_text(release)
    archive = pack_initramfs(ram, parts.modules, _EARLY_INIT)
    packed = subprocess.run([need("gzip"), "-1n"], input=archive, check=True, capture_output=True)
    initramfs.write_bytes(packed.stdout)
    shutil.rmtree(ram)
