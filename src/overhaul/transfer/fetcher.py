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

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import ClassVar, Protocol, Self

from overhaul.errors import NetworkError, TrustError

_LATER = "the server or a proxy before it is in trouble, try again later"
_BUSY = "it is overloaded or being worked on, try again later"
#: What to do about a status; it need not have been the repository that sent it.
_STATUS_ADVICE = {
    304: "a cache on the way answers what was not asked, use https or another network",
    401: "it wants a name and a password, check the repository's address",
    403: "it, or a filter of this network, forbids the access; ask who runs them",
    407: "a proxy on the way wants a login, name it with user and password as `proxy` in the configuration",
    408: _BUSY,
    429: _BUSY,
    500: _LATER,
    502: _LATER,
    503: _BUSY,
    504: _LATER,
    511: "this network wants somebody to sign in first, do so with a browser, then try again",
}
_CLOCK = "set this device's clock if it is wrong, else the server's certificate must be renewed"
_OTHER_NAME = "it was made for another name, check the address"
_INTERCEPTED = (
    "something on the way intercepts the connection, or the authority is a private one: name it as `ca_file` in the "
    "configuration if you trust it"
)
#: By X509_V_ERR number of OpenSSL's x509_vfy.h: good or unspecified, which is what libcurl leaves there when it finds
#: another name itself; not yet valid; expired; other names.
_CERTIFICATE_ADVICE = {0: _OTHER_NAME, 1: _OTHER_NAME, 9: _CLOCK, 10: _CLOCK, 62: _OTHER_NAME, 64: _OTHER_NAME}


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
    #: Length of the whole file where that is known, so that an answer that ends before counts as broken off.
    size_bytes: int | None = None
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
    """No response of the server came: name look-up, connection, TLS or time-out."""

    #: Whether asking again at once can help.
    is_passing: ClassVar[bool] = True

    def __init__(self, *, url: str, reason: str, advice: str | None = None) -> None:
        self.url = url
        self.reason = reason
        super().__init__(
            advice or f"{url} cannot be reached ({reason}); check the network and the address, then try again."
        )


class UntrustedServerError(UnreachableError):
    """The certificate shown is not one to trust for this address; `verify_code` is OpenSSL's X509_V_ERR number."""

    is_passing = False

    def __init__(self, *, url: str, reason: str, verify_code: int) -> None:
        self.verify_code = verify_code
        advice = _CERTIFICATE_ADVICE.get(verify_code, _INTERCEPTED)
        super().__init__(
            url=url, reason=reason, advice=f"{url} shows a certificate that is not to be trusted ({reason}); {advice}."
        )


class ProxyRefusedError(UnreachableError):
    """The configured proxy does not let us through."""

    is_passing = False

    def __init__(self, *, url: str, proxy: str, reason: str) -> None:
        self.proxy = proxy
        super().__init__(
            url=url,
            reason=reason,
            advice=f"{url} cannot be reached through the proxy {proxy} ({reason}); check `proxy` in the configuration "
            "and whether the proxy allows this address.",
        )


class LoginPageError(UnreachableError):
    """A web page came where a published file must be."""

    is_passing = False

    def __init__(self, *, url: str) -> None:
        super().__init__(
            url=url,
            reason="a web page came",
            advice=f"{url} answered with a web page and not with the repository's file: this network wants somebody to "
            "sign in first, or the address is wrong; sign in with a browser or correct the address, then try again.",
        )


class RecodedAnswerError(UnreachableError):
    """The answer came in a content coding that nobody asked for."""

    is_passing = False

    def __init__(self, *, url: str, coding: str) -> None:
        self.coding = coding
        super().__init__(
            url=url,
            reason="it was recoded",
            advice=f"{url} came with the content coding {coding!r}, which was not asked for: a proxy on the way "
            "recodes what passes; use https or another network.",
        )


class InterruptedTransferError(NetworkError):
    """The body ended early or became too slow."""

    def __init__(self, *, url: str, received_bytes: int, reason: str) -> None:
        self.url = url
        self.received_bytes = received_bytes
        self.reason = reason
        super().__init__(f"{url} broke off after {received_bytes} bytes ({reason}); run the command again to go on.")


class RefusedStatusError(NetworkError):
    """The server, or something before it, answered with a status that carries no content for us."""

    def __init__(self, *, url: str, status: int, retry_after_s: int | None = None) -> None:
        self.url = url
        self.status = status
        self.retry_after_s = retry_after_s
        advice = _STATUS_ADVICE.get(status, "check the repository's address and that it is complete")
        if retry_after_s is not None:
            advice = f"it asks to be left alone for {retry_after_s} s, try again after that"
        super().__init__(f"{url} answered with status {status}; {advice}.")

    @classmethod
    def of(cls, response: Response) -> Self:
        """Return the error for `response`."""
        return cls(url=response.url, status=response.status, retry_after_s=retry_after_s(response))


def retry_after_s(response: Response) -> int | None:
    """Return how many seconds the server asks to be left alone, or None when it does not say (RFC 9110, 10.2.3)."""
    text = response.headers.get("retry-after", "")
    if text.isascii() and text.isdecimal():
        return int(text[:9])
    try:
        # Against the server's own clock, because ours may be wrong.
        left = parsedate_to_datetime(text) - parsedate_to_datetime(response.headers.get("date", ""))
    except (TypeError, ValueError):
        return None
    return max(0, math.ceil(left.total_seconds()))


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


class InsecureRedirectError(InsecureAddressError):
    """A redirect from a protected address to one that is not."""

    def __init__(self, *, url: str, target: str) -> None:
        self.url = url
        self.target = target
        TrustError.__init__(
            self,
            f"{url} redirects to {target[:200]}, which is less protected, and was not followed; sign in if this "
            "network wants that, or mend the redirect on the server.",
        )
