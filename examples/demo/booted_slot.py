"""Boot a slot of the virtual device for real: systemd as process 1 of a container on the slot's file system.

The slot is mounted read-only through a loop device and booted by systemd-nspawn with a volatile overlay and no
network but loopback, so nothing that runs there changes the slot. What the health check runs "inside the booted
slot" enters the container through a small script whose path never changes, as a device's configuration expects.
"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BOOT_TIMEOUT_S = 60.0


class SlotDidNotBootError(RuntimeError):
    """The container ended or did not reach its first target in time."""


@contextmanager
def booted(slot: Path, *, enter: Path, log: Path) -> Iterator[None]:
    """Boot the file system image `slot`; while the block runs, the script `enter` runs commands inside it."""
    mount_point = slot.with_suffix(".mounted")
    mount_point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop,ro", str(slot), str(mount_point)], check=True)
    try:
        with log.open("wb") as stream:
            container = subprocess.Popen(
                ["systemd-nspawn", "--quiet", "--boot", "--volatile=overlay", "--register=no", "--keep-unit",
                 "--private-network", "--console=pipe", f"--directory={mount_point}"],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            )  # fmt: skip
        try:
            leader = _wait_for_leader(container)
            enter.write_text(f'#!/bin/sh\nexec nsenter -t {leader} -a "$@"\n')
            enter.chmod(0o755)
            _wait_until_started(container, enter)
            yield
        finally:
            enter.unlink(missing_ok=True)
            _power_off(container)
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)
        mount_point.rmdir()


def _wait_for_leader(container: subprocess.Popen[bytes]) -> int:
    """Return the process id of the container's process 1: the grandchild that systemd-nspawn runs."""
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children")
    deadline = time.monotonic() + _BOOT_TIMEOUT_S
    while time.monotonic() < deadline and container.poll() is None:
        for child in children.read_text().split():
            # Before process 1 is systemd it is a copy of systemd-nspawn that still prepares the container.
            if Path(f"/proc/{child}/comm").read_text().strip() in {"systemd", "init"}:
                return int(child)
        time.sleep(0.05)
    raise SlotDidNotBootError("systemd-nspawn ended before the slot's process 1 ran")


def _wait_until_started(container: subprocess.Popen[bytes], enter: Path) -> None:
    """Wait until systemd in the container has left the state `starting`, whatever it reached."""
    deadline = time.monotonic() + _BOOT_TIMEOUT_S
    while time.monotonic() < deadline and container.poll() is None:
        asked = subprocess.run(
            [str(enter), "systemctl", "is-system-running"], capture_output=True, text=True, check=False
        )
        if asked.stdout.strip() in {"running", "degraded"}:
            return
        time.sleep(0.2)
    raise SlotDidNotBootError("systemd in the slot did not finish starting")


def _power_off(container: subprocess.Popen[bytes]) -> None:
    if container.poll() is None:
        container.terminate()
        try:
            container.wait(timeout=20)
        except subprocess.TimeoutExpired:
            container.kill()
            container.wait()
