"""Telling a repository from what answers in its place.

A network that wants somebody to sign in answers every request with a page of its own, with status 200, and a proxy may
recode what it passes. Neither can ever verify, but what would come out further up, a damaged signature or a wrong
digest, would send people to the publisher, who can do nothing about it.

It belongs directly around the engine, so that mirrors are tried in its place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain

from overhaul.transfer.fetcher import (
    Fetcher,
    InterruptedTransferError,
    LoginPageError,
    RecodedAnswerError,
    Request,
    Response,
    UnreachableError,
)

_PAGE_TYPES = frozenset({"", "text/html", "application/xhtml+xml"})


class PublishedOnlyFetcher:
    """Refuses answers that cannot be published files, and says what they are."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Send `request` and return its response as a context."""
        with self._fetcher.fetch(request) as response:
            if response.status in {200, 206}:
                coding = response.headers.get("content-encoding", "identity")
                if coding.lower() not in {"", "identity"}:
                    raise RecodedAnswerError(url=response.url, coding=coding[:40])
            if response.status == 200 and _media_type(response) in _PAGE_TYPES:
                yield _looked_into(response)
            else:
                yield response


def _media_type(response: Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()


def _looked_into(response: Response) -> Response:
    """Return `response` if its first bytes are not those of a web page."""
    try:
        first = next(response.body, b"")
    except InterruptedTransferError as error:
        raise UnreachableError(url=response.url, reason=error.reason) from error
    # No published file begins so: metadata are JSON, everything else begins with a magic.
    if first.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise LoginPageError(url=response.url)
    return replace(response, body=chain((first,), response.body))
