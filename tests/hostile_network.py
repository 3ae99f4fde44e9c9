"""A network with a personality, between a real device and a real server.

An `Exchange` is one request that came in; `origin` asks the real server on its behalf, `send` answers. A personality
is a function that takes an exchange and does with it what networks do: cut it, delay it, answer in the server's place.
"""

import http.client
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE_S

_HOP_HEADERS = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive", "host"})


@dataclass(frozen=True)
class Answer:
    """What is to be answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def having(self, **headers: str) -> "Answer":
        """Return it with these headers as well; underscores in names become dashes."""
        more = {name.replace("_", "-"): told for name, told in headers.items()}
        return replace(self, headers={**self.headers, **more})


@dataclass
class Exchange:
    """One request and the connection it came over."""

    path: str
    headers: Mapping[str, str]
    #: How many came before it.
    number: int
    connection: socket.socket
    #: Set when the network is taken down; what waits must wait for this.
    closing: threading.Event
    _site_port: int
    #: Called with the size of each piece of a body before and after it is sent.
    counted: Callable[[int], None]
    passed: Callable[[int], None]
    keeps_open: bool = True

    @property
    def is_content(self) -> bool:
        """Whether what is asked for is content and not metadata."""
        return self.path.startswith("/content/")

    def origin(self, path: str | None = None, *, without: frozenset[str] = frozenset()) -> Answer:
        """Return what the real server answers, to the request without some of its headers."""
        asked = {name: told for name, told in self.headers.items() if name not in _HOP_HEADERS | without}
        connection = http.client.HTTPConnection("127.0.0.1", self._site_port, timeout=PATIENCE_S)
        try:
            connection.request("GET", path or self.path, headers=asked)
            response = connection.getresponse()
            told = {name.lower(): text for name, text in response.getheaders()}
            body = response.read()
        finally:
            connection.close()
        return Answer(response.status, {n: t for n, t in told.items() if n not in _HOP_HEADERS}, body)

    def send(self, answer: Answer, *, announced: int | None = None) -> None:
        """Answer, with another length than the true one where `announced` says so; then the connection is closed."""
        length = len(answer.body) if announced is None else announced
        self.send_head(answer, content_length=str(length))
        self.raw(answer.body)
        self.keeps_open = self.keeps_open and announced is None

    def send_head(self, answer: Answer, **more: str) -> None:
        """Send the status line and the headers."""
        lines = [f"HTTP/1.1 {answer.status} Told"]
        lines += [f"{name}: {told}" for name, told in answer.having(**more).headers.items()]
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))

    def raw(self, data: bytes) -> None:
        """Send bytes of a body as they are."""
        for begin in range(0, len(data), 16384):
            piece = data[begin : begin + 16384]
            self.counted(len(piece))
            self.connection.sendall(piece)
            self.passed(len(piece))

    def reset(self) -> None:
        """Let the connection end with a reset."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.keeps_open = False

    def stay_silent(self) -> None:
        """Say nothing more until the network is taken down."""
        self.keeps_open = False
        self.closing.wait()


Personality = Callable[[Exchange], None]


def honest(exchange: Exchange) -> None:
    """Pass everything on."""
    exchange.send(exchange.origin())


@dataclass
class Network:
    """A network that is up."""

    url: str
    personality: Personality
    #: Where the real server listens; another one may take its place at any time.
    site_port: int
    requests: int = 0
    #: Bytes of bodies sent towards devices; they count before they leave, so whoever has read them finds them counted.
    body_bytes: int = 0
    #: Called with each number of body bytes sent.
    on_passed: Callable[[int], None] = lambda _amount: None
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def network(
    site_port: int,
    personality: Personality,
    *,
    host: str = "127.0.0.1",
    certificate: Path | None = None,
    listening: socket.socket | None = None,
) -> Iterator[Network]:
    """Put a personality in front of the server at `site_port` for the length of a block.

    With a certificate (and its key) it speaks https. `listening` is a socket to listen on in place of a new one.
    """
    up = Network("", personality, site_port=site_port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            """Stay silent."""

        def do_CONNECT(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def _answer(self) -> None:
            headers = {name.lower(): told for name, told in self.headers.items()}
            with up.lock:
                number = up.requests
                up.requests += 1
            exchange = Exchange(
                self.path,
                headers,
                number,
                self.connection,
                up.closing,
                up.site_port,
                counted=self._counted,
                passed=self._passed,
            )
            # Devices break off what they do not want.
            with suppress(OSError):
                up.personality(exchange)
            self.close_connection = not exchange.keeps_open

        def _counted(self, amount: int) -> None:
            with up.lock:
                up.body_bytes += amount

        def _passed(self, amount: int) -> None:
            up.on_passed(amount)

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False
        request_queue_size = 128
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Connections of these tests are broken on purpose."""

    listener = Listener((host, 0), Handler, bind_and_activate=listening is None)
    if listening is not None:
        listener.socket.close()
        listener.socket = listening
    port = listener.socket.getsockname()[1]
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        listener.socket = context.wrap_socket(listener.socket, server_side=True, do_handshake_on_connect=False)
    up.url = f"http{'s' if certificate else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield up
    finally:
        up.closing.set()
        listener.shutdown()
        listener.server_close()
        thread.join()


def cutting(after_bytes: int, *, chance: random.Random | None = None) -> Personality:
    """Return a network that cuts each connection after so many body bytes, or up to so many when there is a chance."""

    def cut(exchange: Exchange) -> None:
        answer = exchange.origin()
        reach = after_bytes if chance is None else chance.randrange(1, after_bytes)
        if len(answer.body) <= reach:
            exchange.send(answer)
            return
        exchange.send_head(answer, content_length=str(len(answer.body)))
        exchange.raw(answer.body[:reach])
        exchange.keeps_open = False

    return cut
