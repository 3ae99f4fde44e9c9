"""Answers that end early, bring another part, ask to be left alone, or are not the repository's."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from overhaul.transfer.fetcher import (
    InterruptedTransferError,
    LoginPageError,
    RecodedAnswerError,
    RefusedStatusError,
    Request,
    Response,
    UnreachableError,
    UntrustedServerError,
    retry_after_s,
)
from overhaul.transfer.publishedonly import PublishedOnlyFetcher
from overhaul.transfer.resuming import ResumingFetcher

_URL = "https://example/file"
_CONTENT = bytes(range(256)) * 40


class Told:
    """Gives the answers it was told to give, in turn; an exception is raised."""

    def __init__(self, *answers: tuple[int, Mapping[str, str], bytes] | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[Request] = []

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, headers, body = answer
        yield Response(url=request.url, status=status, headers=headers, body=iter((body,) if body else ()))


def _fetch(told: Told, request: Request, waits: list[float] | None = None) -> tuple[int, bytes]:
    fetcher = ResumingFetcher(told, wait=(waits if waits is not None else []).append, attempts=4)
    with fetcher.fetch(request) as response:
        return response.status, b"".join(response.body)


def _part(start: int, end: int, *, total: int | str = len(_CONTENT)) -> tuple[int, Mapping[str, str], bytes]:
    return 206, {"content-range": f"bytes {start}-{end - 1}/{total}"}, _CONTENT[start:end]


def test_a_part_that_ends_early_is_gone_on_from() -> None:
    told = Told(_part(0, 5000), _part(5000, 9000))
    assert _fetch(told, Request(url=_URL, end=9000)) == (206, _CONTENT[:9000])
    assert (told.requests[1].start, told.requests[1].end) == (5000, 9000)


def test_a_whole_file_of_known_size_that_ends_early_is_gone_on_from() -> None:
    told = Told((200, {}, _CONTENT[:5000]), _part(5000, len(_CONTENT)))
    assert _fetch(told, Request(url=_URL, size_bytes=len(_CONTENT))) == (200, _CONTENT)


@pytest.mark.parametrize("second", [(416, {"content-range": "bytes */5000"}, b""), (200, {}, _CONTENT[:5000])])
def test_a_file_that_really_is_short_stays_short(second: tuple[int, Mapping[str, str], bytes]) -> None:
    told = Told((200, {}, _CONTENT[:5000]), second)
    assert _fetch(told, Request(url=_URL, size_bytes=len(_CONTENT))) == (200, _CONTENT[:5000])
    assert not told.answers


def test_a_part_whose_server_says_that_nothing_follows_is_not_asked_for_more() -> None:
    told = Told(_part(0, 5000, total=5000))
    assert _fetch(told, Request(url=_URL, end=9000)) == (206, _CONTENT[:5000])


def test_another_part_than_was_asked_for_lets_the_whole_be_asked_for() -> None:
    told = Told(_part(7, 9), (200, {}, _CONTENT))
    assert _fetch(told, Request(url=_URL, start=100, end=200)) == (200, _CONTENT)
    assert (told.requests[1].start, told.requests[1].end) == (0, None)


def test_a_server_that_asks_for_a_pause_gets_it() -> None:
    waits: list[float] = []
    told = Told((503, {"retry-after": "20"}, b""), (429, {}, b""), (200, {}, _CONTENT))
    assert _fetch(told, Request(url=_URL), waits) == (200, _CONTENT)
    assert waits == [20, 2.0]


def test_a_pause_longer_than_the_longest_wait_is_left_to_the_caller() -> None:
    waits: list[float] = []
    assert _fetch(Told((503, {"retry-after": "3600"}, b"")), Request(url=_URL), waits) == (503, b"")
    assert waits == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "120"}, 120),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Fri, 01 Jan 2027 00:01:00 GMT"}, None),
        ({"retry-after": "Fri, 01 Jan 2027 00:01:00 GMT", "date": "Fri, 01 Jan 2027 00:00:00 GMT"}, 60),
        ({"retry-after": "Fri, 01 Jan 2027 00:00:00 GMT", "date": "Fri, 01 Jan 2027 00:01:00 GMT"}, 0),
    ],
)
def test_a_pause_is_read_in_seconds_or_against_the_servers_clock(headers: dict[str, str], seconds: int | None) -> None:
    response = Response(url=_URL, status=503, headers=headers, body=iter(()))
    assert retry_after_s(response) == seconds
    assert RefusedStatusError.of(response).retry_after_s == seconds


def test_what_asking_again_cannot_mend_is_asked_once() -> None:
    told = Told(UntrustedServerError(url=_URL, reason="self-signed certificate", verify_code=18))
    with pytest.raises(UntrustedServerError):
        _fetch(told, Request(url=_URL))


@pytest.mark.parametrize("kind", ["text/html", "Text/HTML; charset=utf-8", None])
@pytest.mark.parametrize("body", [b"<html>", b"\xef\xbb\xbf\n <!DOCTYPE html>"])
def test_a_web_page_is_no_answer(kind: str | None, body: bytes) -> None:
    headers = {} if kind is None else {"content-type": kind}
    with pytest.raises(LoginPageError), PublishedOnlyFetcher(Told((200, headers, body))).fetch(Request(url=_URL)):
        pass


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"content-type": "text/html"}, b'{"signed": 1}'),
        (200, {"content-type": "application/octet-stream"}, b"<html>"),
        (206, {"content-range": "bytes 5-10/11"}, b"<html>"),
        (404, {"content-type": "text/html"}, b"<html>"),
        (200, {"content-encoding": "identity"}, b"data"),
        (200, {}, b""),
    ],
)
def test_what_may_be_a_published_file_passes_whole(answer: tuple[int, Mapping[str, str], bytes]) -> None:
    with PublishedOnlyFetcher(Told(answer)).fetch(Request(url=_URL)) as response:
        assert (response.status, b"".join(response.body)) == (answer[0], answer[2])


@pytest.mark.parametrize("status", [200, 206])
def test_a_content_coding_is_no_answer(status: int) -> None:
    told = Told((status, {"content-encoding": "gzip"}, b"\x1f\x8b"))
    with pytest.raises(RecodedAnswerError, match="'gzip'"), PublishedOnlyFetcher(told).fetch(Request(url=_URL)):
        pass


def test_a_break_before_the_first_byte_is_no_answer() -> None:
    class BreakingBody(Iterator[bytes]):
        def __next__(self) -> bytes:
            raise InterruptedTransferError(url=_URL, received_bytes=0, reason="test")

    class Breaking:
        @contextmanager
        def fetch(self, request: Request) -> Iterator[Response]:
            yield Response(url=request.url, status=200, headers={}, body=BreakingBody())

    with pytest.raises(UnreachableError), PublishedOnlyFetcher(Breaking()).fetch(Request(url=_URL)):
        pass
