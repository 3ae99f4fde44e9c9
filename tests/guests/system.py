"""A small system for guests: Debian's cloud kernel, an initramfs of our own, busybox, and the agent on this machine's
Python with exactly the modules that it imports.

The initrd and the root carry the release's number each, so that a guest can tell whether it was started with the
kernel and initrd of the slot it runs from.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.debian import cache_directory
from tests.tools import need, need_file

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "vfat", "nls_cp437", "nls_ascii", "efivarfs")
_PROGRAM = Path(__file__).with_name("device_program.py")
_PYTHON = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"

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
files = {name: module.__file__ for name, module in sys.modules.items() if getattr(module, "__file__", None)}
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
/python/bin/python -s /{_PYTHON}/device_program.py /var/lib/overhaul/device.toml
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


def prepare_system(directory: Path) -> GuestSystem:
    """Put the parts together in `directory`."""
    directory.mkdir()
    kernel, modules = _unpack_kernel(directory / "kernel")
    tree = directory / "tree"
    for name in ("bin", "boot/efi", "dev", "proc", "run", "sbin", "sys", "tmp", "var/lib/overhaul", "lib64", "etc"):
        (tree / name).mkdir(parents=True)
    _put_busybox(tree)
    _put_python(tree)
    (tree / "sbin/init").write_text(_INIT.replace(f"/{_PYTHON}/", f"/python/{_PYTHON}/"))
    (tree / "sbin/init").chmod(0o755)
    return GuestSystem(kernel=kernel, modules=modules, tree=tree)


def make_image(system: GuestSystem, directory: Path, version: str, *, is_healthy: bool = True) -> Path:
    """Return a root file system of one release."""
    tree = directory / f"tree-{version}"
    shutil.copytree(system.tree, tree, symlinks=True)
    (tree / "release").write_text(version)
    (tree / "etc/os-release").write_text(f"ID=guest\nVERSION_ID={version}\n")
    if not is_healthy:
        (tree / "unhealthy").touch()
    (tree / "boot").joinpath("vmlinuz-guest").write_bytes(system.kernel.read_bytes())
    (tree / "vmlinuz").symlink_to("boot/vmlinuz-guest")
    (tree / "initrd.img").write_bytes(_make_initrd(system, directory / f"early-{version}", version))
    used = sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    image = directory / f"{version}.ext4"
    command = [need("mkfs.ext4"), "-q", "-b", "4096", "-m", "0", "-O", "^has_journal", "-N", "4000", "-d", str(tree)]
    subprocess.run([*command, str(image), f"{(used >> 20) + 10}M"], check=True, capture_output=True)
    shutil.rmtree(tree)
    return image


def _unpack_kernel(directory: Path) -> tuple[Path, tuple[Path, ...]]:
    """Unpack the kernel's package, which is not installed: a kernel on this machine would be set up to boot it."""
    cache = cache_directory() / "linux-image-cloud-amd64"
    if not list(cache.glob("*.deb")):
        cache.mkdir(exist_ok=True)
        if not _download_kernel(cache):
            subprocess.run(["apt-get", "update", "-qq"], check=True, capture_output=True)
            assert _download_kernel(cache), "apt-get does not find the package linux-image-cloud-amd64"
    subprocess.run(["dpkg", "-x", next(cache.glob("*.deb")), directory], check=True)
    (folder,) = (directory / "lib/modules").iterdir()
    subprocess.run([need("depmod"), "-b", directory, folder.name], check=True)
    command = [need("modprobe"), "-d", str(directory), "-S", folder.name, "--show-depends", "-a", *MODULES]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    (kernel,) = (directory / "boot").glob("vmlinuz-*")
    return kernel, tuple(Path(line.split()[1]) for line in dict.fromkeys(listed) if line.startswith("insmod"))


def _download_kernel(cache: Path) -> bool:
    """Fetch the package that linux-image-cloud-amd64 stands for; False when apt does not know it (any more)."""
    shown = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], check=False, capture_output=True, text=True
    )
    package = re.search(r"Depends: (linux-image-\S+)", shown.stdout)
    if package is None:
        return False
    command = ["apt-get", "download", "-qq", package[1]]
    return subprocess.run(command, cwd=cache, check=False, capture_output=True).returncode == 0


def _make_initrd(system: GuestSystem, ram: Path, version: str) -> bytes:
    for folder in ("bin", "dev", "proc", "sys", "root", "modules"):
        (ram / folder).mkdir(parents=True)
    _put_busybox(ram)
    for module in system.modules:
        shutil.copy(module, ram / "modules")
    (ram / "modules.list").write_text(" ".join(module.name for module in system.modules))
    (ram / "initrd-release").write_text(version)
    (ram / "init").write_text(_EARLY_INIT)
    (ram / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(ram)) for path in sorted(ram.rglob("*")))
    packed = subprocess.run(
        [need("cpio"), "-o", "-H", "newc", "--quiet"], cwd=ram, input=names.encode(), check=True, capture_output=True
    )
    shutil.rmtree(ram)
    return packed.stdout


def _put_busybox(tree: Path) -> None:
    shutil.copy(need_file(Path("/bin/busybox"), package="busybox-static"), tree / "bin/busybox")
    dynamic = subprocess.run(["ldd", "/bin/busybox"], check=False, capture_output=True).returncode == 0
    assert not dynamic, "/bin/busybox needs libraries; install busybox-static in its place"
    listed = subprocess.run(["/bin/busybox", "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in listed:
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")


def _put_python(tree: Path) -> None:
    import json

    listed = subprocess.run([sys.executable, "-c", _LIST_IMPORTS], check=True, capture_output=True, text=True)
    libraries = tree / "python" / _PYTHON
    binaries = [Path(sys.executable).resolve()]
    for name, file in json.loads(listed.stdout):
        if name == "__main__":
            continue
        source = Path(file)
        parts = name.split(".")
        if source.name.startswith("__init__."):
            target = libraries.joinpath(*parts, source.name)
        elif len(parts) == 1 and source.suffix == ".so":
            target = libraries / "lib-dynload" / source.name
        else:
            target = libraries.joinpath(*parts[:-1], source.name)
        _copy(source, target)
        if source.suffix == ".so":
            binaries.append(source)
    _copy(_PROGRAM, libraries / _PROGRAM.name)
    _copy(binaries[0], tree / "python/bin/python")
    for library in _shared_libraries(binaries):
        _copy(library.resolve(), tree / "lib64" / library.name)
    for binary in (*libraries.rglob("*.so"), tree / "python/bin/python", *(tree / "lib64").iterdir()):
        subprocess.run([need("strip"), "--strip-unneeded", binary], check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", libraries], check=True
    )


def _shared_libraries(binaries: Iterable[Path]) -> set[Path]:
    found: set[Path] = set()
    for binary in binaries:
        listed = subprocess.run(["ldd", binary], check=False, capture_output=True, text=True).stdout
        found |= {Path(path) for path in re.findall(r"(/\S+) \(0x", listed)}
    return found


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
