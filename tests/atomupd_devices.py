"""Devices that the atomupd client updates: real RAUC bundles, and a real RAUC service on a private bus.

RAUC's boot loader is a stand-in, a script that notes what it is told; slots are plain files. The journal that real
systems have is a stand-in as well: a `journalctl` that prints what the RAUC service of the test logs.
"""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overhaul.host.dbus import BusCallError, call_system_bus
from tests.tools import need
from tests.waiting import PATIENCE_S, until

COMPATIBLE = "Weather Station"

_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:abstract={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*"/> <allow eavesdrop="false"/> <allow own="*"/> <allow receive_sender="*"/>
  </policy>
</busconfig>
"""
_RAUC = """[system]
compatible={compatible}
bootloader=custom
mountprefix={mounts}

[keyring]
path={keyring}

[handlers]
bootloader-custom-backend={backend}

[slot.rootfs.0]
device={slot_a}
type=raw
bootname=A

[slot.rootfs.1]
device={slot_b}
type=raw
bootname=B
"""
_BACKEND = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
get-primary) echo A ;;
get-state) echo good ;;
esac
"""
_JOURNALCTL = """#!/bin/sh
exec tail -n 0 -F {log} 2>/dev/null
"""


def run(*arguments: str | Path, directory: Path | None = None) -> str:
    """Run a program that must end well, and return what it printed."""
    done = subprocess.run([*map(str, arguments)], check=False, capture_output=True, text=True, cwd=directory)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Signer:
    """A certificate that signs bundles and is its own authority."""

    certificate: Path
    key: Path


def make_signer(directory: Path, name: str = "signer") -> Signer:
    """Make a certificate with its key."""
    signer = Signer(directory / f"{name}.pem", directory / f"{name}.key")
    subject = ["-subj", f"/CN={name}", "-days", "3650"]
    new_key: list[str | Path] = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        signer.key,
    ]
    run(need("openssl"), "req", "-x509", *new_key, "-out", signer.certificate, *subject)
    return signer


def image_bytes(seed: int, size: int = 900_000) -> bytes:
    """Return an image of which three quarters are the same for every seed."""
    shared = random.Random("shared").randbytes(size * 3 // 4)
    own = random.Random(seed).randbytes(size - len(shared))
    return shared[: size // 2] + own + shared[size // 2 :]


def make_bundle(
    directory: Path, stem: str, image: bytes, signer: Signer, *, bundle_format: str = "plain", extra: str = ""
) -> Path:
    """Make a bundle that holds the image itself, with the real RAUC."""
    content = directory / f"{stem}.content"
    content.mkdir(parents=True)
    (content / "rootfs.img").write_bytes(image)
    (content / "manifest.raucm").write_text(
        f"[update]\ncompatible={COMPATIBLE}\nversion={stem}\n[bundle]\nformat={bundle_format}\n"
        f"[image.rootfs]\nfilename=rootfs.img\n{extra}"
    )
    bundle = directory / f"{stem}.raucb"
    run(need("rauc"), "bundle", f"--cert={signer.certificate}", f"--key={signer.key}", content, bundle)
    return bundle


def make_casync_bundle(directory: Path, stem: str, image: bytes, signer: Signer, *, extra: str = "") -> Path:
    """Make a bundle with a casync index, and its chunk store beside it, with the real RAUC and casync."""
    plain = make_bundle(directory / f"{stem}.plain", stem, image, signer, extra=extra)
    bundle = directory / f"{stem}.raucb"
    need("casync")
    keys = [f"--cert={signer.certificate}", f"--key={signer.key}", f"--keyring={signer.certificate}"]
    run(need("rauc"), "convert", *keys, plain, bundle)
    return bundle


@contextmanager
def private_bus(directory: Path) -> Iterator[str]:
    """Run a dbus-daemon of our own and yield its address."""
    socket = directory / "bus"
    configuration = directory / "bus.conf"
    configuration.write_text(_BUS.format(socket=socket))
    daemon = subprocess.Popen(
        [need("dbus-daemon"), f"--config-file={configuration}", "--nofork", "--nosyslog", "--print-address=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert daemon.stdout is not None
        yield daemon.stdout.readline().strip()
    finally:
        daemon.terminate()
        daemon.communicate()


class RaucDevice:
    """A device with two slots in files, and what belongs to its RAUC."""

    def __init__(self, directory: Path, signer: Signer, *, image: bytes) -> None:
        self.directory = directory
        self.slot_a, self.slot_b = directory / "slot-a", directory / "slot-b"
        self.configuration = directory / "system.conf"
        self.log = directory / "rauc.log"
        self.backend_log = directory / "backend.log"
        self.programs = directory / "bin"
        #: A place of its own, so that devices of tests side by side do not meet.
        self.mounts = directory / "mounts"
        self.address = ""
        self._service: subprocess.Popen[bytes] | None = None
        self.slot_a.write_bytes(image)
        self.slot_b.write_bytes(bytes(len(image) + 50_000))
        self.log.touch()
        self.backend_log.touch()
        self.programs.mkdir()
        self.mounts.mkdir()
        backend = directory / "backend"
        _script(backend, _BACKEND.format(log=self.backend_log))
        _script(self.programs / "journalctl", _JOURNALCTL.format(log=self.log))
        self.configuration.write_text(
            _RAUC.format(
                compatible=COMPATIBLE,
                mounts=self.mounts,
                keyring=signer.certificate,
                backend=backend,
                slot_a=self.slot_a,
                slot_b=self.slot_b,
            )
        )

    @property
    def environment(self) -> dict[str, str]:
        """What programs of this device run with."""
        return {
            **os.environ,
            "PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}",
            "DBUS_SYSTEM_BUS_ADDRESS": self.address,
            "DBUS_STARTER_BUS_TYPE": "system",
        }

    def told_the_boot_loader(self) -> list[str]:
        """Return what RAUC told the boot loader, questions left out."""
        return [line for line in self.backend_log.read_text().splitlines() if line.startswith("set-")]

    @property
    def pid(self) -> int:
        """The process of the RAUC service."""
        assert self._service is not None
        return self._service.pid

    @property
    def has_ended(self) -> bool:
        """Whether the RAUC service has ended."""
        return self._service is None or self._service.poll() is not None

    def start(self) -> None:
        """Start the RAUC service, in a session of its own as a service manager does."""
        with self.log.open("ab") as log:
            arguments = [need("rauc"), f"--conf={self.configuration}", "--override-boot-slot=A", "service"]
            self._service = subprocess.Popen(
                arguments, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self._await_service(self._service)

    def stop(self) -> None:
        """End the RAUC service, whatever it does."""
        if self._service is not None:
            # With what it has started, which may be reading the bundle.
            if self._service.poll() is None:
                os.killpg(self._service.pid, signal.SIGKILL)
            self._service.wait()
            self._service = None
        # A RAUC that was killed leaves its bundle mounted, and a loop device with it.
        mounts = Path("/proc/self/mounts").read_text().split()
        for place in self.mounts.iterdir():
            if str(place) in mounts:
                run(need("umount"), "--lazy", place)

    def restart(self) -> None:
        """End the RAUC service and start another."""
        self.stop()
        self.start()

    def _await_service(self, service: "subprocess.Popen[bytes]") -> None:
        def answers() -> bool:
            try:
                call_system_bus(
                    destination="de.pengutronix.rauc",
                    path="/",
                    interface="org.freedesktop.DBus.Peer",
                    member="Ping",
                    address=self.address,
                )
            except BusCallError:
                assert service.poll() is None, self.log.read_text()
                return False
            return True

        until(answers)


@contextmanager
def rauc_device(directory: Path, signer: Signer, *, image: bytes) -> Iterator[RaucDevice]:
    """Yield a device whose RAUC service runs on a bus of its own."""
    directory.mkdir(exist_ok=True)
    device = RaucDevice(directory, signer, image=image)
    with private_bus(directory) as device.address:
        device.start()
        try:
            yield device
        finally:
            device.stop()


def _script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def write_configuration(path: Path, sections: dict[str, dict[str, str]]) -> Path:
    """Write an INI file."""
    lines: list[str] = []
    for section, options in sections.items():
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in options.items()), ""]
    path.write_text("\n".join(lines))
    return path


def run_client(*arguments: str | Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Run the real client in a process of its own."""
    program = Path(sys.executable).with_name("steamos-atomupd-client")
    return subprocess.run(
        [program, *map(str, arguments)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def write_slots_device(directory: Path, *, image: bytes) -> Path:
    """Make a device with two slots of Overhaul in files, and return its `device.toml`."""
    directory.mkdir(exist_ok=True)
    (directory / "slot-a").write_bytes(image)
    (directory / "slot-b").write_bytes(bytes(len(image) + 50_000))
    configuration = directory / "device.toml"
    configuration.write_text(
        'product = "steamos"\nvariant = "steamdeck"\narch = "amd64"\nchannel = "stable"\n'
        'version = "3.6.0"\nbuild_id = "20240101.1"\nstate_directory = "state"\n'
        '[repository]\nurls = ["https://updates.example"]\n'
        '[slots]\nA = "slot-a"\nB = "slot-b"\n[boot]\nbackend = "file"\nfile = "boot.json"\n'
    )
    return configuration
