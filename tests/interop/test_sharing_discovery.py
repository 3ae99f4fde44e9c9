"""Neighbours that find one another by multicast DNS, over loopback."""

import pytest

from overhaul.agent.sharing import asking
from overhaul.agent.sharing.discovery import DiscoveryFailedError, announced, find_neighbours
from overhaul.install.sharing import ShareSettings

ONLY_LOOPBACK = ["127.0.0.1"]


def test_whoever_announces_itself_is_found_by_its_address_alone() -> None:
    with announced(port=7373, addresses=["127.0.0.1"], interfaces=ONLY_LOOPBACK):
        assert find_neighbours(patience_s=10, interfaces=ONLY_LOOPBACK, enough=1) == [("127.0.0.1", 7373)]


def test_an_address_that_is_not_near_is_not_taken() -> None:
    with (
        announced(port=7373, addresses=["198.51.100.7"], interfaces=ONLY_LOOPBACK),
        announced(port=7474, addresses=["127.0.0.1"], interfaces=ONLY_LOOPBACK),
    ):
        assert find_neighbours(patience_s=10, interfaces=ONLY_LOOPBACK, enough=1) == [("127.0.0.1", 7474)]


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
