"""Counts and logs every request: one thin layer around the application."""

import logging
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from overhaul.server.metrics import Metrics, route_class
from overhaul.server.volume import Volume

#: Under which an application may name the class of a request that its path does not tell.
ROUTE_KEY = "overhaul.route"

_ACCESS = logging.getLogger("overhaul.access")
# Bound to the standard library's logger, so that an application nobody configured logging for stays silent.
_LOGGER = structlog.wrap_logger(
    _ACCESS,
    processors=[structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    wrapper_class=structlog.stdlib.BoundLogger,
)


class Observing:
    """An ASGI application that passes everything on to another and tells what happened."""

    def __init__(self, application: ASGIApp, *, metrics: Metrics, volume: Volume) -> None:
        self._application = application
        self._metrics = metrics
        self._volume = volume

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500  # when the application fails before it begins to answer
        body_bytes = 0

        async def counted(message: Message) -> None:
            nonlocal status, body_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                body_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._application(scope, receive, counted)
        finally:
            seconds = time.perf_counter() - began
            path, method = scope["path"], scope["method"]
            route = scope.get(ROUTE_KEY) or route_class(path)
            self._metrics.count_request(
                route=route, method=method, status=status, body_bytes=body_bytes, seconds=seconds
            )
            self._volume.count(route=route, path=path, status=status, body_bytes=body_bytes)
            if _ACCESS.isEnabledFor(logging.INFO):
                client = scope.get("client")
                _LOGGER.info(
                    "request",
                    method=method,
                    path=path,
                    status=status,
                    bytes=body_bytes,
                    ms=round(seconds * 1000, 2),
                    client=client[0] if client else None,
                )
