"""A bandwidth cap."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from overhaul.transfer.fetcher import Fetcher, Request, Response

#: Unused allowance is forgotten after this long, so that a quiet minute does not buy a burst.
_MEMORY_S = 1.0


class LimitedFetcher:
    """Takes bodies no faster than `max_bytes_per_s`, over all requests together.

    A piece is handed on at once and paid for by waiting before the next one is pulled; the kernel's socket buffer
    then slows the server down.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        max_bytes_per_s: int,
        clock: Callable[[], float],
        wait: Callable[[float], None],
    ) -> None:
        self._fetcher = fetcher
        self._max_bytes_per_s = max_bytes_per_s
        self._clock = clock
        self._wait = wait
        #: The moment at which everything received so far is paid for.
        self._paid_at = clock()

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Send `request` and return its response as a context."""
        with self._fetcher.fetch(request) as response:
            yield replace(response, body=self._limited(response.body))

    def _limited(self, body: Iterator[bytes]) -> Iterator[bytes]:
        for piece in body:
            now = self._clock()
            self._paid_at = max(self._paid_at, now - _MEMORY_S) + len(piece) / self._max_bytes_per_s
            yield piece
            owed_s = self._paid_at - self._clock()
            if owed_s > 0:
                self._wait(owed_s)
