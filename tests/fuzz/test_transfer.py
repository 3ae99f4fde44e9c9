"""What servers answer: headers that mean nothing, lengths that lie, redirects to nowhere.

The engines meet a server that sends bytes instead of HTTP; the wrappers meet an engine that lies.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.errors import NetworkError, TrustError
from overhaul.transfer.fetcher import Fetcher, Request, Response, UnreachableError
from overhaul.transfer.fetching import fetch_bytes
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.ranges import content_range_start, read_ranges
from overhaul.transfer.resuming import ResumingFetcher
from overhaul.transfer.settings import Engine, FetchSettings
from overhaul.transfer.wire import redirected_to
from tests.fuzz.mutations import fuzzing, judged, mutated

_URL = "https://host/repo/file"
_FAMILY = (NetworkError, TrustError)
_VALUES = st.sampled_from((
    "", "0", "3", "-1", "+5", "1_000", "9" * 19, "9" * 5000, "0" * 5000, "²", "bytes", "bytes 0-2/3", "bytes 2-1/*",
    "bytes " + "9" * 5000 + "-", "bytes ٣-", "bytes */3", 'W/"a"', '"a"', '"', "chunked", "gzip", "\x80\xff",
    "http://[", "https://[::1", "//[", "https://host:99999/", "https://host:x/", "https:///", "https://", "file:///x",
    "https://" + "a" * 300 + "/", "https://a..b/", "https://\x80/", "https://ho st/", "/%", "?", "javascript:x",
))  # fmt: skip
_HEADERS = st.dictionaries(
    st.sampled_from(["content-range", "content-length", "etag", "location", "transfer-encoding"]), _VALUES
)
_STATUSES = st.sampled_from([200, 206, 206, 301, 304, 404, 416, 500])


@dataclass
class _Liar:
    """An engine that answers anything."""

    answers: list[tuple[int, dict[str, str], list[bytes]]]
    asked: list[Request] = field(default_factory=list)

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Answer with the next lie; the last one stays."""
        self.asked.append(request)
        status, headers, pieces = self.answers[min(len(self.asked), len(self.answers)) - 1]
        yield Response(url=request.url, status=status, headers=headers, body=iter(pieces))


_ANSWERS = st.lists(
    st.tuples(_STATUSES, _HEADERS, st.lists(st.binary(max_size=20), max_size=5)), min_size=1, max_size=4
)


@fuzzing(180)
@given(_STATUSES, _HEADERS)
def test_headers_are_understood_or_passed_over(status: int, headers: dict[str, str]) -> None:
    response = Response(url=_URL, status=status, headers=headers, body=iter(()))
    start = judged(lambda: content_range_start(response), refusal=())
    assert start is None or start >= 0
    for allow_http in (True, False):
        target = judged(
            lambda: redirected_to(_URL, status=status, headers=headers, allow_http=allow_http),  # noqa: B023
            refusal=_FAMILY,
        )
        assert target is None or target.startswith("https://")


@fuzzing(180)
@given(_ANSWERS, st.sampled_from([0, 10, 100]), st.sampled_from([(0, None), (0, 10), (3, 8), (2, None), (5, 5)]))
def test_no_answer_brings_more_than_the_limit(
    answers: list[tuple[int, dict[str, str], list[bytes]]], limit: int, part: tuple[int, int | None]
) -> None:
    fetcher = ResumingFetcher(_Liar(answers), wait=lambda _seconds: None)
    start, end = part
    data = judged(lambda: fetch_bytes(fetcher, _URL, limit_bytes=limit, start=start, end=end), refusal=_FAMILY)
    assert data is None or len(data) <= limit
    assert data is None or end is None or len(data) == end - start


@fuzzing(180)
@given(_ANSWERS, st.lists(st.integers(0, 40), min_size=2, max_size=6).map(sorted))
def test_parts_have_their_length_or_are_refused(
    answers: list[tuple[int, dict[str, str], list[bytes]]], bounds: list[int]
) -> None:
    ranges = [(begin, end) for begin, end in zip(bounds[::2], bounds[1::2], strict=False) if begin < end]

    def read() -> list[int]:
        with closing(read_ranges(_Liar(answers), _URL, ranges)) as bodies:
            return [len(b"".join(body)) for body in bodies]

    lengths = judged(read, refusal=_FAMILY)
    assert lengths is None or lengths == [end - begin for begin, end in ranges]


class _RawServer:
    """Sends the same bytes to everybody and closes."""

    def __init__(self) -> None:
        self.answer = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/file"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._listening.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.settimeout(5)
                    connection.recv(65536)
                    connection.sendall(self.answer)
                except OSError:
                    continue

    def close(self) -> None:
        """Stop."""
        # Closing alone does not wake the thread that waits in accept.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()


_ANSWER = (
    b'HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nETag: "a"\r\nContent-Range: bytes 0-4/5\r\n'
    b"Connection: close\r\n\r\nhello"
)
_REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: https://[::1\r\nContent-Length: 0\r\n\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n\r\n"
_STRANGE = (
    b"HTTP/1.1 200 OK\r\nHTTP/foo: bar\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nhello",
    b"HTTP/1.1 206 OK\r\nContent-Range: bytes " + b"9" * 5000 + b"-1/1\r\n\r\nhello",
    b"HTTP/1.1 99999 OK\r\n\r\n",
    b"HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://" + b"a" * 300 + b"/\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://a b/\x80\xff\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: \xff\x80\r\n\r\n5\r\nhello",
    b"HTTP/1.1 302 Found\r\nLocation: https://a\xff/\r\n\r\n",
    b"HTTP/1.1 2\xff0 OK\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 300,
    b"\x00" * 100,
    b"",
)


@pytest.fixture(scope="module")
def server() -> Iterator[_RawServer]:
    server = _RawServer()
    yield server
    server.close()


@pytest.fixture(scope="module", params=list(Engine))
def engine(request: pytest.FixtureRequest) -> Fetcher:
    return open_fetcher(FetchSettings(engine=request.param, allow_http=True, min_speed_window_s=5))


def _fetch(fetcher: Fetcher, server: _RawServer, answer: bytes) -> bytes | None:
    server.answer = answer
    return judged(lambda: fetch_bytes(fetcher, server.url, limit_bytes=100), refusal=_FAMILY)


@pytest.mark.parametrize("answer", _STRANGE, ids=range(len(_STRANGE)))
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_strange_answer_is_an_error_of_the_network_or_of_trust(
    server: _RawServer, engine: Fetcher, answer: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    _fetch(engine, server, answer)
    assert "Traceback" not in capfd.readouterr().err


@fuzzing(30)
@given(answer=mutated(_ANSWER, _REDIRECT, _CHUNKED) | st.binary(max_size=100))
def test_bytes_instead_of_http_are_an_error_of_the_network_or_of_trust(
    server: _RawServer, engine: Fetcher, answer: bytes
) -> None:
    data = _fetch(engine, server, answer)
    assert data is None or len(data) <= 100


@pytest.mark.parametrize("location", ["http://[", "https://[::1", "https://:1/", "https://host:x/"])
def test_a_redirect_to_no_address_is_refused(location: str) -> None:
    with pytest.raises(UnreachableError):
        redirected_to(_URL, status=302, headers={"location": location}, allow_http=False)
