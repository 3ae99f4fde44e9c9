"""Counting what work costs on the network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from overhaul.transfer.fetcher import Fetcher, Request, Response


class CountingFetcher:
    """Counts requests and the bytes of every response body, those of conditional and refused requests too.

    It belongs directly around the engine, below anything that repeats requests.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher
        self.requests = 0
        self.bytes_received = 0

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Send `request` and return its response as a context."""
        self.requests += 1
        with self._fetcher.fetch(request) as response:
            yield replace(response, body=self._counted(response.body))

    def _counted(self, body: Iterator[bytes]) -> Iterator[bytes]:
        for piece in body:
            self.bytes_received += len(piece)
            yield piece
