"""The ASGI application: wiring only. What each part does stands in its own module.

What devices ask for is answered before anything else, by plain ASGI applications on prepared bytes: the static tree,
and the protocols of other systems that need a server. Pages are plain Starlette routes; the JSON interface is FastAPI,
which describes itself at /api/v1/openapi.json.
"""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio.to_thread
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import overhaul
from overhaul.errors import OverhaulError
from overhaul.server.api import api_routes, operating_routes
from overhaul.server.atomupd import QueryServers, open_query_servers
from overhaul.server.caching import SERVED_ROOTS
from overhaul.server.database.engine import Database, DatabaseFailedError
from overhaul.server.database.migrating import upgrade
from overhaul.server.explaining import Explaining, explain
from overhaul.server.fleet import HISTORY_KEPT_DAYS
from overhaul.server.keeping import Keeping
from overhaul.server.metrics import ATOMUPD_QUERY
from overhaul.server.observing import ROUTE_KEY, Observing
from overhaul.server.operators.pages import FleetPages
from overhaul.server.pages import Pages
from overhaul.server.parts import Parts
from overhaul.server.settings import ImagesOnDemand, ServerSettings
from overhaul.server.static import StaticTree
from overhaul.server.tree import open_tree

if TYPE_CHECKING:
    from overhaul.server.asu import AsuDoor

_PRUNE_EVERY_S = 3600.0
_STATIC_PATHS = tuple(f"/{root}/" for root in SERVED_ROOTS)

_LOGGER = logging.getLogger(__name__)


def create_app(settings: ServerSettings, *, clock: Callable[[], float] = time.time) -> ASGIApp:
    """Return the application that serves one repository.

    Raises:
        OverhaulError: The storage, a database address, or what a dialect needs cannot be used.
    """
    tree = open_tree(settings.storage)
    queries = open_query_servers(settings, tree)
    asu = None if settings.images_on_demand is None else _open_asu(settings.images_on_demand, clock=clock)
    parts = Parts(
        settings,
        tree=tree,
        database=Database(settings.database_url),
        clock=clock,
        builds_counted=None if asu is None else asu.counted,
    )
    static = StaticTree(parts.tree, parts.pointer, redirect_to=settings.redirect_to)
    application = FastAPI(
        title=f"{settings.title} (Overhaul)",
        version=overhaul.__version__,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # these pages load their script from elsewhere
        redoc_url=None,
        routes=[*Pages(parts).routes(), *FleetPages(parts).routes()],
        lifespan=lambda _application: _running(parts, queries, asu),
        exception_handlers={OverhaulError: explain},
    )
    application.include_router(api_routes(parts))
    application.include_router(operating_routes(parts))
    door = _FrontDoor(
        static,
        queries,
        asu=application if asu is None else Explaining(asu.before(application)),
        asu_paths=() if asu is None else asu.paths,
        application=application,
    )
    return Observing(door, metrics=parts.metrics, volume=parts.volume)


class _FrontDoor:
    """Hands what devices ask for straight to who answers it, past the layers that the JSON interface needs."""

    def __init__(
        self,
        static: StaticTree,
        queries: QueryServers,
        *,
        asu: ASGIApp,
        asu_paths: tuple[str, ...],
        application: ASGIApp,
    ) -> None:
        self._static = static
        self._queries = queries
        self._asu = asu
        self._asu_paths = asu_paths
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        path = scope["path"][len(scope.get("root_path", "")) :]
        if (queried := self._queries.find(path, scope["query_string"])) is not None:
            scope[ROUTE_KEY] = ATOMUPD_QUERY
            await queried(scope, receive, send)
        elif path.startswith(_STATIC_PATHS):
            await self._static(scope, receive, send)
        elif path.startswith(self._asu_paths):
            await self._asu(scope, receive, send)
        else:
            await self._application(scope, receive, send)


def _open_asu(settings: ImagesOnDemand, *, clock: Callable[[], float]) -> "AsuDoor":
    # Loaded only where images are built on demand.
    from overhaul.server.asu import AsuDoor

    return AsuDoor(settings, clock=clock)


@asynccontextmanager
async def _running(parts: Parts, queries: QueryServers, asu: "AsuDoor | None") -> AsyncIterator[None]:
    await anyio.to_thread.run_sync(upgrade, parts.database)
    async with AsyncExitStack() as stack:
        stack.callback(parts.database.close)
        await stack.enter_async_context(queries.running())
        if asu is not None:
            await stack.enter_async_context(asu.running())
        keeping = Keeping(parts)
        tasks = [asyncio.create_task(_prune_reports(parts)), asyncio.create_task(keeping.run())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            await keeping.keep()


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
            await anyio.to_thread.run_sync(_prune_history, parts, parts.now - HISTORY_KEPT_DAYS * 86400)
        except DatabaseFailedError as error:
            _LOGGER.warning("old reports cannot be removed: %s", error)
        await asyncio.sleep(_PRUNE_EVERY_S)


def _prune_history(parts: Parts, before: int) -> None:
    parts.served.prune(before=before)
    parts.exposure.prune(before=before)
