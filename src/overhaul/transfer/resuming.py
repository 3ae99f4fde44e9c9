"""Going on after a break.

A request that finds no server, or one that is overloaded, is sent again after a wait that doubles; a body that
breaks off is continued from the byte reached, with a range and (when the server gave a strong entity tag)
`If-Range`, so that pieces of two versions of a file never meet. A server that ignores ranges sends the file again
from the start, and what is already here is skipped.

An answer that ends before the part it should bring is continued as if it had broken off. One that brings another
part than was asked for is no answer: the file is then asked for as a whole.

The number of tries in a row is bounded; progress worth a try gives the tries back, so that a slow link that
breaks every minute still gets through and a server that sends one byte at a time does not hold us for ever. A server
that asks to be left alone is, within the longest wait; if it wants longer, its answer is the last.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from overhaul.transfer.fetcher import (
    Fetcher,
    InterruptedTransferError,
    Request,
    Response,
    UnreachableError,
    retry_after_s,
)
from overhaul.transfer.ranges import WrongRangeError, content_range_start, content_range_total, skipping

_OVERLOADED = frozenset({429, 500, 502, 503, 504})
#: Progress that earns the full number of tries again. Little, because what is not a whole segment when the tries end
#: is fetched again: a network that cuts each connection after a few kilobytes would otherwise never let one through.
_WORTHWHILE_BYTES = 4 * 1024


class ResumingFetcher:
    """Repeats what failed and continues what broke off."""

    def __init__(
        self,
        fetcher: Fetcher,
        *,
        wait: Callable[[float], None],
        attempts: int = 6,
        first_wait_s: float = 1.0,
        longest_wait_s: float = 60.0,
    ) -> None:
        self._fetcher = fetcher
        self._wait = wait
        self._attempts = attempts
        self._first_wait_s = first_wait_s
        self._longest_wait_s = longest_wait_s

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Send `request` and return its response as a context."""
        tries = _Tries(
            attempts=self._attempts, wait=self._wait, wait_s=self._first_wait_s, longest_wait_s=self._longest_wait_s
        )
        with ExitStack() as current:
            response = self._open(request, current, tries)
            if response.status in {200, 206}:
                response = replace(response, body=self._continued(request, response, current, tries))
            yield response

    def _open(self, request: Request, current: ExitStack, tries: "_Tries") -> Response:
        while True:
            try:
                response = current.enter_context(self._fetcher.fetch(request))
            except UnreachableError as error:
                if not error.is_passing or not tries.another():
                    raise
                continue
            if response.status == 206 and content_range_start(response) != request.start:
                if not request.start and request.end is None:
                    # A part although the whole was asked for, and not even one that begins where the file does.
                    raise WrongRangeError(url=response.url, start_byte=0)
                request = replace(request, start=0, end=None)
            elif response.status not in _OVERLOADED or not tries.another(at_least_s=retry_after_s(response)):
                return response
            current.close()

    def _continued(self, request: Request, first: Response, current: ExitStack, tries: "_Tries") -> Iterator[bytes]:
        # A server that ignores ranges answered a request for a part with the whole.
        is_part = first.status == 206
        origin = request.start if is_part else 0
        end = request.end if is_part else None
        wanted_end = end if is_part else request.size_bytes
        etag = _strong_etag(first)
        response, body = first, first.body
        delivered = 0
        while True:
            before = delivered
            broken: InterruptedTransferError | None = None
            try:
                for piece in body:
                    delivered += len(piece)
                    tries.progress(len(piece))
                    yield piece
            except InterruptedTransferError as error:
                broken = error
            position = origin + delivered
            if position == wanted_end:
                return
            if broken is None and (
                wanted_end is None or position > wanted_end or delivered == before or _is_all(response, position)
            ):
                return
            if not tries.another():
                if broken is None:
                    return
                raise InterruptedTransferError(
                    url=first.url, received_bytes=delivered, reason=broken.reason
                ) from broken
            current.close()
            rest = replace(request, start=position, end=end, etag=None, if_range=etag)
            response = self._open(rest, current, tries)
            if response.status == 416 and (broken is None or content_range_total(response) == position):
                return
            body = _rest_of(response, etag=etag, position=position, delivered=delivered)


class _Tries:
    """The tries left and the wait before the next."""

    def __init__(self, *, attempts: int, wait: Callable[[float], None], wait_s: float, longest_wait_s: float) -> None:
        self._attempts = attempts
        self._wait = wait
        self._first_wait_s = wait_s
        self._longest_wait_s = longest_wait_s
        self._used = 1
        self._progress_bytes = 0

    def progress(self, amount: int) -> None:
        self._progress_bytes += amount

    def another(self, *, at_least_s: int | None = None) -> bool:
        """Wait, no shorter than the server asked for, and say yes; or say that no try is left."""
        if self._progress_bytes >= _WORTHWHILE_BYTES:
            self._used = 1
            self._progress_bytes = 0
        if self._used >= self._attempts or (at_least_s or 0) > self._longest_wait_s:
            return False
        self._wait(max(at_least_s or 0, min(self._longest_wait_s, self._first_wait_s * 2 ** (self._used - 1))))
        self._used += 1
        return True


def _is_all(response: Response, position: int) -> bool:
    """Tell whether the server says that nothing lies behind `position`."""
    return response.status == 206 and content_range_total(response) == position


def _strong_etag(response: Response) -> str | None:
    etag = response.headers.get("etag")
    return None if etag is None or etag.startswith("W/") else etag


def _rest_of(response: Response, *, etag: str | None, position: int, delivered: int) -> Iterator[bytes]:
    """Return the body from `position` on, whichever way the server chose to send it."""
    if response.status == 206 and content_range_start(response) == position:
        return response.body
    if response.status == 200 and _strong_etag(response) == etag:
        return skipping(response.body, position)
    reason = (
        "the file changed on the server meanwhile"
        if response.status == 200
        else f"asked for the rest, the server answered with status {response.status}"
    )
    raise InterruptedTransferError(url=response.url, received_bytes=delivered, reason=reason)
