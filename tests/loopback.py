"""A real HTTP server on loopback that can be told to misbehave.

It answers ranges, `If-Range`, conditional requests and keep-alive as a good web server does; a `Behaviour` laid
on a path makes it cut connections, trickle, lie about lengths or ignore ranges. Every request is recorded.
"""

import hashlib
import re
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


@dataclass
class Behaviour:
    """What is unusual about one path."""

    #: For each request in turn, after how many body bytes the connection is cut (None: not).
    cut_after: list[int | None] = field(default_factory=list)
    #: For each request in turn, a status sent instead of the file.
    statuses: list[int] = field(default_factory=list)
    #: Send one byte at a time with a pause between, the headers too when asked for.
    trickle_s: float | None = None
    trickle_headers: bool = False
    ignores_ranges: bool = False
    redirect: str | None = None
    empty_redirect: bool = False
    endless: bool = False
    #: Added to the Content-Length that is announced.
    length_error: int = 0
    sends_etag: bool = True
    weak_etag: bool = False
    chunked: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    #: The client's port: equal ports mean one connection.
    port: int


@dataclass(frozen=True)
class Content:
    """A file to serve."""

    size: int
    tag: str
    part: Callable[[int, int], bytes]


class LoopbackServer:
    """Serves `files`, and what lies below `root` when one is given."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root
        self.files: dict[str, bytes] = {}
        self.behaviours: dict[str, Behaviour] = {}
        self.requests: list[Seen] = []
        #: Of bodies that were begun: they count before they leave, so whoever has read one finds it counted.
        self.body_bytes = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.on_request: Callable[[str], None] = lambda _path: None
        self.url = ""

    def behave(self, path: str, **options: Any) -> None:
        """Lay a `Behaviour` on `path`."""
        self.behaviours[path] = Behaviour(**options)

    def content(self, path: str) -> "Content | None":
        """Return what is served under `path`."""
        if path in self.files:
            data = self.files[path]
            return Content(len(data), hashlib.sha256(data).hexdigest()[:16], lambda start, end: data[start:end])
        if self.root is None or not (self.root / path).is_file():
            return None
        file = self.root / path
        state = file.stat()

        def part(start: int, end: int) -> bytes:
            with file.open("rb") as stream:
                stream.seek(start)
                return stream.read(end - start)

        return Content(state.st_size, f"{state.st_size:x}-{state.st_mtime_ns:x}", part)

    def stay_silent(self, _path: str) -> None:
        """Answer nothing until the server closes; for `on_request`."""
        self.closing.wait()

    def ranges(self, path: str) -> list[str]:
        """Return the Range headers asked of `path` so far."""
        return [seen.headers["range"] for seen in self.requests if seen.path == path and "range" in seen.headers]


@contextmanager
def serving(root: Path | None = None, *, certificate: Path | None = None) -> Iterator[LoopbackServer]:
    """Run a server for the length of a block; it speaks https when there is a certificate (with its key)."""
    server = LoopbackServer(root)

    class Handler(_Handler):
        site = server

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        #: Clients that come together need not knock again.
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients of these tests break connections on purpose."""

    listener = Listener(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    server.url = f"http{'s' if certificate else ''}://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    #: Head and body are two writes; the second would wait for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    site: LoopbackServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Stay silent."""

    def do_GET(self) -> None:
        # Absolute addresses come from clients that take us for a proxy.
        path = re.sub(r"\Ahttp://[^/]+", "", self.path).lstrip("/")
        site = self.site
        headers = {name.lower(): value for name, value in self.headers.items()}
        site.requests.append(Seen(path, headers, self.client_address[1]))
        site.on_request(path)
        behaviour = site.behaviours.get(path, Behaviour())
        content = site.content(path)
        if behaviour.redirect is not None:
            self._answer(
                302, b"" if behaviour.empty_redirect else b"elsewhere", {"Location": behaviour.redirect}, behaviour
            )
        elif behaviour.statuses:
            self._answer(behaviour.statuses.pop(0), b"no", {}, Behaviour())
        elif behaviour.endless:
            self._endless()
        elif content is None:
            self._answer(404, b"there is no such file", {}, Behaviour())
        else:
            self._file(content, headers, behaviour)

    def _file(self, content: Content, headers: dict[str, str], behaviour: Behaviour) -> None:
        etag = f'"{content.tag}"'
        extra = dict(behaviour.headers)
        if behaviour.sends_etag:
            extra["ETag"] = f"W/{etag}" if behaviour.weak_etag else etag
        if headers.get("if-none-match") == etag:
            self._answer(304, b"", extra, Behaviour())
            return
        wanted = _RANGE.match(headers.get("range", ""))
        if behaviour.ignores_ranges or headers.get("if-range", etag) != etag:
            wanted = None
        if wanted is None:
            self._answer(200, content.part(0, content.size), extra, behaviour)
            return
        start = int(wanted[1])
        end = min(content.size, int(wanted[2]) + 1) if wanted[2] else content.size
        if start >= content.size:
            self._answer(416, b"", {"Content-Range": f"bytes */{content.size}"}, Behaviour())
            return
        extra["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
        self._answer(206, content.part(start, end), extra, behaviour)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], behaviour: Behaviour) -> None:
        self._buffered_head(status, headers)
        if status != 304:
            if behaviour.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(body) + behaviour.length_error))
        cut = behaviour.cut_after.pop(0) if behaviour.cut_after else None
        if behaviour.trickle_headers and behaviour.trickle_s is not None:
            self._trickle(b"X-Slow: " + b"." * 10_000, behaviour.trickle_s)
            return
        self.end_headers()
        sent = body if cut is None else body[:cut]
        with self.site.lock:
            self.site.body_bytes += len(sent)
        if behaviour.trickle_s is not None:
            self._trickle(sent, behaviour.trickle_s)
        elif behaviour.chunked:
            self.wfile.write(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in _parts(sent)))
            if cut is None:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(sent)
        if cut is not None or behaviour.length_error:
            self.close_connection = True

    def _buffered_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)

    def _trickle(self, data: bytes, pause_s: float) -> None:
        self.flush_headers()
        for position in range(len(data)):
            self.wfile.write(data[position : position + 1])
            if self.site.closing.wait(pause_s):
                break
        self.close_connection = True

    def _endless(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        while not self.site.closing.is_set():
            self.wfile.write(b"x" * 65536)


def _parts(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]
