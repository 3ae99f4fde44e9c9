"""A small refkit system for a guest: kernel, initramfs and command line in one UEFI application, and our updater.

The kernel is Debian's, taken from its package; the initramfs and the system hold busybox and the updater on this
machine's Python with the modules that it imports. The programs that refkit takes from systemd (udev's links, mounts
of the early boot) are stood in for by the two scripts below.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.guests.machine import VARIABLES, machine
from tests.guests.parts import PRINT_MODULES, pack_initramfs, put_busybox, put_python, unpack_kernel
from tests.tools import need, need_file

#: refkit's own for a root on removable media.
ROOT_PARTITION = "12345678-9abc-def0-0fed-cba987654321"
_PROJECT = Path(__file__).parents[1]
_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "vfat", "nls_cp437", "nls_ascii", "ext4")
_STUB = Path("/usr/lib/systemd/boot/efi/linuxx64.efi.stub")
_MIB = 1 << 20
_ESP_MIB, _ROOT_MIB = 96, 320
#: What the start of the device needs, which is all that the initramfs holds of Python.
_EARLY_IMPORTS = """
import overhaul.dialects.ostree.device.cli, runpy, site
"""
#: The updater, without what it does not need in a guest: instead of pycurl it uses urllib3, and there is no logind.
_ALL_IMPORTS = """
import importlib, pkgutil, sys
for name in ("pycurl", "dbus_fast", "cryptography", "rich"):
    sys.modules[name] = None
import overhaul.dialects.ostree.device as device
for found in pkgutil.walk_packages(device.__path__, device.__name__ + "."):
    importlib.import_module(found.name)
import overhaul.transfer.plain, encodings.idna, http.client, runpy, site, stringprep
"""
_EARLY_INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules.list); do insmod /modules/$module; done
until [ -b /dev/vda2 ]; do sleep 0.1; done
mkdir -p /dev/disk/by-partuuid
ln -s /dev/vda2 /dev/disk/by-partuuid/ROOT_PARTITION
mount -t ext4 /dev/vda2 /rootfs
/usr/bin/refkit-ostree-update --prepare-root || echo "GUEST prepare-root failed with $?"
for place in proc sys dev; do mount --move /$place /rootfs/$place; done
exec switch_root /rootfs /sbin/init
""".replace("ROOT_PARTITION", ROOT_PARTITION)
#: What a device does by itself and by its owner, one start after the other.
_INIT = """#!/bin/sh
export PATH=/usr/bin:/usr/sbin
tell() { echo "GUEST $*"; }
mount -t tmpfs run /run
refkit-ostree-update --patch-procfs || tell "patch-procfs failed with $?"
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
route add default gw 10.0.2.2
# As `sysroot.readonly` has it.
mount -o remount,bind,ro /sysroot
touch /sysroot/new 2> /dev/null || sysroot=read-only
start=$(($(cat /var/start 2>/dev/null || echo 0) + 1))
echo $start > /var/start
[ -e /run/ostree-booted ] && booted=yes
app=$(sed 's/.*app=\\([^ ]*\\).*/\\1/' /proc/cmdline)
tell "start=$start release=$(cat /usr/lib/release) app=$app booted=$booted" \\
    "link=$(sed 's/.*ostree=\\([^ ]*\\).*/\\1/' /proc/cmdline)"
tell "home=$(cat /home/kept) mine=$(cat /etc/mine 2>/dev/null) sysroot=$sysroot physical=$(echo $(ls /sysroot/ostree))"
run() { refkit-ostree-update "$@" > /run/said 2>&1; tell "$1: $? $(tr '\\n' ' ' < /run/said)"; }
case $start in
    1) echo mine > /etc/mine; run --one-shot ;;
    2) run --confirm; run --rollback ;;
    *) run --one-shot ;;
esac
sync
[ $start = 3 ] && tell "end" && poweroff -f
reboot -f
"""
_PYTHON_WRAPPER = """#!/bin/sh
export LD_LIBRARY_PATH=/usr/lib64 PYTHONHOME=/usr PYTHONDONTWRITEBYTECODE=1
exec /usr/bin/python3.real -s "$@"
"""
_UPDATER = """#!/usr/bin/python3
from overhaul.dialects.ostree.device.cli import main
main()
"""
_SETTINGS = """[network]
allow_http = true
connections = 2
[reboot]
policy = "never"
"""


@dataclass(frozen=True, kw_only=True)
class GuestParts:
    """What all releases share."""

    kernel: Path
    modules: tuple[Path, ...]
    #: Busybox, Python and the updater.
    tree: Path
    #: The same without what only updates need.
    early: Path


def prepare_parts(directory: Path) -> GuestParts:
    """Put the shared parts together in `directory`."""
    kernel, modules = unpack_kernel(directory / "kernel", _MODULES)
    tree, early = directory / "common", directory / "early"
    fill_system(tree)
    _fill(early, _EARLY_IMPORTS)
    return GuestParts(kernel=kernel, modules=modules, tree=tree, early=early)


def fill_system(tree: Path) -> None:
    """Put busybox, Python and the updater into `tree`."""
    _fill(tree, _ALL_IMPORTS)


def _fill(tree: Path, imports: str) -> None:
    for name in ("usr/bin", "usr/sbin", "usr/lib", "usr/lib64"):
        (tree / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (tree / name).symlink_to(f"usr/{name}")
    put_busybox(tree / "usr/bin")
    program = tree / "usr/bin/python3.real"
    put_python(program, home=tree / "usr", shared=tree / "usr/lib64", listing=imports + PRINT_MODULES)
    for name, text in (("python3", _PYTHON_WRAPPER), ("refkit-ostree-update", _UPDATER)):
        (tree / "usr/bin" / name).write_text(text)
        (tree / "usr/bin" / name).chmod(0o755)


def begin_release(root: Path, tree: Path, init: str, release: str) -> None:
    """Make a root file system of what releases share, all but its kernel."""
    shutil.copytree(tree, root, symlinks=True)
    files = {
        "usr/sbin/init": init,
        "usr/lib/release": release,
        "etc/os-release": f'ID=guest\nPRETTY_NAME="Guest {release}"\nVERSION_ID={release}\n',
        "etc/overhaul/ostree-update.toml": _SETTINGS,
        f"usr/share/only-in-{release}": release,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "usr/sbin/init").chmod(0o755)


def make_release(parts: GuestParts, directory: Path, release: str) -> Path:
    """Return a finished root file system as a build leaves it, its UEFI application in boot/EFI/BOOT."""
    root = directory / f"root-{release}"
    begin_release(root, parts.tree, _INIT, release)
    hook = "ostree-hooks/post-apply.d/00-update-uefi-app"
    (root / "etc/overhaul" / hook).parent.mkdir(parents=True)
    shutil.copy(_PROJECT / "deploy" / hook, root / "etc/overhaul" / hook)
    app = root / "boot/EFI/BOOT/bootx64.efi"
    app.parent.mkdir(parents=True)
    _make_app(parts, directory / f"app-{release}", release, app)
    return root


def make_disk(sysroot: Path, app: Path, disk: Path) -> None:
    """Write a disk with an ESP that starts `app`, and `sysroot` as the root file system."""
    esp, root = disk.with_suffix(".esp"), disk.with_suffix(".root")
    for path, size_mib in ((esp, _ESP_MIB), (root, _ROOT_MIB), (disk, _ESP_MIB + _ROOT_MIB + 2)):
        with path.open("wb") as stream:
            stream.truncate(size_mib * _MIB)
    script = (
        f"label: gpt\nstart=1MiB, size={_ESP_MIB}MiB, type=U\n"
        f"size={_ROOT_MIB}MiB, type=L, uuid={ROOT_PARTITION}, name=root\n"
    )
    subprocess.run([need("sfdisk"), "-q", disk], input=script.encode(), check=True, capture_output=True)
    subprocess.run([need("mformat"), "-i", esp, "-F", "::"], check=True)
    subprocess.run([need("mmd"), "-i", esp, "::EFI", "::EFI/BOOT"], check=True)
    subprocess.run([need("mcopy"), "-i", esp, app, f"::EFI/BOOT/{app.name}"], check=True)
    subprocess.run([need("mkfs.ext4"), "-q", "-m", "0", "-d", sysroot, root], check=True, capture_output=True)
    with disk.open("r+b") as whole:
        for path, begin_mib in ((esp, 1), (root, 1 + _ESP_MIB)):
            whole.seek(begin_mib * _MIB)
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole, _MIB)
            path.unlink()


@contextmanager
def started(disk: Path, scratch: Path) -> Iterator[Iterator[str]]:
    """Start the machine once; yields what it tells, up to its end, and everything on the console as the last resort."""
    variables = scratch / "variables.fd"
    if not variables.exists():
        shutil.copy(VARIABLES, variables)
    with switched_on(machine(drive=f"cache=unsafe,file={disk}", variables=variables, memory_mib=512), scratch) as told:
        yield told


@contextmanager
def switched_on(command: list[str], scratch: Path) -> Iterator[Iterator[str]]:
    """Run a machine; yields what it tells, up to its end."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            yield _told(process, scratch / "console")
        finally:
            process.kill()


def _told(process: "subprocess.Popen[bytes]", console: Path) -> Iterator[str]:
    assert process.stdout is not None
    with console.open("ab") as log:
        for line in process.stdout:
            log.write(line)
            log.flush()
            found = re.search(rb"GUEST (.+)", line)
            if found is not None:
                yield found[1].decode(errors="replace").strip()


def _make_app(parts: GuestParts, work: Path, release: str, app: Path) -> None:
    initramfs = work / "initramfs"
    _make_initramfs(parts, initramfs, work / "ram")
    files = {
        ".osrel": f"ID=guest\nVERSION_ID={release}\n".encode(),
        ".cmdline": f"console=ttyS0 quiet panic=-1 root=PARTUUID={ROOT_PARTITION} rw app={release}".encode(),
        ".linux": parts.kernel.read_bytes(),
        ".initrd": initramfs.read_bytes(),
    }
    stub = need_file(_STUB, package="systemd-boot-efi")
    listed = subprocess.run([need("objdump"), "-h", stub], check=True, capture_output=True, text=True).stdout
    sections = [line.split() for line in listed.splitlines() if re.match(r"\s*\d+ \.", line)]
    place = max(int(line[3], 16) + int(line[2], 16) for line in sections)
    options: list[str] = []
    for name, data in files.items():
        place += -place % 4096
        (work / name).write_bytes(data)
        options += ["--add-section", f"{name}={work / name}", "--change-section-vma", f"{name}={place:#x}"]
        place += len(data)
    subprocess.run([need("objcopy"), *options, stub, app], check=True)
    shutil.rmtree(work)


def _make_initramfs(parts: GuestParts, initramfs: Path, ram: Path) -> None:
    shutil.copytree(parts.early, ram, symlinks=True)
    (ram / "rootfs").mkdir()
    archive = pack_initramfs(ram, parts.modules, _EARLY_INIT)
    packed = subprocess.run([need("gzip"), "-1n"], input=archive, check=True, capture_output=True)
    initramfs.write_bytes(packed.stdout)
