"""Everything of this dialect that a server needs: its routes, the paths they cover, and what runs beside them."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import anyio.to_thread
from starlette.routing import BaseRoute, Route

from overhaul.builds.queue import BuildQueue
from overhaul.builds.store import ArtefactStore
from overhaul.dialects.asu import pages, seed_api, today_api
from overhaul.dialects.asu.catalogue_update import CatalogueUpdater, load_keys
from overhaul.dialects.asu.pages import Pages
from overhaul.dialects.asu.parts import Parts
from overhaul.dialects.asu.prepared import Ask, Endpoint, Prepared
from overhaul.dialects.asu.seed_api import SeedApi
from overhaul.dialects.asu.settings import AsuSettings
from overhaul.dialects.asu.statistics import Statistics
from overhaul.dialects.asu.today_api import TodayApi
from overhaul.errors import OverhaulError

_LOOK_EVERY_S = 2.0

_LOGGER = logging.getLogger(__name__)

#: Beginnings of the paths that belong to this dialect.
PATHS = tuple(dict.fromkeys((*today_api.PATHS, *seed_api.PATHS, *pages.PATHS)))


class Updating(Protocol):
    """What keeps the catalogue up to date, such as a `CatalogueUpdater`."""

    def run(self, stop: threading.Event) -> None:
        """Do so until `stop` is set; blocks."""


class AsuServer:
    """The dialect's part of a server process."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.statistics = Statistics(parts)
        self._today = TodayApi(parts, self.statistics)
        self._seed = SeedApi(parts, self.statistics)
        self._pages = Pages(parts, self.statistics)

    def routes(self) -> list[BaseRoute]:
        """Return every route; the order counts."""
        return [
            *self._today.routes(),
            *self._seed.routes(),
            *self._pages.routes(),
            Route("//{rest:path}", Endpoint(_single_slash)),
        ]

    def updater(self, *, base: Path) -> CatalogueUpdater:
        """Return what keeps the catalogue up to date; key files of the settings are looked up from `base`.

        Raises:
            KeyFileError: One of them cannot be used.
        """
        parts = self.parts
        keys = load_keys(parts.settings, base=base)
        return CatalogueUpdater(parts.catalogue.store, parts.settings, seeds=parts.catalogue.seeds, keys=keys)

    @contextlib.asynccontextmanager
    async def running(self, *, updater: Updating | None = None) -> AsyncIterator[None]:
        """Follow the catalogue, tell the queue of answers from memory, and update here when `updater` is given."""
        stop = threading.Event()
        thread = None
        if updater is not None:
            thread = threading.Thread(target=updater.run, args=(stop,), name="catalogue", daemon=True)
            thread.start()
        task = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            stop.set()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await anyio.to_thread.run_sync(self._moment)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await anyio.to_thread.run_sync(self._moment)

    def _moment(self) -> None:
        try:
            self.parts.catalogue.look()
            self.parts.tell_hits()
        except (OverhaulError, OSError) as error:
            _LOGGER.warning("%s", error)


def open_server(
    settings: AsuSettings,
    *,
    queue: BuildQueue,
    store: ArtefactStore,
    catalogue_directory: Path,
    clock: Callable[[], float] = time.time,
) -> AsuServer:
    """Return the dialect's part of a server process.

    Raises:
        DistributionError: The files of distributions cannot be used.
    """
    return AsuServer(Parts(settings, queue=queue, store=store, catalogue_directory=catalogue_directory, clock=clock))


async def _single_slash(ask: Ask) -> Prepared:
    # Every slash at the beginning goes: two of them would name another server.
    path = "/" + ask.scope["raw_path"].decode("latin-1").lstrip("/").replace("\\", "%5C")
    query = ask.scope["query_string"].decode("latin-1")
    return Prepared(301, b"", headers={"Location": f"{path}?{query}" if query else path})
