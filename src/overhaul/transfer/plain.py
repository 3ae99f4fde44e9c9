"""The engine on urllib3, for devices without libcurl: the same promises from pure Python.

The minimum-speed rule lives below urllib3, in the reader of the socket, so that it also covers a server that
trickles its headers.
"""

import http.client
import io
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ProxyError

from overhaul.transfer.fetcher import (
    InterruptedTransferError,
    ProxyRefusedError,
    Request,
    Response,
    UnreachableError,
    UntrustedServerError,
)
from overhaul.transfer.settings import FetchSettings
from overhaul.transfer.wire import (
    MAX_REDIRECTS,
    Pace,
    TooSlowError,
    check_address,
    redirected_to,
    request_headers,
    too_many_redirects,
    trusted_authorities,
    without_password,
)

_READ_BYTES = 256 * 1024
#: What may come before, between and behind pieces of content, what is buffered of the content itself included.
_FRAMING_BYTES = 1024 * 1024
_FRAMING_SHARE = 16


class PlainFetcher:
    """Fetches with urllib3."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._pools = open_pools(settings)

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Send `request` and return its response as a context."""
        url = request.url
        check_address(url, allow_http=self._settings.allow_http)
        for _hop in range(MAX_REDIRECTS + 1):
            raw = self._send(url, request)
            try:
                headers = {name.lower(): value for name, value in raw.headers.items()}
                target = redirected_to(url, status=raw.status, headers=headers, allow_http=self._settings.allow_http)
                if target is None:
                    yield Response(url=url, status=raw.status, headers=headers, body=_body(url, raw))
                    return
            finally:
                _recycle(raw)
            url = target
        raise too_many_redirects(request.url)

    def _send(self, url: str, request: Request) -> urllib3.BaseHTTPResponse:
        try:
            return self._pools.request(
                "GET",
                url,
                headers=request_headers(request, url=url, user_agent=self._settings.user_agent),
                preload_content=False,
                decode_content=False,
                redirect=False,
            )
        except (HTTPError, OSError) as error:
            raise self._unreachable(url, error) from error

    def _unreachable(self, url: str, error: Exception) -> UnreachableError:
        causes = list(_causes(error))
        untrusted = next((cause for cause in causes if isinstance(cause, ssl.SSLCertVerificationError)), None)
        if untrusted is not None:
            return UntrustedServerError(url=url, reason=untrusted.verify_message, verify_code=untrusted.verify_code)
        proxy = self._settings.proxy
        if proxy is not None and any(isinstance(cause, ProxyError) for cause in causes):
            return ProxyRefusedError(url=url, proxy=without_password(proxy), reason=str(causes[-1]))
        return UnreachableError(url=url, reason=_reason(error))


def open_pools(settings: FetchSettings) -> urllib3.PoolManager:
    """Return urllib3's pools that keep to `settings`: no answer they wait for can last for ever."""
    options: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=settings.connect_timeout_s, read=settings.min_speed_window_s),
        "retries": False,
        "ca_certs": trusted_authorities(settings.ca_file),
    }
    if settings.proxy is None:
        pools = urllib3.PoolManager(**options)
    else:
        pools = urllib3.ProxyManager(settings.proxy, **options)
    pools.pool_classes_by_scheme = _paced_pools(settings)
    return pools


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield `error` and what it came from; urllib3 names the cause in one of three places."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        arguments = (argument for argument in seen.args if isinstance(argument, BaseException))
        seen = seen.__cause__ or next(arguments, None) or seen.__context__


def _body(url: str, raw: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    delivered = 0
    while True:
        try:
            piece = raw.read1(_READ_BYTES, decode_content=False)
        except (HTTPError, OSError) as error:
            raise InterruptedTransferError(url=url, received_bytes=delivered, reason=_reason(error)) from error
        if not piece:
            return
        delivered += len(piece)
        yield piece


def _reason(error: Exception) -> str:
    # urllib3 says "timed out" for every kind of timeout; ours knows more.
    return str(error.__cause__ if isinstance(error.__cause__, TooSlowError) else error)


def _recycle(raw: urllib3.BaseHTTPResponse) -> None:
    """Give the connection back when the body was read to its end; close it when not."""
    if raw.length_remaining == 0:
        # An empty body, such as a redirect's, has ended only once that was read.
        raw.drain_conn()
    else:
        raw.close()
    raw.release_conn()


def _paced_pools(settings: FetchSettings) -> dict[str, Any]:
    class PacedResponse(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
            super().__init__(sock, *arguments, **options)
            pace = Pace(min_bytes_per_s=settings.min_bytes_per_s, window_s=settings.min_speed_window_s)
            self.fp.close()
            self._paced = _PacedReader(sock.makefile("rb", buffering=0), pace)
            self.fp = io.BufferedReader(self._paced, _READ_BYTES)

        def read1(self, n: int = -1) -> bytes:
            content = super().read1(n)
            self._paced.allow_framing(len(content))
            return content

    class PacedConnection(HTTPConnection):
        response_class = PacedResponse

    class PacedSecureConnection(HTTPSConnection):
        response_class = PacedResponse

    class PacedPool(HTTPConnectionPool):
        ConnectionCls = PacedConnection

    class PacedSecurePool(HTTPSConnectionPool):
        ConnectionCls = PacedSecureConnection

    return {"http": PacedPool, "https": PacedSecurePool}


class _PacedReader(io.RawIOBase):
    """A socket's bytes, with the minimum-speed rule applied to each wait for them.

    A server that sends much and no content (heads that announce another, trailers) is too slow, too.
    """

    def __init__(self, raw: io.RawIOBase, pace: Pace) -> None:
        super().__init__()
        self._raw = raw
        self._pace = pace
        self._framing_allowed_bytes = _FRAMING_BYTES

    def allow_framing(self, content_bytes: int) -> None:
        """Allow for what came around so much content; chunks of one byte have five of framing."""
        self._framing_allowed_bytes = min(_FRAMING_BYTES, self._framing_allowed_bytes + _FRAMING_SHARE * content_bytes)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        began = time.monotonic()
        received: int | None = self._raw.readinto(buffer)
        # The end of the stream is not slowness: what it means is judged above, by the length promised.
        if received:
            self._pace.add(received_bytes=received, waited_s=time.monotonic() - began)
            self._framing_allowed_bytes -= received
            if self._framing_allowed_bytes < 0:
                raise TooSlowError(f"{_FRAMING_BYTES} bytes came without any of what was asked for")
        return received

    def close(self) -> None:
        self._raw.close()
        super().close()
