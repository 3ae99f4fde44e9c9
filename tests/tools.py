"""Debian programs that tests run for real."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_PACKAGE_OF_PROGRAM = {
    "apache2": "apache2-bin",
    "bsdtar": "libarchive-tools",
    "busctl": "systemd",
    "bwrap": "bubblewrap",
    "chromium": "chromium",
    "dbus-daemon": "dbus-daemon",
    "debugfs": "e2fsprogs",
    "dh": "debhelper",
    "dpkg-buildpackage": "dpkg-dev",
    "gdbus": "libglib2.0-bin",
    "gpg": "gnupg",
    "grub-editenv": "grub-common",
    "grub-script-check": "grub-common",
    "initdb": "postgresql",
    "mcopy": "mtools",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.erofs": "erofs-utils",
    "mkfs.ext4": "e2fsprogs",
    "mksquashfs": "squashfs-tools",
    "newuidmap": "uidmap",
    "nginx": "nginx-light",
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
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        package = _PACKAGE_OF_PROGRAM.get(program, program)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", package]):
            subprocess.run(command, env=environment, capture_output=True, check=False)
        found = _find(program)
    if found is None:
        sentence = f"the program {program} is not installed and could not be"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return found


def _find(program: str) -> str | None:
    # Debian keeps PostgreSQL's own programs off PATH, one directory for each version.
    elsewhere = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(elsewhere[-1]) if elsewhere else None)
