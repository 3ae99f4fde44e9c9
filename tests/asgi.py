"""Our server on a real socket inside a test, and a client that sends exactly what it is told."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message

from starlette.types import ASGIApp

from overhaul.host.listening import listen
from overhaul.server.process import one_worker

#: Longer than any answer takes on a busy machine.
_PATIENCE_S = 120


@dataclass(frozen=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Message
    body: bytes

    def header(self, name: str) -> str:
        """Return a header, or nothing when it is absent."""
        return str(self.headers.get(name, ""))


@dataclass(frozen=True)
class Site:
    """A server that listens on loopback."""

    port: int

    @property
    def url(self) -> str:
        """Its address, ending in a slash."""
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """Send one request, its path as written; underscores in header names become dashes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_PATIENCE_S)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()


@contextmanager
def running(application: ASGIApp) -> Iterator[Site]:
    """Serve `application` for the length of a block, as `overhaul serve` would."""
    listening = listen("127.0.0.1", 0)
    port = int(listening.getsockname()[1])
    ready = threading.Event()
    server = one_worker(lambda: application, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not ready.wait(timeout=0.2):
            assert thread.is_alive(), "the server ended before it was ready"
        yield Site(port)
    finally:
        server.should_exit = True
        thread.join()
