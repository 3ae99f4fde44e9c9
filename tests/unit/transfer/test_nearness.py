"""Which addresses are of one's own network."""

import pytest

from overhaul.transfer.nearness import is_near, split_address


@pytest.mark.parametrize(
    "host",
    ["10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.3.4", "127.0.0.1", "::1", "fe80::1",
     "fe80::1%eth0", "fd12::7", "::ffff:192.168.1.1"],
)  # fmt: skip
def test_private_and_link_local_addresses_are_near(host: str) -> None:
    assert is_near(host)


@pytest.mark.parametrize(
    "host",
    ["8.8.8.8", "172.32.0.1", "100.64.0.1", "0.0.0.0", "192.0.2.1", "198.18.0.1", "2001:db8::1", "::ffff:8.8.8.8",
     "::", "64:ff9b::808:808", "localhost", "example.com", "", "10.1", "0x0a000001"],
)  # fmt: skip
def test_everything_else_is_not(host: str) -> None:
    assert not is_near(host)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("192.168.1.5:7373", ("192.168.1.5", 7373)),
        ("[fe80::1]:80", ("fe80::1", 80)),
        ("192.168.1.5", None),
        ("192.168.1.5:", None),
        ("192.168.1.5:99999", None),
        ("192.168.1.5:\u0661", None),
        ("user@192.168.1.5:80", None),
        ("8.8.8.8:80", None),
    ],
)
def test_an_address_has_a_host_that_is_near_and_a_port(text: str, found: tuple[str, int] | None) -> None:
    assert split_address(text) == found
