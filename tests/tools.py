"""Debian programs that tests run for real."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

_PACKAGE_OF_PROGRAM = {
    "ansible-playbook": "ansible-core",
    "apache2": "apache2-bin",
    "bsdtar": "libarchive-tools",
    "busctl": "systemd",
    "bwrap": "bubblewrap",
    "chromium": "chromium",
    "dbus-daemon": "dbus-daemon",
    "debugfs": "e2fsprogs",
    "depmod": "kmod",
    "dh": "debhelper",
    "dpkg-buildpackage": "dpkg-dev",
    "fw_printenv": "libubootenv-tool",
    "fw_setenv": "libubootenv-tool",
    "gdbus": "libglib2.0-bin",
    "gpg": "gnupg",
    "grub-editenv": "grub-common",
    "grub-fstest": "grub-common",
    "grub-mkimage": "grub-common",
    "grub-script-check": "grub-common",
    "initdb": "postgresql",
    "ip": "iproute2",
    "mcopy": "mtools",
    "mkimage": "u-boot-tools",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "modprobe": "kmod",
    "newuidmap": "uidmap",
    "nft": "nftables",
    "nginx": "nginx-light",
    "pkcs11-tool": "opensc",
    "qemu-system-x86_64": "qemu-system-x86",
    "setpriv": "util-linux",
    "sfdisk": "fdisk",
    "softhsm2-util": "softhsm2",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
    "unsquashfs": "squashfs-tools",
    "xz": "xz-utils",
}


def need(program: str) -> str:
    """Return the path of `program`, installing its Debian package when that is permitted.

    Without it the calling test fails under `CI=true` and is skipped elsewhere.
    """
    found = _find(program)
    if found is None:
        _install(_PACKAGE_OF_PROGRAM.get(program, program))
        found = _find(program)
    if found is None:
        _give_up(f"the program {program} is not installed and could not be")
    return found


def need_file(path: Path, *, package: str) -> Path:
    """Return `path`, which the Debian package brings; without it the calling test ends as in `need`."""
    if not path.exists():
        _install(package)
    if not path.exists():
        _give_up(f"{path} of the package {package} is not installed and could not be")
    return path


def _install(package: str) -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Whoever comes second to apt is sent away.
    with Path(tempfile.gettempdir(), "overhaul-test-apt.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", package]):
            subprocess.run(command, env=environment, capture_output=True, check=False)


def _give_up(sentence: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(sentence)
    pytest.skip(sentence)


def _find(program: str) -> str | None:
    # Debian keeps PostgreSQL's own programs off PATH, one directory for each version.
    elsewhere = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(elsewhere[-1]) if elsewhere else None)
