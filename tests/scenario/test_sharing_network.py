"""Devices that share a release on a real local network: namespaces on a bridge, found by multicast DNS.

The repository stands on a host of its own, which counts what it sends. The server and those who give are processes of
the product; agents run in threads of their hosts.
"""

import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from tests.fleet import RealDevice, RealRepository, small_image
from tests.interruptions import packed_image
from tests.local_network import Host, local_network
from tests.strangers import Stranger, deny, hang, lie, vanish
from tests.waiting import PATIENCE_S
from zeroconf._dns import DNSAddress, DNSPointer, DNSService, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing

from overhaul.agent.outcomes import Updated
from overhaul.agent.sharing import discovery
from overhaul.agent.sharing.discovery import SERVICE, find_neighbours
from overhaul.agent.updating import update
from overhaul.host.listening import listen
from overhaul.progress import Silence

pytestmark = pytest.mark.xdist_group("sharing-network")

PORT = 7373
GIVES = {"listen": f"0.0.0.0:{PORT}", "discover": True}
_MULTICAST_DNS = ("224.0.0.251", 5353)
_RESPONSE = 0x8400
_IN, _A, _PTR, _TXT, _SRV = 1, 1, 12, 16, 33


@dataclass
class Site:
    """A repository with two releases, and hosts for devices that run the first."""

    directory: Path
    hosts: dict[str, Host]
    repository: RealRepository
    images: dict[str, Path]
    url: str

    def device(self, **share: object) -> RealDevice:
        """Make a device with this [share]."""
        made = RealDevice.make(
            self.directory / f"device-{secrets.token_hex(4)}",
            url=self.url,
            root=self.repository.root,
            image=self.images["1.0"],
            version="1.0",
            slot_size=self.images["1.0"].stat().st_size,
        )
        text = made.configuration.read_text()
        head, section, tail = text.partition("[share]\n")
        for key, value in share.items():
            tail, count = re.subn(rf"(?m)^{key} = .*$", f"{key} = {json.dumps(value)}", tail)
            assert count == 1
        made.configuration.write_text(head + section + tail)
        return made

    def update(self, name: str, device: RealDevice, *, finds: int = 0) -> Updated:
        """Update a device on the host `name`, which looks until it finds so many neighbours; return what it cost."""
        with pytest.MonkeyPatch.context() as patch:
            if finds:
                # As long as a device looks, on a machine that is busy nobody may have come by then.
                looking = partial(find_neighbours, patience_s=PATIENCE_S, enough=finds)
                patch.setattr(discovery, "find_neighbours", looking)
            answer = self.hosts[name].inside(lambda: update(device.device, progress=Silence()))
        assert isinstance(answer, Updated)
        assert device.slot("B").read_bytes() == self.images["2.0"].read_bytes()
        return answer


@contextmanager
def site(directory: Path, *names: str, image: Callable[[str], Path], only_link_local: bool = False) -> Iterator[Site]:
    """Make a site with hosts of these names."""
    repository = RealRepository(directory / "repository")
    images = {version: image(version) for version in ("1.0", "2.0")}
    for version, made in images.items():
        repository.publish(made, version)
    with local_network(("server", *names), only_link_local=only_link_local) as hosts:
        server = hosts["server"]
        address = server.address
        if only_link_local:
            # Where a router would lead to: devices have nothing but their link-local addresses.
            address = "fd00:77::1"
            server.run("ip", "address", "add", f"{address}/128", "dev", "lo", "nodad")
            for name in names:
                hosts[name].run("ip", "route", "add", f"{address}/128", "via", server.link_local, "dev", "lan0")
        arguments: list[str | Path] = ["serve", "--repository", repository.directory, f"--host={address}"]
        with server.process(*arguments, "--port=8780") as process:
            assert process.stdout is not None
            process.stdout.readline()
            url = f"http://[{address}]:8780" if ":" in address else f"http://{address}:8780"
            yield Site(directory, hosts, repository, images, url)


@contextmanager
def giving(host: Host, device: RealDevice) -> Iterator[None]:
    """Let a device give for the length of a block."""
    with host.process("device", "share", "--config", device.configuration) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Sharing on ")
        yield


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Releases whose delta is worth it."""
    directory = tmp_path_factory.mktemp("household")
    versions = {"1.0": 1, "2.0": 2}
    names = ("first", "second", "third", "quiet")
    image = lambda version: packed_image(directory, versions[version], size_kib=3072)  # noqa: E731
    with site(directory, *names, image=image) as made:
        yield made


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Releases that are cheaper by chunks."""
    directory = tmp_path_factory.mktemp("street")
    image = lambda version: small_image(directory / f"{version}.img", version)  # noqa: E731
    with site(directory, "good", "bad", "device", "other", image=image) as made:
        yield made


def test_the_second_and_third_device_take_the_delta_from_neighbours_and_who_is_off_asks_nobody(
    household: Site,
) -> None:
    server, hosts = household.hosts["server"], household.hosts
    sent, costs = {}, {}
    with ExitStack() as opened:
        for name, finds in (("first", 0), ("second", 1), ("third", 2), ("quiet", 0)):
            server.count(name, f"ip daddr {hosts[name].address}")
            hosts[name].count("others", f"ip daddr != {server.address} meta l4proto {{ tcp, udp, igmp }}")
            device = household.device(**({} if name == "quiet" else GIVES))
            costs[name] = household.update(name, device, finds=finds)
            sent[name] = server.counted(name)[1]
            if name != "quiet":
                opened.enter_context(giving(hosts[name], device))

    assert {answer.way for answer in costs.values()} == {"delta"}
    whole = costs["first"].bytes_received
    assert costs["first"].neighbour_bytes == 0
    for name in ("second", "third"):
        # The same few bytes, and not all that changed.
        assert whole / 2 < costs[name].neighbour_bytes < whole
        # Packets with their headers; metadata and the record are only ever asked of the repository.
        assert sent[name] < sent["first"] / 3
        assert hosts[name].counted("others")[0] > 0
    assert costs["quiet"].neighbour_bytes == 0
    assert hosts["quiet"].counted("others") == (0, 0)
    assert sent["quiet"] > whole


@contextmanager
def _flood(host: Host, *, ports: range) -> Iterator[None]:
    """Announce neighbours without addresses, and many on one address, as fast as the network takes it."""
    packets = [
        packet for number, port in enumerate(ports) for packet in _announcement(host.address, number, port).packets()
    ]
    ending = threading.Event()

    def announce() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            sending.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host.address))
            sending.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
            sending.bind((host.address, 5353))
            while not ending.wait(0.02):
                for packet in packets:
                    sending.sendto(packet, _MULTICAST_DNS)

    thread = threading.Thread(target=lambda: host.inside(announce))
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def _announcement(address: str, number: int, port: int) -> DNSOutgoing:
    name = f"flood{number}.{SERVICE}"
    answer = DNSOutgoing(_RESPONSE)
    answer.add_answer_at_time(DNSPointer(SERVICE, _PTR, _IN, 120, name), 0)
    if number % 2:
        server = f"flood{number}.local."
        answer.add_answer_at_time(DNSService(name, _SRV, _IN, 120, 0, 0, port, server), 0)
        answer.add_answer_at_time(DNSText(name, _TXT, _IN, 120, b"\0"), 0)
        answer.add_answer_at_time(DNSAddress(server, _A, _IN, 120, socket.inet_aton(address)), 0)
    return answer


def test_one_good_neighbour_among_bad_ones_is_found_and_gives_the_release(street: Site, tmp_path: Path) -> None:
    hosts = street.hosts
    good = street.device(**GIVES)
    street.update("good", good)
    whole = street.update("other", street.device()).bytes_received
    stranger = RealRepository(tmp_path / "other-product")
    stranger.publish(small_image(tmp_path / "other.img", "other"), "1.0")
    with ExitStack() as opened:
        bad = [
            opened.enter_context(
                Stranger(script, lacks=lacks, listening=hosts["bad"].inside(lambda: listen(hosts["bad"].address, 0)))
            )
            for script in (lie, hang, vanish, deny)
            for lacks in (b"/pieces/", b"-")
        ]
        opened.enter_context(_flood(hosts["bad"], ports=range(20000, 20060)))
        opened.enter_context(giving(hosts["good"], good))
        # It has a slot of another product's, and is asked for what it cannot know.
        opened.enter_context(giving(hosts["other"], street.device(**GIVES)))
        device = street.device(neighbours=[one.address for one in bad], discover=True)
        answer = street.update("device", device)

    assert all(one.requests for one in bad)
    assert answer.neighbour_bytes > whole / 2
    assert answer.bytes_received < whole / 4


def test_the_cap_is_held_and_who_is_put_off_by_it_waits(street: Site) -> None:
    cap = 100_000
    first = street.device(**GIVES, max_bytes_per_s=cap)
    whole = street.update("good", first).bytes_received
    with giving(street.hosts["good"], first), ThreadPoolExecutor() as pool:
        begin = time.monotonic()
        takers = [street.device(neighbours=[f"{street.hosts['good'].address}:{PORT}"]) for _number in range(3)]
        answers = list(pool.map(street.update, ("device", "bad", "other"), takers))
        elapsed_s = time.monotonic() - begin

    assert all(answer.bytes_received < whole / 4 for answer in answers)
    given = sum(answer.neighbour_bytes for answer in answers)
    # The last answer goes out as fast as the network takes it, and what follows it waits.
    assert given - max(answer.neighbour_bytes for answer in answers) <= cap * elapsed_s


def test_devices_with_nothing_but_link_local_addresses_find_one_another(tmp_path: Path) -> None:
    image = lambda version: small_image(tmp_path / f"{version}.img", version)  # noqa: E731
    with site(tmp_path, "first", "second", image=image, only_link_local=True) as here:
        first = here.device(listen=f"[::]:{PORT}", discover=True)
        whole = here.update("first", first).bytes_received
        with giving(here.hosts["first"], first):
            answer = here.update("second", here.device(discover=True), finds=1)

    assert answer.neighbour_bytes > whole / 2
    assert answer.bytes_received < whole / 4
