"""What a guest's device meets: a repository with real releases, `overhaul serve`, and provisioned disks."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overhaul.host.images import read_partitions
from overhaul.progress import Silence
from overhaul.publishing.boot_partition import Loader
from overhaul.publishing.provisioning import DiskRequest, provision_disk
from tests.fleet import RealRepository, release_id
from tests.guests.machine import VARIABLES
from tests.guests.system import make_image, prepare_system
from tests.tools import need, need_file

OLD, NEW, SICK = "1.0", "2.0", "1.5"
#: Channel -> the release in it that devices with the old one take up, and what they run in the end.
GOOD_CHANNEL, SICK_CHANNEL = "stable", "dev"
_MIB = 1 << 20


@dataclass(frozen=True)
class Scene:
    """A repository that is served, and the disks of new devices."""

    directory: Path
    repository: RealRepository
    address: str

    def new_device(self, loader: Loader, channel: str) -> tuple[Path, Path]:
        """Return the disk and the firmware's variables of a device as the factory delivers it."""
        template = self.directory / f"{loader}-{channel}.img"
        if not template.exists():
            self._provision(template, loader, channel)
        disk, variables = self.directory / "disk.img", self.directory / "variables.fd"
        subprocess.run(["cp", "--sparse=always", template, disk], check=True)
        shutil.copy(VARIABLES, variables)
        return disk, variables

    def _provision(self, template: Path, loader: Loader, channel: str) -> None:
        need_file(Path("/usr/lib/systemd/boot/efi/systemd-bootx64.efi"), package="systemd-boot-efi")
        need_file(Path("/usr/lib/grub/x86_64-efi/normal.mod"), package="grub-efi-amd64-bin")
        for program in ("sfdisk", "mcopy", "grub-mkimage", "grub-fstest", "debugfs"):
            need(program)
        request = DiskRequest(
            release=release_id(OLD),
            channel=channel,
            urls=(self.address,),
            allow_http=True,
            loader=loader,
            esp_size=44 * _MIB,
            state_size=16 * _MIB,
            kernel_options="console=ttyS0 quiet panic=1",
        )
        provision_disk(self.repository.opened, template, request, force=False, progress=Silence())
        self._configure(template)

    def _configure(self, disk: Path) -> None:
        """Give the device its health check, and as many attempts as there are: every power cut takes one."""
        state = f"{disk}?offset={read_partitions(disk)[3].offset}"
        read = subprocess.run(["debugfs", "-R", "cat device.toml", state], check=True, capture_output=True).stdout
        text = read.decode().replace("commands = []", 'commands = ["test ! -e /unhealthy"]')
        text = text.replace("attempts = 3", "attempts = 9")
        own = self.directory / "device.toml"
        own.write_text(text)
        for command in ("rm device.toml", f"write {own} device.toml"):
            subprocess.run(["debugfs", "-w", "-R", command, state], check=True, capture_output=True)
        kept = subprocess.run(["debugfs", "-R", "cat device.toml", state], check=True, capture_output=True).stdout
        assert kept == text.encode()


@contextmanager
def opened_scene(directory: Path, *, with_sick: bool) -> Iterator[Scene]:
    """Publish the releases and serve them until the block ends."""
    system = prepare_system(directory / "system")
    repository = RealRepository(directory / "repository")
    repository.publish(make_image(system, directory, OLD), OLD)
    repository.publish(make_image(system, directory, NEW), NEW)
    if with_sick:
        sick = make_image(system, directory, SICK, is_healthy=False)
        repository.publish(sick, SICK, channel=SICK_CHANNEL)
    with serving(repository.directory) as port:
        # The machine's own loopback, as QEMU's network shows it to the guest.
        yield Scene(directory, repository, f"http://10.0.2.2:{port}")


@contextmanager
def serving(repository: Path) -> Iterator[int]:
    """Run `overhaul serve` on loopback, and yield its port."""
    command = [sys.executable, "-m", "overhaul", "serve", "--repository", str(repository), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "Serving" in line, line
            yield int(line.strip().rstrip("/").rpartition(":")[2])
        finally:
            process.terminate()
