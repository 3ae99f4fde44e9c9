"""One callable for both kinds of servers.

ASGI is the native one. A WSGI server calls with two arguments; its request is then put to the ASGI application, whole
body in and whole body out. That suits questions; for images, which would be held in memory, let the web server in
front serve `/store/`, or use uvicorn's worker.
"""

import asyncio
import io
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from asu.configuration import Configuration, configuration_path, load_configuration
from overhaul.dialects.asu.serving import AsuServer, open_server
from overhaul.server.database.engine import Database

_PIECE = 256 * 1024


def open_configured(configuration: Configuration, database: Database) -> AsuServer:
    """Return the server that `configuration` describes, on an opened database."""
    return open_server(
        configuration.asu,
        queue=configuration.works.queue(database),
        store=configuration.works.store(),
        catalogue_directory=configuration.catalogue,
    )


class Entry:
    """`asu:app`."""

    def __init__(self, open_configuration: Callable[[], Configuration] | None = None) -> None:
        self._open = open_configuration or (lambda: load_configuration(configuration_path()))
        self._lock = threading.Lock()
        self._application: ASGIApp | None = None
        self._server: AsuServer | None = None
        self._database: Database | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Answer as whatever is asked: one or three arguments are ASGI's, two are WSGI's."""
        if len(arguments) == 2:
            return self._wsgi(*arguments)
        if len(arguments) == 1:
            return lambda receive, send: self._asgi(arguments[0], receive, send)
        return self._asgi(*arguments)

    def _opened(self) -> ASGIApp:
        with self._lock:
            if self._application is None:
                configuration = self._open()
                self._database = Database(configuration.works.database_url())
                self._server = open_configured(configuration, self._database)
                self._application = Starlette(routes=self._server.routes())
            return self._application

    async def _asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        await self._opened()(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._opened()
        assert self._server is not None  # noqa: S101 - opened in the line above
        async with self._server.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        self.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = asyncio.run_coroutine_threadsafe(self._answer(environ), self._running_loop()).result()
        status, headers, body = answer
        start_response(f"{status} -", headers)
        return [body[at : at + _PIECE] for at in range(0, len(body), _PIECE)]

    async def _answer(self, environ: dict[str, Any]) -> tuple[int, list[tuple[str, str]], bytes]:
        body = await asyncio.to_thread(_read_body, environ)
        told: dict[str, Any] = {}
        parts = io.BytesIO()
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                told.update(message)
            else:
                parts.write(message.get("body", b""))

        await self._opened()(_scope(environ), receive, send)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in told["headers"]]
        return int(told["status"]), headers, parts.getvalue()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="asu", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """End the thread of the event loop, if there is one, and close the database."""
        with self._lock:
            loop, thread, database = self._loop, self._thread, self._database
            self._loop = self._thread = self._database = self._application = None
        if loop is not None and thread is not None:
            # Threads that worked for the loop are let go before it ends.
            asyncio.run_coroutine_threadsafe(loop.shutdown_default_executor(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
        if database is not None:
            database.close()


def _read_body(environ: dict[str, Any]) -> bytes:
    # One byte more than any request may have, so that too long a one is seen to be so.
    limit = 256 * 1024 + 1
    length = environ.get("CONTENT_LENGTH") or ""
    if length.isascii() and length.isdecimal() and len(length) < 16:
        limit = min(limit, int(length))
    elif not environ.get("wsgi.input_terminated"):
        return b""
    body: bytes = environ["wsgi.input"].read(limit)
    return body


def _scope(environ: dict[str, Any]) -> Scope:
    path = environ.get("PATH_INFO", "/").encode("latin-1").decode(errors="replace")
    headers = [
        (name[5:].replace("_", "-").lower().encode(), str(value).encode("latin-1", "replace"))
        for name, value in environ.items()
        if name.startswith("HTTP_")
    ]
    if environ.get("CONTENT_TYPE"):
        headers.append((b"content-type", environ["CONTENT_TYPE"].encode("latin-1", "replace")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": environ["REQUEST_METHOD"],
        "scheme": environ.get("wsgi.url_scheme", "http"),
        "path": path,
        "raw_path": quote(path).encode(),
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1", "replace"),
        "root_path": "",
        "headers": headers,
        "client": (environ.get("REMOTE_ADDR", ""), 0),
        "server": (environ.get("SERVER_NAME", ""), 0),
    }
