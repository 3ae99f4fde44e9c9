"""Several base URLs of the same repository behind one.

Callers name the first base URL; the path behind it is asked of the mirror that last worked, and of the others
in turn when that one is broken. Broken means: no response, a status that speaks of the server and not of the
object (429 and everything from 500 on), or a body that broke off (the request for the rest goes elsewhere).
A missing object is an answer: asking every mirror for it would turn one mistake into a storm.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from overhaul.transfer.fetcher import Fetcher, InterruptedTransferError, Request, Response, UnreachableError


class MirrorFetcher:
    """Fails over between mirrors."""

    def __init__(self, fetcher: Fetcher, *, base_urls: tuple[str, ...]) -> None:
        self._fetcher = fetcher
        self._bases = tuple(base.rstrip("/") + "/" for base in base_urls)
        self._preferred = 0

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Send `request` and return its response as a context."""
        if not request.url.startswith(self._bases[0]):
            with self._fetcher.fetch(request) as response:
                yield response
            return
        response, context = self._first_answer(request)
        with context:
            yield replace(response, body=self._watched(response.body))

    def _first_answer(self, request: Request) -> tuple[Response, ExitStack]:
        path = request.url.removeprefix(self._bases[0])
        remaining = len(self._bases)
        while True:
            remaining -= 1
            with ExitStack() as attempt:
                try:
                    response = attempt.enter_context(
                        self._fetcher.fetch(replace(request, url=self._bases[self._preferred] + path))
                    )
                except UnreachableError:
                    if not remaining:
                        raise
                else:
                    if not remaining or not _speaks_of_the_server(response.status):
                        return response, attempt.pop_all()
            self.turn()

    def _watched(self, body: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from body
        except InterruptedTransferError:
            self.turn()
            raise

    def turn(self) -> None:
        """Prefer the next mirror: the one in use is broken, or brought what does not verify."""
        self._preferred = (self._preferred + 1) % len(self._bases)


def _speaks_of_the_server(status: int) -> bool:
    return status == 429 or status >= 500
