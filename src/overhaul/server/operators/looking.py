"""What the dashboard shows, read by one request at a time and kept for a moment.

Some of its questions go through every report that is kept. Whoever can reach the page could otherwise keep the database
busy by asking again and again, so the answers are shared, the longer the more they cost, and only filters that name
something known are asked for.
"""

import time
from collections.abc import Sequence

import anyio
import anyio.to_thread

from overhaul.server.fleet import Choice, Fleet, read_fleet
from overhaul.server.parts import Parts
from overhaul.server.views import ChannelView

_KEPT_S = 10.0
_KEPT_TIMES = 10
_MOST_KEPT = 64


class Looking:
    """The newest answers of one application."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        #: Until when, and what.
        self._kept: dict[Choice, tuple[float, Fleet]] = {}
        self._longest_s = _KEPT_S
        self._reading = anyio.Lock()

    async def fleet(self, choice: Choice, channels: Sequence[ChannelView]) -> Fleet:
        """Return what `choice` shows, older than a moment only where it is costly; write down how `channels` stand."""
        async with self._reading:
            now = self._parts.clock()
            kept = self._kept.get(choice)
            if kept is not None and kept[0] - self._longest_s <= now < kept[0]:
                return kept[1]
            began = time.monotonic()
            fleet = await anyio.to_thread.run_sync(self._read, choice, channels)
            keep_s = max(_KEPT_S, _KEPT_TIMES * (time.monotonic() - began))
            self._longest_s = max(self._longest_s, keep_s)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            self._kept[choice] = (now + keep_s, fleet)
            return fleet

    def forget(self) -> None:
        """Read anew the next time: something was changed."""
        self._kept.clear()

    def _read(self, choice: Choice, channels: Sequence[ChannelView]) -> Fleet:
        parts = self._parts
        # So that what was just changed is in the plot.
        parts.exposure.record(channels, now=parts.now)
        return read_fleet(
            choice, statistics=parts.statistics, served=parts.served, exposure=parts.exposure, now=parts.now
        )
