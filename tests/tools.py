"""Debian programs that tests run for real."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_PACKAGE_OF_PROGRAM = {
    "bsdtar": "libarchive-tools",
    "chromium": "chromium",
    "dbus-daemon": "dbus-daemon",
    "debugfs": "e2fsprogs",
    "grub-editenv": "grub-common",
    "grub-script-check": "grub-common",
    "initdb": "postgresql",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.erofs": "erofs-utils",
    "mksquashfs": "squashfs-tools",
    "nginx": "nginx-light",
    "sfdisk": "fdisk",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
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
