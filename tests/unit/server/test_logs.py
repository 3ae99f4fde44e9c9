"""What an operator reads of clients that do nothing wrong, and what of the engine's real troubles."""

import logging
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from overhaul.server.logs import configure_logging

_OFFER = (
    b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
)


async def answer(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("here it is")


@pytest.fixture
def quiet_afterwards() -> Iterator[None]:
    """The loggers as they were before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("quiet_afterwards")
def test_a_client_that_offers_http_2_is_answered_and_not_complained_of(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(Starlette(routes=[Route("/", answer)]), log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with socket.create_connection(listener.getsockname(), timeout=60) as client:
            client.sendall(_OFFER)
            answered = b"".join(iter(lambda: client.recv(4096), b""))
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
    assert answered.startswith(b"HTTP/1.1 200 ")
    assert answered.endswith(b"here it is")
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("quiet_afterwards")
def test_what_the_engine_warns_of_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert "Invalid HTTP request received." in capfd.readouterr().err
