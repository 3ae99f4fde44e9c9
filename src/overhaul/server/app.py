"""The ASGI application: wiring only. What each part does stands in its own module.

What devices ask for is answered before anything else, by a plain ASGI application on prepared bytes; pages are
plain Starlette routes; the JSON interface is FastAPI, which describes itself at /api/v1/openapi.json. A room that
speaks another system's protocol adds its routes here, in this list.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

import overhaul
from overhaul.errors import OperatorError, OverhaulError
from overhaul.repository.local import LocalStorage
from overhaul.repository.opening import open_storage
from overhaul.server.api import api_routes, operating_routes
from overhaul.server.caching import SERVED_ROOTS
from overhaul.server.database.engine import Database, DatabaseFailedError
from overhaul.server.database.migrating import upgrade
from overhaul.server.observing import Observing
from overhaul.server.pages import Pages
from overhaul.server.parts import Parts
from overhaul.server.settings import ServerSettings
from overhaul.server.static import StaticTree
from overhaul.server.tree import LocalTree, PublicTree, StorageTree

_PRUNE_EVERY_S = 3600.0
_STATIC_PATHS = tuple(f"/{root}/" for root in SERVED_ROOTS)

_LOGGER = logging.getLogger(__name__)


def create_app(settings: ServerSettings, *, clock: Callable[[], float] = time.time) -> ASGIApp:
    """Return the application that serves one repository.

    Raises:
        OverhaulError: The storage or the database address cannot be used.
    """
    parts = Parts(settings, tree=_open_tree(settings), database=Database(settings.database_url), clock=clock)
    static = StaticTree(parts.tree, parts.pointer, redirect_to=settings.redirect_to)
    application = FastAPI(
        title=f"{settings.title} (Overhaul)",
        version=overhaul.__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # these pages load their script from elsewhere
        redoc_url=None,
        routes=[*Pages(parts).routes()],
        lifespan=lambda _application: _running(parts),
        exception_handlers={OverhaulError: _explain},
    )
    application.include_router(api_routes(parts))
    application.include_router(operating_routes(parts))
    return Observing(_FrontDoor(static, application), metrics=parts.metrics)


class _FrontDoor:
    """Hands what devices ask for straight to the static tree, past the layers that the JSON interface needs."""

    def __init__(self, static: StaticTree, application: FastAPI) -> None:
        self._static = static
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"][len(scope.get("root_path", "")) :].startswith(_STATIC_PATHS):
            await self._static(scope, receive, send)
        else:
            await self._application(scope, receive, send)


def _open_tree(settings: ServerSettings) -> PublicTree:
    storage = open_storage(settings.storage)
    return LocalTree(Path(storage.root)) if isinstance(storage, LocalStorage) else StorageTree(storage)


@asynccontextmanager
async def _running(parts: Parts) -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(upgrade, parts.database)
    pruning = asyncio.create_task(_prune_reports(parts))
    try:
        yield
    finally:
        pruning.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await pruning
        parts.database.close()


async def _prune_reports(parts: Parts) -> None:
    settings = parts.settings
    while True:
        prune = functools.partial(
            parts.reports.prune,
            before=parts.now - settings.reports_kept_days * 86400,
            keep_at_most=settings.reports_kept_at_most,
        )
        try:
            await anyio.to_thread.run_sync(prune)
        except DatabaseFailedError as error:
            _LOGGER.warning("old reports cannot be removed: %s", error)
        await asyncio.sleep(_PRUNE_EVERY_S)


async def _explain(_request: Request, error: Exception) -> Response:
    """Answer with the sentence of an error of ours; what concerns only the operator stays in the log."""
    assert isinstance(error, OverhaulError)  # noqa: S101 - registered for this class only
    _LOGGER.error("%s", error)
    detail = str(error)
    if isinstance(error, OperatorError):
        detail = "The server cannot answer because of a fault its operator must mend; its log says which."
    headers = {"cache-control": "no-store"}
    if error.retryable:
        headers["retry-after"] = "30"
    return JSONResponse({"detail": detail, "error": type(error).__name__}, error.http_status, headers=headers)
