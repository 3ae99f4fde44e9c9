"""Failing over between mirrors, over servers in memory."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from overhaul.transfer.fetcher import InterruptedTransferError, Request, Response, UnreachableError
from overhaul.transfer.mirrors import MirrorFetcher

_BASES = ("https://one/repo", "https://two/repo/", "https://three")


class Servers:
    """Hosts with a status each, 0 for one that cannot be reached, -1 for one whose body breaks off."""

    def __init__(self, **status: int) -> None:
        self.status = status
        self.asked: list[str] = []

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        host = request.url.split("/")[2]
        self.asked.append(request.url)
        status = self.status.get(host, 200)
        if status == 0:
            raise UnreachableError(url=request.url, reason="test")
        yield Response(url=request.url, status=max(status, 200), headers={}, body=self._body(status))

    def _body(self, status: int) -> Iterator[bytes]:
        yield b"body"
        if status == -1:
            raise InterruptedTransferError(url="", received_bytes=4, reason="test")


def _status(fetcher: MirrorFetcher, url: str = "https://one/repo/x/y") -> int:
    with fetcher.fetch(Request(url=url)) as response:
        b"".join(response.body)
        return response.status


@pytest.mark.parametrize("trouble", [0, 429, 500, 503])
def test_a_broken_mirror_is_left_and_stays_left(trouble: int) -> None:
    servers = Servers(one=trouble)
    fetcher = MirrorFetcher(servers, base_urls=_BASES)
    assert [_status(fetcher), _status(fetcher)] == [200, 200]
    assert servers.asked == ["https://one/repo/x/y", "https://two/repo/x/y", "https://two/repo/x/y"]


@pytest.mark.parametrize("status", [404, 403, 410, 416])
def test_a_missing_object_is_an_answer(status: int) -> None:
    servers = Servers(one=status)
    assert _status(MirrorFetcher(servers, base_urls=_BASES)) == status
    assert len(servers.asked) == 1


def test_a_body_that_breaks_off_sends_the_next_request_elsewhere() -> None:
    servers = Servers(one=-1)
    fetcher = MirrorFetcher(servers, base_urls=_BASES)
    with pytest.raises(InterruptedTransferError):
        _status(fetcher)
    assert _status(fetcher) == 200
    assert servers.asked[-1] == "https://two/repo/x/y"


def test_when_all_are_broken_the_last_answer_counts() -> None:
    servers = Servers(one=500, two=0, three=503)
    assert _status(MirrorFetcher(servers, base_urls=_BASES)) == 503
    servers = Servers(one=500, two=0, three=0)
    with pytest.raises(UnreachableError):
        _status(MirrorFetcher(servers, base_urls=_BASES))
    assert len(servers.asked) == 3


def test_other_addresses_pass_untouched() -> None:
    servers = Servers(one=0)
    assert _status(MirrorFetcher(servers, base_urls=_BASES), "https://elsewhere/x") == 200
    assert _status(MirrorFetcher(servers, base_urls=("https://one/repo", "https://two"))) == 200
    assert servers.asked[0] == "https://elsewhere/x"
