"""The engine on libcurl: connections kept alive, HTTP/2 where the server has it.

libcurl's multi interface runs in the caller's thread: pulling the body is what drives the transfer, and a
transfer whose buffer is full is paused, so memory stays bounded however fast the server sends. Several
responses may be open at once in one thread.
"""

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import pycurl

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

#: CURLOPT_SUPPRESS_CONNECT_HEADERS, which pycurl does not name.
_SUPPRESS_CONNECT_HEADERS = 265
_RECEIVE_BYTES = 256 * 1024
_BUFFER_BYTES = 1024 * 1024
#: How long one wait for the network may last before the clocks are looked at again.
_WAIT_S = 0.25
#: libcurl has nothing to wait on while it resolves a name; this is the pause it recommends for that, shortened.
_RESOLVE_PAUSE_S = 0.01


class CurlFetcher:
    """Fetches with libcurl."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._multi = pycurl.CurlMulti()
        self._idle: list[pycurl.Curl] = []
        self._running: dict[pycurl.Curl, _Transfer] = {}
        #: Whether a connection fell silent; one that carries several requests is not closed with the one that failed.
        self._distrusts_connections = False
        self._authorities = trusted_authorities(settings.ca_file)

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Send `request` and return its response as a context."""
        url = request.url
        check_address(url, allow_http=self._settings.allow_http)
        for _hop in range(MAX_REDIRECTS + 1):
            transfer = self._begin(url, request)
            try:
                self._wait_for_headers(transfer)
                target = redirected_to(
                    url, status=transfer.status, headers=transfer.headers, allow_http=self._settings.allow_http
                )
                if target is None:
                    yield Response(url=url, status=transfer.status, headers=transfer.headers, body=self._body(transfer))
                    return
            finally:
                self._finish(transfer)
            url = target
        raise too_many_redirects(request.url)

    def _begin(self, url: str, request: Request) -> "_Transfer":
        handle = self._idle.pop() if self._idle else pycurl.Curl()
        settings = self._settings
        pace = Pace(min_bytes_per_s=settings.min_bytes_per_s, window_s=settings.min_speed_window_s)
        transfer = _Transfer(url=url, handle=handle, pace=pace)
        headers = request_headers(request, url=url, user_agent=settings.user_agent)
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.FOLLOWLOCATION, 0)
        handle.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
        handle.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        # Without it a proxy's answer to CONNECT would pass for the server's.
        handle.setopt(_SUPPRESS_CONNECT_HEADERS, 1)
        # An empty proxy also switches off what the environment says about proxies.
        handle.setopt(pycurl.PROXY, settings.proxy or "")
        handle.setopt(pycurl.NOPROXY, "")
        handle.setopt(pycurl.CONNECTTIMEOUT_MS, max(1, int(settings.connect_timeout_s * 1000)))
        handle.setopt(pycurl.FRESH_CONNECT, int(self._distrusts_connections))
        self._distrusts_connections = False
        handle.setopt(pycurl.NOSIGNAL, 1)
        handle.setopt(pycurl.BUFFERSIZE, _RECEIVE_BYTES)
        if self._authorities is not None:
            handle.setopt(pycurl.CAINFO, self._authorities)
        handle.setopt(pycurl.HEADERFUNCTION, transfer.take_header)
        handle.setopt(pycurl.WRITEFUNCTION, transfer.take_body)
        self._running[handle] = transfer
        self._multi.add_handle(handle)
        return transfer

    def _finish(self, transfer: "_Transfer") -> None:
        self._multi.remove_handle(transfer.handle)
        del self._running[transfer.handle]
        transfer.handle.reset()
        self._idle.append(transfer.handle)

    def _wait_for_headers(self, transfer: "_Transfer") -> None:
        while not transfer.has_headers:
            if transfer.ended:
                raise self._unreachable(transfer)
            try:
                self._advance(transfer)
            except TooSlowError as error:
                self._distrusts_connections = True
                raise UnreachableError(url=transfer.url, reason=str(error)) from error

    def _unreachable(self, transfer: "_Transfer") -> UnreachableError:
        reason = transfer.failure or "it closed the connection"
        if transfer.failure_code == pycurl.E_PEER_FAILED_VERIFICATION:
            verify_code = int(transfer.handle.getinfo(pycurl.SSL_VERIFYRESULT))
            return UntrustedServerError(url=transfer.url, reason=reason, verify_code=verify_code)
        proxy, status = self._settings.proxy, int(transfer.handle.getinfo(pycurl.HTTP_CONNECTCODE))
        if proxy is not None and status >= 300:
            return ProxyRefusedError(url=transfer.url, proxy=without_password(proxy), reason=f"status {status}")
        return UnreachableError(url=transfer.url, reason=reason)

    def _body(self, transfer: "_Transfer") -> Iterator[bytes]:
        delivered = 0
        while True:
            while transfer.pieces:
                piece = transfer.pieces.popleft()
                transfer.buffered_bytes -= len(piece)
                delivered += len(piece)
                yield piece
            if transfer.ended:
                if transfer.failure is not None:
                    raise InterruptedTransferError(url=transfer.url, received_bytes=delivered, reason=transfer.failure)
                return
            if transfer.is_paused:
                transfer.is_paused = False
                transfer.handle.pause(pycurl.PAUSE_CONT)
                continue
            try:
                self._advance(transfer)
            except TooSlowError as error:
                self._distrusts_connections = True
                raise InterruptedTransferError(url=transfer.url, received_bytes=delivered, reason=str(error)) from error

    def _advance(self, transfer: "_Transfer") -> None:
        """Let libcurl work; when that brought `transfer` nothing, wait for the network first."""
        before = transfer.received_bytes
        began = time.monotonic()
        self._perform()
        waited = 0.0
        if transfer.received_bytes == before and not transfer.ended:
            # From before the work on: libcurl may have been busy with bytes that are neither head nor content.
            if self._multi.select(_WAIT_S) == -1:
                time.sleep(_RESOLVE_PAUSE_S)
            # Until the connection stands the connect time-out rules, not the pace.
            if transfer.handle.getinfo(pycurl.PRETRANSFER_TIME) > 0:
                waited = time.monotonic() - began
            self._perform()
        if not transfer.ended:
            transfer.pace.add(received_bytes=transfer.received_bytes - before, waited_s=waited)

    def _perform(self) -> None:
        while self._multi.perform()[0] == pycurl.E_CALL_MULTI_PERFORM:
            pass
        while True:
            queued, finished, failed = self._multi.info_read()
            for handle in finished:
                self._running[handle].ended = True
            for handle, code, message in failed:
                self._running[handle].failure_code = code
                self._running[handle].ended = True
                # libcurl may quote what the server sent, which need not be text.
                printable = message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
                self._running[handle].failure = printable or "the connection broke"
            if not queued:
                return


class _Transfer:
    """One request under way, as libcurl's callbacks see it."""

    def __init__(self, *, url: str, handle: pycurl.Curl, pace: Pace) -> None:
        self.url = url
        self.handle = handle
        self.pace = pace
        self.status = 0
        self.headers: dict[str, str] = {}
        #: Whether the first line of a block of headers came; only there libcurl has checked the status.
        self.has_status = False
        self.has_headers = False
        self.pieces: deque[bytes] = deque()
        self.buffered_bytes = 0
        self.received_bytes = 0
        self.is_paused = False
        self.ended = False
        self.failure: str | None = None
        self.failure_code = pycurl.E_OK

    def take_header(self, line: bytes) -> None:
        self.received_bytes += len(line)
        if self.has_headers:
            return  # trailers of a chunked body
        text = line.decode("iso-8859-1").strip()
        if not self.has_status:
            self.status = int(text.split(None, 2)[1])
            self.headers = {}
            self.has_status = True
        elif text:
            name, _colon, value = text.partition(":")
            self.headers[name.strip().lower()] = value.strip()
        else:
            # 100 to 199 announce that the real answer follows.
            self.has_headers = self.status >= 200
            self.has_status = False

    def take_body(self, data: bytes) -> int | None:
        if self.buffered_bytes >= _BUFFER_BYTES:
            self.is_paused = True
            return pycurl.WRITEFUNC_PAUSE
        self.received_bytes += len(data)
        self.buffered_bytes += len(data)
        self.pieces.append(data)
        return None
