"""Neighbours that find one another by multicast DNS, over the loopback of a network where nobody else announces."""

from collections.abc import Iterator

import pytest
from tests.local_network import Host, local_network

from overhaul.agent.sharing import asking
from overhaul.agent.sharing.discovery import DiscoveryFailedError, announced, find_neighbours
from overhaul.install.sharing import ShareSettings

ONLY_LOOPBACK = ["127.0.0.1"]
#: Longer than a busy machine takes to be found.
_PATIENCE_S = 120
Found = list[tuple[str, int]]


@pytest.fixture
def host() -> Iterator[Host]:
    """Yield a host whose loopback is its own: that of this machine carries what other runs announce."""
    with local_network(["alone"]) as hosts:
        yield hosts["alone"]


def found() -> Found:
    """Return the first neighbour that announces itself."""
    return find_neighbours(patience_s=_PATIENCE_S, interfaces=ONLY_LOOPBACK, enough=1)


def test_whoever_announces_itself_is_found_by_its_address_alone(host: Host) -> None:
    def find() -> Found:
        with announced(port=7373, addresses=["127.0.0.1"], interfaces=ONLY_LOOPBACK):
            return found()

    assert host.inside(find) == [("127.0.0.1", 7373)]


def test_an_address_that_is_not_near_is_not_taken(host: Host) -> None:
    def find() -> Found:
        with (
            announced(port=7373, addresses=["198.51.100.7"], interfaces=ONLY_LOOPBACK),
            announced(port=7474, addresses=["127.0.0.1"], interfaces=ONLY_LOOPBACK),
        ):
            return found()

    assert host.inside(find) == [("127.0.0.1", 7474)]


def test_a_network_without_multicast_is_no_reason_for_an_update_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[tuple[str, int]]:
        raise DiscoveryFailedError(reason="no multicast here")

    monkeypatch.setattr("overhaul.agent.sharing.discovery.find_neighbours", fail)

    assert asking.find(ShareSettings(discover=True)) == []
    (named,) = asking.find(ShareSettings(discover=True, neighbours=("192.168.7.7:7373",)))
    assert named.address == "192.168.7.7:7373"


def test_a_device_does_not_ask_itself() -> None:
    share = ShareSettings(listen="192.168.7.7:7373", neighbours=("192.168.7.7:7373",))

    assert asking.find(share) == []
