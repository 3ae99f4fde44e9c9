"""What every fetching engine promises, over real HTTP on loopback."""

import os
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.certificates import write_certificate
from tests.loopback import LoopbackServer, serving
from tests.ports import reserved_port

from overhaul.transfer.fetcher import (
    Fetcher,
    InsecureAddressError,
    InterruptedTransferError,
    OversizeError,
    Request,
    Response,
    UnreachableError,
)
from overhaul.transfer.fetching import fetch_bytes
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import Engine, FetchSettings

_CONTENT = random.Random(1).randbytes(3_000_000)


@pytest.fixture(params=[Engine.CURL, Engine.PLAIN])
def settings(request: pytest.FixtureRequest) -> FetchSettings:
    return FetchSettings(engine=request.param, allow_http=True, connect_timeout_s=120, min_speed_window_s=120)


@pytest.fixture
def fetcher(settings: FetchSettings) -> Fetcher:
    return open_fetcher(settings)


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with serving() as running:
        running.files["file"] = _CONTENT
        yield running


def _read(fetcher: Fetcher, request: Request) -> tuple[Response, bytes]:
    with fetcher.fetch(request) as response:
        return response, b"".join(response.body)


def test_a_file_arrives_whole_with_lower_case_headers(fetcher: Fetcher, server: LoopbackServer) -> None:
    response, body = _read(fetcher, Request(url=f"{server.url}/file"))
    assert response.status == 200
    assert response.headers["content-length"] == str(len(_CONTENT))
    assert body == _CONTENT


def test_a_range_arrives_as_asked(fetcher: Fetcher, server: LoopbackServer) -> None:
    response, body = _read(fetcher, Request(url=f"{server.url}/file", start=1000, end=1_500_000))
    assert (response.status, body) == (206, _CONTENT[1000:1_500_000])
    assert server.requests[-1].headers["range"] == "bytes=1000-1499999"


def test_an_open_range_runs_to_the_end(fetcher: Fetcher, server: LoopbackServer) -> None:
    assert _read(fetcher, Request(url=f"{server.url}/file", start=2_999_990))[1] == _CONTENT[-10:]


def test_validators_are_sent_and_304_is_an_answer(fetcher: Fetcher, server: LoopbackServer) -> None:
    first, _body = _read(fetcher, Request(url=f"{server.url}/file"))
    again, body = _read(fetcher, Request(url=f"{server.url}/file", etag=first.headers["etag"]))
    assert (again.status, body) == (304, b"")
    _read(fetcher, Request(url=f"{server.url}/file", start=5, if_range='"x"'))
    assert server.requests[-1].headers["if-range"] == '"x"'


def test_a_refusal_is_returned_and_not_raised(fetcher: Fetcher, server: LoopbackServer) -> None:
    response, body = _read(fetcher, Request(url=f"{server.url}/missing"))
    assert (response.status, body) == (404, b"there is no such file")


def test_nothing_is_decoded(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("file", headers={"Content-Encoding": "gzip"})
    assert _read(fetcher, Request(url=f"{server.url}/file"))[1] == _CONTENT
    assert server.requests[-1].headers["accept-encoding"] == "identity"


def test_a_chunked_body_arrives_whole(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("file", chunked=True)
    assert _read(fetcher, Request(url=f"{server.url}/file"))[1] == _CONTENT


def test_one_connection_serves_many_requests(fetcher: Fetcher, server: LoopbackServer) -> None:
    for start in range(0, 50, 10):
        _read(fetcher, Request(url=f"{server.url}/file", start=start, end=start + 10))
    assert len({seen.port for seen in server.requests}) == 1


def test_two_responses_may_be_open_at_once(fetcher: Fetcher, server: LoopbackServer) -> None:
    with (
        fetcher.fetch(Request(url=f"{server.url}/file")) as outer,
        fetcher.fetch(Request(url=f"{server.url}/file", start=7)) as inner,
    ):
        assert b"".join(inner.body) == _CONTENT[7:]
        assert b"".join(outer.body) == _CONTENT


def test_a_body_left_unread_does_not_disturb_the_next_request(fetcher: Fetcher, server: LoopbackServer) -> None:
    with fetcher.fetch(Request(url=f"{server.url}/file")) as response:
        next(response.body)
    assert _read(fetcher, Request(url=f"{server.url}/file"))[1] == _CONTENT


def test_a_fast_server_does_not_fill_memory_of_a_slow_reader(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("flood", endless=True)
    with fetcher.fetch(Request(url=f"{server.url}/flood")) as idle:
        next(idle.body)
        # Work on a second response drives the same engine while nobody reads the first.
        for _round in range(3):
            assert _read(fetcher, Request(url=f"{server.url}/file"))[1] == _CONTENT
        transfers = getattr(fetcher, "_running", {}).values()
        assert all(transfer.buffered_bytes < 3_000_000 for transfer in transfers)


def test_endless_data_stops_at_the_limit(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("flood", endless=True)
    with pytest.raises(OversizeError):
        fetch_bytes(fetcher, f"{server.url}/flood", limit_bytes=100_000)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_cut_body_is_an_interruption_that_knows_its_bytes(
    fetcher: Fetcher, server: LoopbackServer, chunked: bool
) -> None:
    server.behave("file", cut_after=[500_000], chunked=chunked)
    with pytest.raises(InterruptedTransferError) as caught:
        _read(fetcher, Request(url=f"{server.url}/file"))
    assert 490_000 <= caught.value.received_bytes <= 500_000


def test_a_body_shorter_than_announced_is_an_interruption(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("file", length_error=10)
    with pytest.raises(InterruptedTransferError):
        _read(fetcher, Request(url=f"{server.url}/file"))


def test_a_body_longer_than_announced_ends_where_announced(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("file", length_error=-10)
    assert _read(fetcher, Request(url=f"{server.url}/file"))[1] == _CONTENT[:-10]


@pytest.mark.parametrize("trickle_headers", [False, True])
def test_a_trickling_server_is_given_up(settings: FetchSettings, server: LoopbackServer, trickle_headers: bool) -> None:
    server.behave("file", trickle_s=0.02, trickle_headers=trickle_headers)
    # Longer than a busy machine stands still: that would be silence.
    impatient = open_fetcher(replace(settings, min_bytes_per_s=10_000, min_speed_window_s=2))
    with pytest.raises(UnreachableError if trickle_headers else InterruptedTransferError, match="slower than"):
        _read(impatient, Request(url=f"{server.url}/file"))


def test_a_silent_server_is_given_up(settings: FetchSettings, server: LoopbackServer) -> None:
    server.on_request = server.stay_silent
    impatient = open_fetcher(replace(settings, min_speed_window_s=0.3))
    with pytest.raises(UnreachableError):
        _read(impatient, Request(url=f"{server.url}/file"))


@dataclass(frozen=True)
class Padded:
    """An answer that is whole and small, but for what is sent many times somewhere inside it."""

    before: bytes
    padding: bytes
    after: bytes


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3"
_PADDED = {
    "interim answers": Padded(
        b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
    ),
    "chunk extension": Padded(_CHUNKED + b";", b"x" * 1000, b"\r\nabc\r\n0\r\n\r\n"),
    "trailers": Padded(_CHUNKED + b"\r\nabc\r\n0\r\n", b"X-More: of it\r\n", b"\r\n"),
}


@contextmanager
def _padding(answer: Padded, *, size_bytes: int) -> Iterator[str]:
    """Serve `answer`, padded to so many bytes, to all who come; yield the address."""
    piece = answer.padding * (100_000 // len(answer.padding))

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                with closing(listening.accept()[0]) as connection, suppress(OSError):
                    connection.recv(10_000)
                    connection.sendall(answer.before)
                    for _piece in range(size_bytes // len(piece)):
                        connection.sendall(piece)
                    connection.sendall(answer.after)

    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/file"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("answer", _PADDED.values(), ids=_PADDED)
def test_an_answer_that_never_comes_to_its_content_is_given_up(settings: FetchSettings, answer: Padded) -> None:
    impatient = open_fetcher(replace(settings, min_speed_window_s=0.05))
    with _padding(answer, size_bytes=256 << 20) as url, pytest.raises((UnreachableError, InterruptedTransferError)):
        _read(impatient, Request(url=url))


@pytest.mark.parametrize("answer", _PADDED.values(), ids=_PADDED)
def test_a_little_of_it_does_no_harm(fetcher: Fetcher, answer: Padded) -> None:
    little = replace(answer, before=answer.before + answer.padding)
    with _padding(little, size_bytes=0) as url:
        assert _read(fetcher, Request(url=url))[1] == b"abc"


def test_content_in_the_smallest_chunks_arrives(fetcher: Fetcher) -> None:
    content = b"tiny" * 60_000
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content)
    answer = Padded(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"-", chunks + b"0\r\n\r\n")
    with _padding(answer, size_bytes=0) as url:
        assert _read(fetcher, Request(url=url))[1] == content


def test_nobody_listening_is_unreachable(fetcher: Fetcher) -> None:
    with reserved_port() as port, pytest.raises(UnreachableError):
        _read(fetcher, Request(url=f"http://127.0.0.1:{port}/file"))


def test_a_redirect_is_followed_and_the_final_address_reported(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("old", redirect="/file")
    response, body = _read(fetcher, Request(url=f"{server.url}/old", start=10))
    assert response.url == f"{server.url}/file"
    assert body == _CONTENT[10:]


def test_a_redirect_without_a_body_is_followed(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("old", redirect="/file", empty_redirect=True)
    assert _read(fetcher, Request(url=f"{server.url}/old"))[1] == _CONTENT
    assert len({seen.port for seen in server.requests}) == 1


def test_an_authorization_is_sent_and_stays_with_its_host(fetcher: Fetcher, server: LoopbackServer) -> None:
    with serving() as other:
        other.files["file"] = b"here"
        server.behave("elsewhere", redirect=f"{other.url}/file")
        server.behave("beside", redirect=f"{server.url}/file")
        for path in ("file", "elsewhere", "beside"):
            _read(fetcher, Request(url=f"{server.url}/{path}", authorization="Basic c2VjcmV0"))
        told = {seen.path: seen.headers.get("authorization") for seen in server.requests}
        assert told == dict.fromkeys(("file", "elsewhere", "beside"), "Basic c2VjcmV0")
        assert ["authorization" in seen.headers for seen in other.requests] == [False]
    assert "c2VjcmV0" not in repr(Request(url=server.url, authorization="Basic c2VjcmV0"))


def test_a_circle_of_redirects_ends(fetcher: Fetcher, server: LoopbackServer) -> None:
    server.behave("round", redirect="/round")
    with pytest.raises(UnreachableError, match="redirects more than"):
        _read(fetcher, Request(url=f"{server.url}/round"))


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1:1/"])
def test_a_redirect_to_another_kind_of_address_is_refused(
    fetcher: Fetcher, server: LoopbackServer, target: str
) -> None:
    server.behave("old", redirect=target)
    with pytest.raises(InsecureAddressError):
        _read(fetcher, Request(url=f"{server.url}/old"))


def test_plain_http_needs_permission(settings: FetchSettings, server: LoopbackServer) -> None:
    strict = open_fetcher(replace(settings, allow_http=False))
    with pytest.raises(InsecureAddressError):
        _read(strict, Request(url=f"{server.url}/file"))
    assert server.requests == []


def test_requests_go_through_the_proxy(settings: FetchSettings, server: LoopbackServer) -> None:
    proxied = open_fetcher(replace(settings, proxy=server.url))
    assert _read(proxied, Request(url="http://updates.example/file"))[1] == _CONTENT
    assert server.requests[-1].headers["host"] == "updates.example"


def test_proxies_of_the_environment_are_ignored(
    settings: FetchSettings, server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.setitem(os.environ, name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert _read(open_fetcher(settings), Request(url=f"{server.url}/file"))[1] == _CONTENT


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 with its key, in one PEM file."""
    return write_certificate(tmp_path_factory.mktemp("authority") / "both.pem")


@pytest.fixture
def secure_url(authority: Path) -> Iterator[str]:
    with serving(certificate=authority) as site:
        site.files["file"] = b"secret"
        site.behave("down", redirect="http://127.0.0.1:9/")
        yield site.url


def test_https_is_checked_against_the_configured_authority(
    settings: FetchSettings, secure_url: str, authority: Path
) -> None:
    trusting = open_fetcher(replace(settings, allow_http=False, ca_file=authority))
    assert _read(trusting, Request(url=f"{secure_url}/file"))[1] == b"secret"


def test_https_of_an_unknown_authority_is_refused(settings: FetchSettings, secure_url: str) -> None:
    with pytest.raises(UnreachableError):
        _read(open_fetcher(settings), Request(url=f"{secure_url}/file"))


def test_a_redirect_from_https_to_http_is_refused_even_where_http_is_allowed(
    settings: FetchSettings, secure_url: str, authority: Path
) -> None:
    with pytest.raises(InsecureAddressError):
        _read(open_fetcher(replace(settings, ca_file=authority)), Request(url=f"{secure_url}/down"))
