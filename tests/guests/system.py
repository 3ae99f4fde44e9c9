"""A small system for guests: Debian's cloud kernel, an initramfs of our own, busybox, and the agent on this machine's
Python with exactly the modules that it imports.

The initrd and the root carry the release's number each, so that a guest can tell whether it was started with the
kernel and initrd of the slot it runs from.
"""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.guests.parts import PYTHON_LIBRARIES, copy_to, pack_initramfs, put_busybox, put_python, unpack_kernel
from tests.tools import need

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "vfat", "nls_cp437", "nls_ascii", "efivarfs")
#: What a guest runs as its device unless another program is named.
_PROGRAM = Path(__file__).with_name("device_program.py")

#: Run on this machine; prints the modules of the standard library and all that the agent imports, early or late.
#: Without pycurl the agent uses urllib3, which spares the guest libcurl and all that it needs.
_LIST_IMPORTS = """
import importlib.util, json, pkgutil, sys
sys.modules["pycurl"] = None
for name in ("boto3", "botocore", "charset_normalizer", "dbus_fast", "hdiffpatch", "obstore", "requests"):
    sys.modules[name] = None
import overhaul
rooms = ("agent", "install", "content", "transfer", "trust", "host", "policy", "release")
for room in [*("overhaul." + room for room in rooms), "tuf", "securesystemslib.signer", "urllib3"]:
    package = importlib.import_module(room)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "_vendor" in found.name or "contrib" in found.name:
            continue
        try:
            importlib.import_module(found.name)
        except ImportError:
            pass  # A part of the publisher's, or one that needs what a device has not.
files = {
    name: module.__file__
    for name, module in sys.modules.items()
    if getattr(module, "__file__", None) and name != "__main__"
}
large = {"antigravity", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this", "tkinter", "turtledemo"}
for name in sys.stdlib_module_names - large:
    found = importlib.util.find_spec(name)
    if found is None or found.origin in {None, "built-in", "frozen"}:
        continue
    files.setdefault(name, found.origin)
    for inside in pkgutil.iter_modules(found.submodule_search_locations or ()):
        if not inside.ispkg:
            files.setdefault(f"{name}.{inside.name}", inside.module_finder.find_spec(inside.name).origin)
print(json.dumps(sorted(files.items())))
"""

_EARLY_INIT = """#!/bin/sh
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules.list); do insmod /modules/$module; done
echo "GUEST phase initramfs"
label=$(sed 's/.*root=PARTLABEL=\\([^ ]*\\).*/\\1/' /proc/cmdline)
mkdir -p /dev/disk/by-partlabel
for uevent in /sys/class/block/*/uevent; do
    name=$(sed -n 's/^PARTNAME=//p' $uevent)
    [ -z "$name" ] || ln -s /dev/$(basename $(dirname $uevent)) /dev/disk/by-partlabel/$name
done
mount -t ext4 -o ro /dev/disk/by-partlabel/$label /root
for place in proc sys dev; do mount --move /$place /root/$place; done
mount -t tmpfs run /root/run
cp /initrd-release /root/run/initrd-release
exec switch_root /root /sbin/init
"""

_INIT = f"""#!/bin/sh
echo "GUEST phase system"
export PATH=/bin:/sbin HOME=/tmp LD_LIBRARY_PATH=/lib64 PYTHONHOME=/python PYTHONDONTWRITEBYTECODE=1
mount -t tmpfs tmp /tmp
mount -t efivarfs efivars /sys/firmware/efi/efivars
mount -t vfat /dev/disk/by-partlabel/esp /boot/efi
mount -t ext4 /dev/disk/by-partlabel/state /var/lib/overhaul
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up
route add default gw 10.0.2.2
/python/bin/python -s /python/{PYTHON_LIBRARIES}/{_PROGRAM.name} /var/lib/overhaul/device.toml
umount /boot/efi /var/lib/overhaul
case "$(cat /run/following)" in
    reboot) reboot -f ;;
    *) poweroff -f ;;
esac
"""


@dataclass(frozen=True, kw_only=True)
class GuestSystem:
    """The parts that all releases share."""

    kernel: Path
    modules: tuple[Path, ...]
    tree: Path


def prepare_system(directory: Path, *, program: Path = _PROGRAM) -> GuestSystem:
    """Put the parts together in `directory`; `program` is what runs as the device."""
    directory.mkdir()
    kernel, modules = unpack_kernel(directory / "kernel", MODULES)
    tree = directory / "tree"
    for name in ("bin", "boot/efi", "dev", "proc", "run", "sbin", "sys", "tmp", "var/lib/overhaul", "lib64", "etc"):
        (tree / name).mkdir(parents=True)
    put_busybox(tree / "bin")
    home = tree / "python"
    copy_to(program, home / PYTHON_LIBRARIES / _PROGRAM.name)
    put_python(home / "bin/python", home=home, shared=tree / "lib64", listing=_LIST_IMPORTS)
    (tree / "sbin/init").write_text(_INIT)
    (tree / "sbin/init").chmod(0o755)
    return GuestSystem(kernel=kernel, modules=modules, tree=tree)


def make_image(
    system: GuestSystem,
    directory: Path,
    version: str,
    *,
    is_healthy: bool = True,
    initrd: bytes | None = None,
    etc: Mapping[str, str] | None = None,
) -> Path:
    """Return a root file system of one release, with more files in `etc`; without an `initrd` it gets one of ours."""
    tree = directory / f"tree-{version}"
    shutil.copytree(system.tree, tree, symlinks=True)
    (tree / "release").write_text(version)
    (tree / "etc/os-release").write_text(f"ID=guest\nVERSION_ID={version}\n")
    for name, text in (etc or {}).items():
        (tree / "etc" / name).write_text(text)
    if not is_healthy:
        (tree / "unhealthy").touch()
    (tree / "boot").joinpath("vmlinuz-guest").write_bytes(system.kernel.read_bytes())
    (tree / "vmlinuz").symlink_to("boot/vmlinuz-guest")
    (tree / "initrd.img").write_bytes(initrd or _make_initrd(system, directory / f"early-{version}", version))
    used = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    image = directory / f"{version}.ext4"
    command = [need("mkfs.ext4"), "-q", "-b", "4096", "-m", "0", "-O", "^has_journal", "-N", "4000", "-d", str(tree)]
    subprocess.run([*command, str(image), f"{(used >> 20) + 10}M"], check=True, capture_output=True)
    shutil.rmtree(tree)
    return image


def _make_initrd(system: GuestSystem, ram: Path, version: str) -> bytes:
    (ram / "bin").mkdir(parents=True)
    (ram / "root").mkdir()
    put_busybox(ram / "bin")
    (ram / "initrd-release").write_text(version)
    packed = pack_initramfs(ram, system.modules, _EARLY_INIT)
    shutil.rmtree(ram)
    return packed
