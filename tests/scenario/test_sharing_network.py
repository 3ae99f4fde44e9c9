"""Devices that share a release on a real local network: namespaces on a bridge, found by multicast DNS.

Updates and givers are processes of the product; the repository stands on a host of its own, whose uplink counts.
"""

import json
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fleet import RealDevice, RealRepository, small_image
from tests.local_network import Host, local_network

SIZE = 2 << 20
#: What a release that nobody else has costs at least: an eighth of the image is new, and cannot be compressed.
NEW_BYTES = SIZE // 8


@dataclass
class Site:
    """A repository and devices that run its first release, each on its own host."""

    directory: Path
    hosts: dict[str, Host]
    repository: RealRepository
    images: dict[str, Path]
    url: str

    def device(self, name: str, **share: object) -> RealDevice:
        """Make a device on the host `name`."""
        made = RealDevice.make(
            self.directory / f"{name}-{secrets.token_hex(3)}",
            url=self.url,
            root=self.repository.root,
            image=self.images["1.0"],
            version="1.0",
            slot_size=SIZE,
        )
        text = made.configuration.read_text()
        for key, value in share.items():
            text, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {json.dumps(value)}", text)
            assert count == 1
        made.configuration.write_text(text)
        return made

    def start(self, name: str, device: RealDevice) -> "subprocess.Popen[str]":
        """Start the update of a device on its host."""
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "overhaul",
            "device",
            "update",
            "--json",
            "--config",
            device.configuration,
        ]
        return subprocess.Popen(self.hosts[name].command(*command), stdout=subprocess.PIPE, text=True)

    def end(self, device: RealDevice, process: "subprocess.Popen[str]") -> dict[str, int]:
        """Wait for an update; return what it says."""
        told, _nothing = process.communicate(timeout=120)
        assert process.returncode == 0
        assert device.slot("B").read_bytes() == self.images["2.0"].read_bytes()
        answer: dict[str, int] = json.loads(told)
        return answer

    def update(self, name: str, device: RealDevice) -> dict[str, int]:
        """Update a device on its host; return what it says."""
        return self.end(device, self.start(name, device))


@contextmanager
def site(directory: Path, *names: str, only_link_local: bool = False) -> Iterator[Site]:
    """Make a site whose repository has the second release already."""
    repository = RealRepository(directory / "repository")
    images = {version: small_image(directory / f"{version}.img", version, size=SIZE) for version in ("1.0", "2.0")}
    for version, image in images.items():
        repository.publish(image, version)
    with local_network(("server", *names), only_link_local=only_link_local) as hosts:
        server = hosts["server"]
        host = server.address
        if only_link_local:
            # A router would stand there; devices keep nothing but their link-local addresses.
            host = "fd00:77::1"
            server.run("ip", "address", "add", f"{host}/128", "dev", "lo", "nodad")
            for name in names:
                hosts[name].run("ip", "route", "add", f"{host}/128", "via", server.link_local, "dev", "lan0")
        arguments: list[str | Path] = ["serve", "--repository", repository.directory, f"--host={host}", "--port=8780"]
        with server.process(*arguments) as process:
            assert process.stdout is not None
            process.stdout.readline()
            url = f"http://[{host}]:8780" if ":" in host else f"http://{host}:8780"
            yield Site(directory, hosts, repository, images, url)


@contextmanager
def giving(host: Host, device: RealDevice) -> Iterator[int]:
    """Let a device give; yield its port."""
    with host.process("device", "share", "--config", device.configuration) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline().rstrip(".\n").split()[-1])


ON = {"listen": "0.0.0.0:7373", "discover": True}


def test_second_and_third_device_find_the_first_and_take_the_release_from_it(tmp_path: Path) -> None:
    with site(tmp_path, "first", "second", "third") as here, ExitStack() as opened:
        for name in ("first", "second", "third"):
            here.hosts["server"].count(name, f"ip daddr {here.hosts[name].address}")
        costs = {}
        for name in ("first", "second", "third"):
            device = here.device(name, **ON)
            costs[name] = here.update(name, device)
            opened.enter_context(giving(here.hosts[name], device))
        sent = {name: here.hosts["server"].counted(name)[1] for name in costs}

    assert sent["first"] > NEW_BYTES
    assert costs["first"]["neighbour_bytes"] == 0
    for name in ("second", "third"):
        assert costs[name]["neighbour_bytes"] >= NEW_BYTES
        # Packets with their headers, metadata, records and indexes included.
        assert sent[name] < NEW_BYTES / 4
