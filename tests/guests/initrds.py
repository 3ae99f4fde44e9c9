"""Initial RAM file systems as distributions make them, with what deploy/configuration adds.

The real generators of this machine are run in a mount name space in which the guest's kernel modules and the shipped
files lie where they would in an image.
"""

import shutil
import subprocess
from pathlib import Path

from tests.guests.system import MODULES
from tests.tools import need

_SHIPPED = Path(__file__).parents[2] / "deploy/configuration"
#: What the root has no modules for, and ext4; all else would only make the start slower.
_MODULES = (*MODULES, "ext4")


def made_by_initramfs_tools(kernel: Path, directory: Path) -> bytes:
    """Return an initrd that initramfs-tools made for the unpacked kernel in `kernel`; `directory` is made."""
    need("mkinitramfs")
    (version,) = (kernel / "lib/modules").iterdir()
    settings, target = directory / "settings", directory / "initrd"
    shutil.copytree(_SHIPPED / "initramfs-tools", settings)
    (settings / "initramfs.conf").write_text("MODULES=list\nBUSYBOX=y\nCOMPRESS=gzip\nFSTYPE=ext4\n")
    (settings / "modules").write_text("\n".join([*_MODULES, ""]))
    (settings / "conf.d").mkdir()
    _run_beside(kernel, directory, ["mkinitramfs", "-d", settings, "-o", target, version.name])
    return target.read_bytes()


def made_by_dracut(kernel: Path, directory: Path, *, with_systemd: bool = False) -> bytes:
    """Return an initrd that dracut made for the unpacked kernel in `kernel`; `directory` is made.

    Distributions have systemd in it; without it is smaller, and starts sooner.
    """
    need("dracut")
    (version,) = (kernel / "lib/modules").iterdir()
    directory.mkdir()
    target = directory / "initrd"
    modules = "base dash kernel-modules rootfs-block udev-rules fs-lib overhaul-etc"
    if with_systemd:
        modules += " systemd systemd-initrd dracut-systemd"
    command: list[str | Path] = [
        "dracut", "--no-hostonly", "--conf", "/dev/null", "--confdir", directory, "--modules", modules,
        "--force-drivers", " ".join(_MODULES), "--filesystems", "ext4", "--no-early-microcode", "--gzip",
        "--tmpdir", directory, "--kver", version.name, target,
    ]  # fmt: skip
    _run_beside(kernel, directory, command)
    return target.read_bytes()


def _run_beside(kernel: Path, directory: Path, command: list[str | Path]) -> None:
    """Run a generator that finds the kernel's modules and the shipped files below /usr/lib, as in an image."""
    more = directory / "more"
    (more / "overhaul").mkdir(parents=True)
    shutil.copy(_SHIPPED / "overhaul-mount-etc", more / "overhaul")
    shutil.copytree(_SHIPPED / "dracut", more / "dracut/modules.d")
    (more / "modules").mkdir()
    script = (
        'more=$1 kernel=$2; shift 2; mount --bind "$kernel/boot" /boot; '
        'mount -t overlay overlay -o "lowerdir=$more:/usr/lib" /usr/lib; '
        'mount --bind "$kernel/lib/modules" /usr/lib/modules; exec "$@"'
    )
    done = subprocess.run(
        [need("unshare"), "--mount", "sh", "-ec", script, "sh", more.absolute(), kernel.absolute(), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
