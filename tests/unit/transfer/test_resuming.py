"""Going on after a break, over a fetcher in memory that breaks as told."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from overhaul.transfer.counting import CountingFetcher
from overhaul.transfer.fetcher import (
    InterruptedTransferError,
    Request,
    Response,
    UnreachableError,
)
from overhaul.transfer.ranges import WrongRangeError
from overhaul.transfer.resuming import ResumingFetcher

_CONTENT = bytes(range(256)) * 1000
_URL = "https://example/file"


class Breaking:
    """Serves one file; each request takes the next plan: a status, `unreachable`, or bytes until the break."""

    def __init__(self, *plans: int | str | None, etag: str | None = '"v1"', ranges: bool = True) -> None:
        self.plans = list(plans)
        self.etag = etag
        self.ranges = ranges
        self.requests: list[Request] = []
        self.changes_to: str | None = None

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        self.requests.append(request)
        plan = self.plans.pop(0) if self.plans else None
        if plan == "unreachable":
            raise UnreachableError(url=request.url, reason="test")
        if isinstance(plan, str):
            yield Response(url=request.url, status=int(plan), headers={}, body=iter(()))
            return
        headers = {} if self.etag is None else {"etag": self.etag}
        is_same = request.if_range is None or request.if_range == self.etag
        start, status = 0, 200
        if self.ranges and is_same and (request.start or request.end is not None):
            start, status = request.start, 206
            headers["content-range"] = f"bytes {start}-x/{len(_CONTENT)}"
        data = _CONTENT[start : request.end if status == 206 else None]
        yield Response(url=request.url, status=status, headers=headers, body=self._body(data, plan))

    def _body(self, data: bytes, broken_after: int | None) -> Iterator[bytes]:
        end = len(data) if broken_after is None else broken_after
        for begin in range(0, end, 10_000):
            yield data[begin : min(begin + 10_000, end)]
        if self.changes_to is not None:
            self.etag = self.changes_to
        if broken_after is not None:
            raise InterruptedTransferError(url=_URL, received_bytes=end, reason="test")


def _fetch(server: Breaking, waits: list[float] | None = None, *, start: int = 0, end: int | None = None) -> bytes:
    fetcher = ResumingFetcher(server, wait=(waits if waits is not None else []).append, attempts=4)
    with fetcher.fetch(Request(url=_URL, start=start, end=end)) as response:
        return b"".join(response.body)


def test_a_broken_body_goes_on_from_the_byte_reached() -> None:
    server = Breaking(100_000, 30_000)
    assert _fetch(server) == _CONTENT
    assert [(r.start, r.if_range) for r in server.requests] == [(0, None), (100_000, '"v1"'), (130_000, '"v1"')]


def test_a_broken_range_goes_on_inside_itself() -> None:
    server = Breaking(500)
    assert _fetch(server, start=1000, end=3000) == _CONTENT[1000:3000]
    assert (server.requests[1].start, server.requests[1].end) == (1500, 3000)


def test_a_range_that_breaks_behind_its_last_byte_is_complete() -> None:
    server = Breaking(2000)
    assert _fetch(server, start=1000, end=3000) == _CONTENT[1000:3000]
    assert len(server.requests) == 1


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_tag_no_validator_is_sent(etag: str | None) -> None:
    server = Breaking(70_000, etag=etag)
    assert _fetch(server) == _CONTENT
    assert server.requests[1].if_range is None


def test_a_server_that_ignores_ranges_sends_again_and_what_is_here_is_skipped() -> None:
    assert _fetch(Breaking(100_000, ranges=False)) == _CONTENT
    # The answer to a range was the whole file, so the position counts from its start.
    assert _fetch(Breaking(100_000, ranges=False), start=5, end=200_000) == _CONTENT


def test_a_file_that_changed_meanwhile_is_not_mixed() -> None:
    server = Breaking(100_000)
    server.changes_to = '"v2"'
    with pytest.raises(InterruptedTransferError, match="changed") as caught:
        _fetch(server)
    assert caught.value.received_bytes == 100_000


def test_416_for_the_rest_is_an_interruption() -> None:
    with pytest.raises(InterruptedTransferError, match="416"):
        _fetch(Breaking(100, "416"))


def test_tries_without_progress_are_bounded_and_wait_longer_each_time() -> None:
    waits: list[float] = []
    server = Breaking(10_000, 0, 0, 0, 0, 0)
    with pytest.raises(InterruptedTransferError) as caught:
        _fetch(server, waits)
    assert waits == [1.0, 2.0, 4.0]
    assert caught.value.received_bytes == 10_000


def test_a_byte_at_a_time_does_not_hold_us_for_ever() -> None:
    server = Breaking(*[1] * 100)
    with pytest.raises(InterruptedTransferError):
        _fetch(server)
    assert len(server.requests) == 4


def test_progress_gives_the_tries_back() -> None:
    assert _fetch(Breaking(*[70_000] * 3, 0, 0)) == _CONTENT


def test_an_unreachable_or_overloaded_server_is_asked_again() -> None:
    server = Breaking("unreachable", "503", "429")
    assert _fetch(server) == _CONTENT
    assert len(server.requests) == 4


def test_the_last_answer_of_an_overloaded_server_is_returned() -> None:
    fetcher = ResumingFetcher(Breaking(*["503"] * 9), wait=lambda _seconds: None, attempts=3)
    with fetcher.fetch(Request(url=_URL)) as response:
        assert response.status == 503


def test_an_unreachable_server_is_given_up() -> None:
    server = Breaking(*["unreachable"] * 9)
    with pytest.raises(UnreachableError):
        _fetch(server)
    assert len(server.requests) == 4


def test_a_missing_file_is_asked_for_once() -> None:
    server = Breaking("404")
    assert _fetch(server) == b""
    assert len(server.requests) == 1


def test_counting_below_counts_every_try() -> None:
    counting = CountingFetcher(Breaking(100_000, ranges=False))
    with ResumingFetcher(counting, wait=lambda _seconds: None).fetch(Request(url=_URL)) as response:
        assert b"".join(response.body) == _CONTENT
    assert (counting.requests, counting.bytes_received) == (2, 100_000 + len(_CONTENT))


class WrongParts:
    """A server that answers everything with a part from the middle, and gives up being asked after a while."""

    def __init__(self) -> None:
        self.asked = 0

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        self.asked += 1
        assert self.asked < 100, "it is asked without end"
        headers = {"content-range": "bytes 7-9/100"}
        yield Response(url=request.url, status=206, headers=headers, body=iter([b"abc"]))


@pytest.mark.parametrize(("start", "asked"), [(0, 1), (30, 2)])
def test_a_server_that_sends_wrong_parts_whatever_it_is_asked_is_given_up(start: int, asked: int) -> None:
    server = WrongParts()
    fetcher = ResumingFetcher(server, wait=lambda _seconds: None)
    with pytest.raises(WrongRangeError), fetcher.fetch(Request(url=_URL, start=start)):
        pass
    assert server.asked == asked
