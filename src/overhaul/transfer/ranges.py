"""Reading parts of a published file.

The bytes that come out are exactly those asked for, also from a server that ignores ranges and sends the file
from its start: then one response serves all the parts asked for together.
"""

import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack

from overhaul.errors import NetworkError, TrustError
from overhaul.transfer.fetcher import Fetcher, InterruptedTransferError, RefusedStatusError, Request, Response

#: No file is longer than a number of so many digits says.
_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,19})-")
_TOTAL = re.compile(r"bytes\s+(?:[0-9]+-[0-9]+|\*)/([0-9]{1,19})\Z")


class ShortFileError(TrustError):
    """A published file is shorter than its signed description says."""

    def __init__(self, *, url: str, end_byte: int, wanted_end_byte: int) -> None:
        self.url = url
        self.end_byte = end_byte
        self.wanted_end_byte = wanted_end_byte
        super().__init__(
            f"{url} ends at byte {end_byte}, before byte {wanted_end_byte} that was signed; mend the server's copy, or "
            "use https if a proxy on the way cuts it."
        )


class WrongRangeError(NetworkError):
    """A part came that was not asked for, or one that does not say where it belongs."""

    def __init__(self, *, url: str, start_byte: int) -> None:
        self.url = url
        self.start_byte = start_byte
        super().__init__(
            f"{url} did not send the part from byte {start_byte} on that was asked for: a cache or proxy on the way "
            "mixes up ranges; use https or another network."
        )


def content_range_start(response: Response) -> int | None:
    """Return where the part begins that a response of status 206 brings, or None when it does not say."""
    found = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
    return None if found is None else int(found[1])


def content_range_total(response: Response) -> int | None:
    """Return how long the whole file is that a response of status 206 or 416 speaks of, or None when it is silent."""
    found = _TOTAL.match(response.headers.get("content-range", ""))
    return None if found is None else int(found[1])


def skipping(body: Iterator[bytes], amount: int) -> Iterator[bytes]:
    """Yield `body` without its first `amount` bytes."""
    for piece in body:
        if amount >= len(piece):
            amount -= len(piece)
            continue
        yield piece[amount:] if amount else piece
        amount = 0


def read_ranges(fetcher: Fetcher, url: str, ranges: Iterable[tuple[int, int]]) -> Generator[Iterator[bytes]]:
    """Yield, for each (start, end) in ascending order, an iterator over exactly these bytes of the file.

    Each iterator must be used up before the next is asked for.

    Raises:
        RefusedStatusError: The server has no such file or part.
        ShortFileError: The file ends before a range does.
    """
    with ExitStack() as current:
        whole: _Cursor | None = None
        for start, end in ranges:
            if whole is not None:
                yield whole.take(start, end)
                continue
            current.close()
            response = current.enter_context(fetcher.fetch(Request(url=url, start=start, end=end)))
            if response.status == 206 and content_range_start(response) == start:
                yield _Cursor(response, position=start).take(start, end)
            elif response.status == 200:
                whole = _Cursor(response, position=0)
                yield whole.take(start, end)
            else:
                raise _refusal(response, start=start)


def _refusal(response: Response, *, start: int) -> NetworkError:
    if response.status == 206:
        return WrongRangeError(url=response.url, start_byte=start)
    return RefusedStatusError.of(response)


def cut_parts(body: Iterator[bytes], position: int, parts: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the bytes of each ascending (start, end) out of a body that begins at `position` of the file."""
    held = bytearray()
    for start, end in parts:
        while position + len(held) < end:
            if position < start and held:
                # What lies between two parts is let go at once, so that no gap is held in memory.
                dropped = min(len(held), start - position)
                del held[:dropped]
                position += dropped
            else:
                held += next(body)
        data = bytes(memoryview(held)[start - position : end - position])
        del held[: end - position]
        position = end
        yield data


class _Cursor:
    """A response body and how far it has been read."""

    def __init__(self, response: Response, *, position: int) -> None:
        self._response = response
        self._position = position
        self._piece = b""

    def take(self, start: int, end: int) -> Iterator[bytes]:
        while self._position < end:
            if not self._piece:
                self._piece = next(self._response.body, b"")
                if not self._piece:
                    raise self._ended(end)
            wanted = max(0, start - self._position)
            passed, self._piece = self._piece[:wanted], self._piece[wanted:]
            self._position += len(passed)
            if self._position < start:
                continue
            piece, self._piece = self._piece[: end - self._position], self._piece[end - self._position :]
            self._position += len(piece)
            if piece:
                yield piece

    def _ended(self, end: int) -> Exception:
        headers = self._response.headers
        if "content-length" in headers or "transfer-encoding" in headers:
            return ShortFileError(url=self._response.url, end_byte=self._position, wanted_end_byte=end)
        # Nothing promised a length, so a cut connection looks like an end.
        return InterruptedTransferError(
            url=self._response.url, received_bytes=self._position, reason="the connection was closed"
        )
