"""What is an address."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.transfer.wire import is_address


@pytest.mark.parametrize(
    "url",
    [
        "https://updates.test/",
        "http://127.0.0.1:8080",
        "HTTPS://Updates.Test/a?b#c",
        "https://[::1]:8443/content/x",
        "https://user@updates.test/x",
        "https://updates.test?query",
    ],
)
def test_addresses_with_a_host_are_some(url: str) -> None:
    assert is_address(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "updates.test/x",
        "file:///etc/passwd",
        "https:updates.test",
        "https:///x",
        "https://:443/x",
        "https://updates.test:0/x",
        "https://updates.test:70000/x",
        "https://updates.test:port/x",
        "https://[::1/x",
        "https://updates.test/a b",
        "https://updates.test/\n",
        "https://pâté.test/",
        " https://updates.test/",
    ],
)
def test_others_are_none(url: str) -> None:
    assert not is_address(url)


@given(st.text(alphabet="/?#@:[]ab.", max_size=20))
def test_what_follows_the_host_does_not_matter(rest: str) -> None:
    assert is_address("https://updates.test/" + rest)
    assert not is_address("https:///" + rest)
