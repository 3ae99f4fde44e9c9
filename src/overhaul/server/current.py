"""The catalogue that belongs to the pointer being served; read once for each change, by one request only."""

import logging
import time
from collections.abc import Callable

import anyio
import anyio.to_thread

from overhaul.errors import OverhaulError
from overhaul.server.catalogue import Catalogue, read_catalogue
from overhaul.server.pointer import Pointer
from overhaul.server.tree import PublicTree

#: A state that could not be read is tried again after this time: its operator may have mended it.
_TRY_AGAIN_AFTER_S = 15.0

_LOGGER = logging.getLogger(__name__)


class CurrentCatalogue:
    """Gives the newest catalogue that could be read."""

    def __init__(self, tree: PublicTree, pointer: Pointer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._tree = tree
        self._clock = clock
        self._pointer = pointer
        self._reading = anyio.Lock()
        self._catalogue: Catalogue | None = None
        self._broken: tuple[str, float] | None = None
        #: Why the newest published state could not be read, in words; None when it could.
        self.problem: str | None = None

    async def get(self) -> Catalogue | None:
        """Return the catalogue of the current pointer; an older one while the current cannot be read, else None.

        Whoever asks first after a change waits for it to be read; those who ask meanwhile get the older one.
        """
        prepared = await self._pointer.current()
        if prepared is None:
            self._catalogue = None
            return None
        known = self._catalogue
        if known is not None and known.pointer_etag == prepared.etag:
            return known
        if self._broken is not None and self._broken[0] == prepared.etag and self._clock() < self._broken[1]:
            return known
        if self._reading.locked() and known is not None:
            return known
        async with self._reading:
            if self._catalogue is None or self._catalogue.pointer_etag != prepared.etag:
                await self._read(prepared.body, prepared.etag)
        return self._catalogue

    async def _read(self, pointer: bytes, etag: str) -> None:
        before = self._catalogue
        try:
            self._catalogue = await anyio.to_thread.run_sync(
                lambda: read_catalogue(self._tree, pointer=pointer, pointer_etag=etag, before=before)
            )
            self.problem = None
        except OverhaulError as error:
            # The server goes on with what it knows; health and the status page show the sentence.
            self._broken = (etag, self._clock() + _TRY_AGAIN_AFTER_S)
            self.problem = str(error)
            _LOGGER.warning("published metadata cannot be read: %s", error)
