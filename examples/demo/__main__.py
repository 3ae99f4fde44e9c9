"""Publish two real releases, update a virtual device, then publish a bad one and watch the device go back.

usage: python -m examples.demo [WORK_DIRECTORY]      (default: demo-work; its trees and images are kept)
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from examples.demo.images import SERVICE, make_images
from examples.demo.virtual_device import VirtualDevice, overhaul
from overhaul.agent.outcomes import ExitCode
from overhaul.errors import DeviceError

_OLD, _NEW, _BAD = ("1.0.0", "20230610.1"), ("1.1.0", "20261121.1"), ("1.2.0", "20261122.1")
_NOTHING_TO_DO, _HELD = int(ExitCode.NOTHING_TO_DO), int(ExitCode.HELD)


class DemonstrationFailedError(RuntimeError):
    """Something did not come out as the demonstration says."""


def main() -> None:
    """Run the demonstration; it ends with an error when anything is not as it says."""
    work = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-work").absolute()
    began = time.monotonic()
    images = make_images(work / "images", _say)
    _say(f"Images: {images.origin}; {images.old.stat().st_size / 1e6:.0f} MB each")

    for name in ("repository", "repository-keys", "device"):
        shutil.rmtree(work / name, ignore_errors=True)
    repository = work / "repository"
    _title("A repository with demonstration keys")
    _show(overhaul("init", repository, "--demo-keys", "--product=demo"))
    _title("Publish the first release, then the second with a delta from the first")
    _publish(repository, images.old, *_OLD)
    _publish(repository, images.new, *_NEW)

    with _serving(repository) as url:
        device = VirtualDevice(work / "device", bootable=images.bootable)
        root = repository / "root.json"
        device.make(url=url, factory_image=images.old, root_metadata=root, version=_OLD[0], build_id=_OLD[1])
        how = "booted by systemd-nspawn" if device.bootable else "not bootable here: its files are looked at instead"
        _title(f"A virtual device runs {_OLD[0]} in slot a; every slot it tries is {how}")
        _show(device.run("check"))
        _title("Update")
        _show(device.run("update"))
        slot = device.restart()
        _title(f"Restart: the boot loader tries slot {slot}; the health check decides")
        _show(device.confirm_in(slot))
        _expect(device, slot=slot, version=_NEW[0])
        _show(device.run("check", expected=(_NOTHING_TO_DO,)))

        _title(f"A bad release: {_BAD[0]} lacks {SERVICE}, which the health check asks for")
        _publish(repository, images.bad, *_BAD)
        _show(device.run("update"))
        tried = device.restart()
        _title(f"Restart: the boot loader tries slot {tried}")
        _show(device.confirm_in(tried, expected=(DeviceError.exit_code,)))
        back = device.restart()
        _title(f"Restart: slot {back} runs again")
        _show(device.confirm_in(back, expected=(_NOTHING_TO_DO,)))
        _expect(device, slot=slot, version=_NEW[0])
        _title("The device will not take that version again")
        _show(device.run("update", expected=(_HELD,)))
        _show(device.run("history"))
        _show(device.run("status"))
    _title(f"Done in {time.monotonic() - began:.0f} s; everything is in {work}")


def _publish(repository: Path, image: Path, version: str, build_id: str) -> None:
    _show(
        overhaul(
            "publish", image, "--repository", repository, "--product=demo", "--variant=server", "--arch=amd64",
            "--channel=stable", f"--version={version}", f"--build-id={build_id}",
        )
    )  # fmt: skip


@contextmanager
def _serving(repository: Path) -> Iterator[str]:
    """Run `overhaul serve` on a free port of this machine; yield its address."""
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(repository), "--port=0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if server.stdout is None:
            raise DemonstrationFailedError("the server has no output")
        document = ""
        for line in server.stdout:
            document += line
            if line.startswith("}"):
                break
        url: str = json.loads(document)["url"].rstrip("/")
        _title(f"Serving at {url} (a status page for people, a static tree for devices)")
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def _expect(device: VirtualDevice, *, slot: str, version: str) -> None:
    status = device.status()
    found = (status["running_slot"], status["running"]["version"])
    if found != (slot, version):
        raise DemonstrationFailedError(f"the device runs {found}, not {(slot, version)}")


def _title(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _say(text: str) -> None:
    print(text, flush=True)


def _show(text: str) -> None:
    for line in text.rstrip().splitlines():
        print(f"   {line}", flush=True)


if __name__ == "__main__":
    main()
