"""The fetching seam: one request, one streamed response.

Engines (pycurl, urllib3) implement `Fetcher`; everything else (resume, retry, mirrors, bandwidth cap, counting)
is a wrapper that takes a fetcher and is one. What an implementation may assume and must promise:

* `fetch` returns once the status and headers are there; the body is pulled by iterating.
* A status of 400 or above is returned, not raised; transport failures raise `UnreachableError` or
  `InterruptedTransferError`.
* A redirect is followed only to the same or a stronger scheme.
* The body is the bytes as sent: no content decoding.
* Leaving the context closes or recycles the connection, whatever was read.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from overhaul.errors import NetworkError, TrustError


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to fetch."""

    url: str
    #: First byte wanted, and the first no longer wanted (None: to the end). A range is asked for when either
    #: differs from the whole.
    start: int = 0
    end: int | None = None
    #: Validator for a conditional request (`If-None-Match`).
    etag: str | None = None
    #: Validator for a resumed range (`If-Range`).
    if_range: str | None = None
    #: Value of `Authorization`; a redirect to another host or scheme does not get it.
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Response:
    """What came back. Header names are lower case."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: Iterator[bytes] = field(repr=False)


class Fetcher(Protocol):
    """Anything that can answer a request."""

    def fetch(self, request: Request) -> AbstractContextManager[Response]:
        """Send `request` and return its response as a context."""


class UnreachableError(NetworkError):
    """No response came: name look-up, connection, TLS or time-out."""

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"{url} cannot be reached ({reason}); check the network and the address, then try again.")


class InterruptedTransferError(NetworkError):
    """The body ended early or became too slow."""

    def __init__(self, *, url: str, received_bytes: int, reason: str) -> None:
        self.url = url
        self.received_bytes = received_bytes
        self.reason = reason
        super().__init__(f"{url} broke off after {received_bytes} bytes ({reason}); run the command again to go on.")


class RefusedStatusError(NetworkError):
    """The server answered with a status that carries no content for us."""

    def __init__(self, *, url: str, status: int) -> None:
        self.url = url
        self.status = status
        super().__init__(
            f"{url} answered with status {status}; check the repository's address and that it is complete."
        )


class OversizeError(TrustError):
    """More bytes came than the signed metadata allows."""

    def __init__(self, *, url: str, limit_bytes: int) -> None:
        self.url = url
        self.limit_bytes = limit_bytes
        super().__init__(f"{url} sent more than the {limit_bytes} bytes that were signed; nothing of it was used.")


class InsecureAddressError(TrustError):
    """A plain http address without the explicit permission to use one."""

    def __init__(self, *, url: str) -> None:
        self.url = url
        super().__init__(
            f"{url} is not https; use an https address, or allow plain http with `allow_http = true` "
            "in the configuration."
        )
