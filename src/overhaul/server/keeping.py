"""Writes down what is only known while the server runs: what was served, and how far releases are open."""

import asyncio
import logging

import anyio.to_thread

from overhaul.errors import OverhaulError
from overhaul.server.parts import Parts
from overhaul.server.views import channel_views
from overhaul.server.volume import ReleasesOfFiles

_EVERY_S = 20.0

_LOGGER = logging.getLogger(__name__)


class Keeping:
    """The task of one application that keeps its history."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._files = ReleasesOfFiles()

    async def run(self) -> None:
        """Keep what there is every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await self.keep()

    async def keep(self) -> None:
        """Keep what there is now; a database that fails loses it and is named in the log."""
        parts = self._parts
        try:
            catalogue = await parts.catalogue.get()
            served = self._files.by_release(parts.volume.take(), catalogue)
            channels = () if catalogue is None else channel_views(catalogue, now=parts.now)
            await anyio.to_thread.run_sync(lambda: parts.served.add(served, now=parts.now))
            await anyio.to_thread.run_sync(lambda: parts.exposure.record(channels, now=parts.now))
        except OverhaulError as error:
            _LOGGER.warning("the history of the last moments is lost: %s", error)
