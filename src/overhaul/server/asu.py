"""Images on demand inside the server: the dialect's routes before ours, and one process that follows upstream.

What the dialect has no route for goes on to the rest of the application, because some of its paths begin as ours do.
"""

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import anyio.to_thread
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from overhaul.builds.opening import Works
from overhaul.builds.settings import load_settings
from overhaul.dialects.asu.serving import PATHS, AsuServer, Updating, open_server
from overhaul.host.locks import LockedError, locked
from overhaul.server.database.engine import Database
from overhaul.server.settings import ImagesOnDemand

_LOOK_FOR_LOCK_EVERY_S = 5.0


def works_of(settings: ImagesOnDemand) -> Works:
    """Return how images are built; raise `UnusableSettingsError` when the file that says so cannot be used."""
    return Works(settings=load_settings(settings.builds), base=settings.builds.parent)


class AsuDoor:
    """The dialect's part of one application."""

    #: Beginnings of the paths that may be the dialect's; old clients write two slashes.
    paths = (*PATHS, "/stats/", "//")

    def __init__(self, settings: ImagesOnDemand, *, clock: Callable[[], float] = time.time) -> None:
        works = works_of(settings)
        self._database = Database(works.database_url())
        catalogue = works.directory / "catalogue"
        try:
            self._server: AsuServer = open_server(
                settings.asu,
                queue=works.queue(self._database),
                store=works.store(),
                catalogue_directory=catalogue,
                clock=clock,
            )
            self._updater = _OneUpdater(self._server.updater(base=settings.base), catalogue / "updater.lock")
        except BaseException:
            self.close()
            raise

    def before(self, application: ASGIApp) -> ASGIApp:
        """Return what answers with the dialect's routes and leaves the rest to `application`."""

        async def rest(scope: Scope, receive: Receive, send: Send) -> None:
            del scope["router"]  # it would take the place of the application's own
            await application(scope, receive, send)

        return Router(self._server.routes(), default=rest, redirect_slashes=False)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow upstream and the queue."""
        try:
            async with self._server.running(updater=self._updater):
                yield
        finally:
            await anyio.to_thread.run_sync(self.close)

    def close(self) -> None:
        """Close the queue's database."""
        self._database.close()

    def counted(self) -> Iterable[tuple[str, dict[str, str], float]]:
        """Return what was built, as (name, labels, value); blocks."""
        return list(self._server.statistics.counted())


class _OneUpdater:
    """Updates the catalogue in only one of the server's processes; another takes over when that one ends."""

    def __init__(self, updater: Updating, lock: Path) -> None:
        self._updater = updater
        self._lock = lock

    def run(self, stop: threading.Event) -> None:
        """Wait for the lock, then update until `stop` is set."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        while not stop.is_set():
            try:
                with locked(self._lock, purpose="The updater of the catalogue"):
                    self._updater.run(stop)
            except LockedError:
                stop.wait(_LOOK_FOR_LOCK_EVERY_S)
