"""The story of a provisioned device whose owner configures it, from start to start: what it told and what it should.

Each start is one of real firmware, a real boot loader and a real initial RAM file system with the shipped script;
`configured_program` is what the device does.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from overhaul.progress import Silence
from overhaul.publishing.boot_partition import Loader
from overhaul.publishing.provisioning import DiskRequest, provision_disk
from tests.fleet import RealRepository, release_id
from tests.guests.machine import VARIABLES, started
from tests.guests.scene import serving
from tests.guests.system import GuestSystem, make_image, prepare_system
from tests.guests.volatile_disk import VolatileDisk

_PROGRAM = Path(__file__).with_name("configured_program.py")
_MIB = 1 << 20
SSHD = "Port 22\nPermitRootLogin no\nX11Forwarding no\nUsePAM yes\nSubsystem sftp internal\n"
FIRST = {
    "motd": "first\n",
    "dials.conf": "brightness = 5\n",
    "sshd_config": SSHD,
    "dull": "nobody wants this\n",
    "going": "gone in the next\n",
}
SECOND = {
    "motd": "second\n",
    "dials.conf": "brightness = 7\n",
    "sshd_config": SSHD.replace("internal", "/usr/lib/sftp"),
    "dull": "nobody wants this\n",
    "coming": "new\n",
}
OWN = {"hostname": "kitchen\n", "dials.conf": "brightness = 9\n", "late": "changed while the restart waited\n"}


def os_release(version: str) -> dict[str, str]:
    return {"os-release": f"ID=guest\nVERSION_ID={version}\n"}


def prepare_configured_system(directory: Path) -> GuestSystem:
    """Put the parts of both releases together in `directory`."""
    return prepare_system(directory, program=_PROGRAM)


def publish_both(system: GuestSystem, directory: Path, *, first: bytes, second: bytes | None) -> RealRepository:
    """Return a repository with two releases, each with its initrd; None: one that knows nothing of layers."""
    made = RealRepository(directory / "repository")
    for version, initrd, etc in (("1.0", first, FIRST), ("2.0", second, SECOND)):
        image = make_image(system, directory, version, initrd=initrd, etc=etc)
        made.publish(image, version)
        image.unlink()
    return made


class Story:
    """What a device told, start by start."""

    def __init__(self, repository: RealRepository, directory: Path, loader: Loader) -> None:
        self.starts: list[dict[str, Any]] = []
        disk, variables = directory / "disk.img", directory / "variables.fd"
        shutil.copy(VARIABLES, variables)
        with serving(repository.directory) as port:
            request = DiskRequest(
                release=release_id("1.0"),
                channel="stable",
                urls=(f"http://10.0.2.2:{port}",),
                allow_http=True,
                loader=loader,
                state_size=16 * _MIB,
                kernel_options="console=ttyS0 quiet panic=1 net.ifnames=0",
                carry="merged",
            )
            provision_disk(repository.opened, disk, request, force=False, progress=Silence())
            with VolatileDisk(disk) as volatile:
                while not self.starts or "end" not in self.starts[-1]:
                    assert len(self.starts) < 4, self.starts
                    self.starts.append(self._start(volatile, variables))

    def _start(self, disk: VolatileDisk, variables: Path) -> dict[str, Any]:
        told: dict[str, Any] = {}
        with started(disk, variables) as guest:
            while (line := guest.told()) is not None:
                kind, _, rest = line.partition(" ")
                assert kind != "defect", json.loads(rest)
                if rest.startswith("{"):
                    told[kind] = json.loads(rest)
            console = "\n".join(guest.console[-40:])
        disk.settle()
        assert "shown" in told, console
        assert "overhaul-mount-etc:" not in console
        return told


def require_carried_over(story: Story) -> None:
    """See that the owner's changes came along, and that going back brought back what was before."""
    before, after, again = story.starts

    assert (before["shown"]["slot"], before["shown"]["release"]) == ("A", "1.0")
    assert before["shown"]["etc"] == FIRST | os_release("1.0")
    assert before["carried"] == {"again": True}

    assert (after["shown"]["slot"], after["shown"]["release"]) == ("B", "2.0")
    carried = SECOND | os_release("2.0") | OWN
    carried["sshd_config"] = SSHD.replace("internal", "/usr/lib/sftp").replace("Port 22\n", "Port 2222\n")
    carried["dials.conf.new"] = SECOND["dials.conf"]
    del carried["dull"]
    assert after["shown"]["etc"] == carried
    assert after["carried"] == {"again": False}

    _require_as_left(again)


def require_gone_back(story: Story) -> None:
    """See that a new system that does not lay its layer was left, and that the old one has its configuration."""
    _, after, again = story.starts

    assert (after["shown"]["slot"], after["shown"]["release"]) == ("B", "2.0")
    assert after["shown"]["etc"] == SECOND | os_release("2.0")
    assert after["unhealthy"] == {"failed": ["the configuration of this slot is not mounted over /etc"]}
    _require_as_left(again)


def _require_as_left(again: dict[str, Any]) -> None:
    assert (again["shown"]["slot"], again["shown"]["release"]) == ("A", "1.0")
    left = FIRST | os_release("1.0") | OWN
    left["sshd_config"] = SSHD.replace("Port 22\n", "Port 2222\n")
    del left["dull"]
    assert again["shown"]["etc"] == left
