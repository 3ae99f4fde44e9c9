"""What every engine does alike on the wire: headers sent, addresses allowed, how slow is too slow.

Pure but for the exceptions it raises, so that two engines cannot drift apart.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from overhaul.transfer.fetcher import InsecureAddressError, InsecureRedirectError, Request, UnreachableError

#: More redirects than any honest server chains.
MAX_REDIRECTS = 8
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ORIGIN = re.compile(r"[a-z]+://[^/?#]*", re.IGNORECASE)
#: Where distributions keep the authorities to trust; libraries from wheels look in places of their own.
_SYSTEM_CA_FILES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),
    Path("/etc/pki/tls/certs/ca-bundle.crt"),
    Path("/etc/ssl/cert.pem"),
)


class TooSlowError(TimeoutError):
    """A transfer fell below the minimum speed, or does not come to its content; to callers it has broken off."""


class Pace:
    """The minimum-speed rule against a server that keeps a connection open and sends next to nothing.

    Only time spent waiting for the network counts, so a consumer that takes long over what it got is not
    punished for it.
    """

    def __init__(self, *, min_bytes_per_s: int, window_s: float) -> None:
        self._min_bytes_per_s = min_bytes_per_s
        self._window_s = window_s
        self._received_bytes = 0
        self._waited_s = 0.0

    def add(self, *, received_bytes: int, waited_s: float) -> None:
        """Count one wait and what it brought.

        Raises:
            TooSlowError: The window that ends now brought too little.
        """
        self._received_bytes += received_bytes
        self._waited_s += waited_s
        if self._waited_s < self._window_s:
            return
        if self._received_bytes < self._min_bytes_per_s * self._waited_s:
            raise TooSlowError(
                f"{self._received_bytes} bytes in {self._waited_s:.1f} s is slower than "
                f"{self._min_bytes_per_s} bytes per second"
            )
        self._received_bytes = 0
        self._waited_s = 0.0


def request_headers(request: Request, *, url: str, user_agent: str) -> dict[str, str]:
    """Return the headers that ask for `request`, bytes as stored, at `url`, to which it may have been redirected."""
    headers = {
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        # Proxies that recode what passes keep to this, if they keep to anything (RFC 9111, 5.2.1.6).
        "Cache-Control": "no-transform",
        "User-Agent": user_agent,
    }
    if request.start or request.end is not None:
        last = "" if request.end is None else str(request.end - 1)
        headers["Range"] = f"bytes={request.start}-{last}"
    if request.etag is not None:
        headers["If-None-Match"] = request.etag
    if request.if_range is not None:
        headers["If-Range"] = request.if_range
    if request.authorization is not None and _origin(url) == _origin(request.url):
        headers["Authorization"] = request.authorization
    return headers


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme.lower(), parts.netloc.lower()


def check_address(url: str, *, allow_http: bool) -> None:
    """Refuse what cannot be asked.

    Raises:
        InsecureAddressError: `url` is neither https nor permitted http.
        UnreachableError: It is no address at all.
    """
    scheme = url.partition(":")[0].lower()
    if scheme != "https" and not (scheme == "http" and allow_http):
        raise InsecureAddressError(url=url)
    if not is_address(url):
        raise UnreachableError(url=url, reason="it is no address")


def is_address(url: str) -> bool:
    """Tell whether `url` is an http or https address with a host, written as it goes over the wire."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    origin = _ORIGIN.match(url)
    return origin is not None and _is_origin(origin[0])


@lru_cache(maxsize=64)
def _is_origin(origin: str) -> bool:
    """Tell whether `origin`, all before the path, names a host; a pull asks the same one for thousands of files."""
    try:
        parts = urlsplit(origin)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def redirected_to(url: str, *, status: int, headers: Mapping[str, str], allow_http: bool) -> str | None:
    """Return the address a response sends us on to, or None when it is the answer itself.

    Raises:
        InsecureRedirectError: It leads from https to plain http, or to another kind of address.
        UnreachableError: It leads to what is no address.
    """
    location = headers.get("location")
    if status not in _REDIRECTS or location is None:
        return None
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise UnreachableError(url=url, reason=f"it redirects to {location[:200]!r}, which is no address") from error
    try:
        check_address(target, allow_http=allow_http and urlsplit(url).scheme.lower() == "http")
    except InsecureAddressError as error:
        raise InsecureRedirectError(url=url, target=target) from error
    return target


def too_many_redirects(url: str) -> UnreachableError:
    """Return the error for a chain of redirects that does not end."""
    return UnreachableError(url=url, reason=f"it redirects more than {MAX_REDIRECTS} times")


def trusted_authorities(ca_file: Path | None) -> str | None:
    """Return the PEM file of authorities to trust: the configured one, else the system's, else the library's own."""
    if ca_file is not None:
        return str(ca_file)
    return next((str(path) for path in _SYSTEM_CA_FILES if path.is_file()), None)


def without_password(proxy: str) -> str:
    """Return the address of a proxy as it may be shown."""
    scheme, mark, rest = proxy.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"
