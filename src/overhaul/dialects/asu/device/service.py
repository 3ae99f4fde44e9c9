"""Talking to a build server: JSON over HTTP, bounded in size and time, of either era.

What a server says is parsed into records here and believed for nothing but names and digests of what will be fetched;
names are checked before they become part of an address or a path.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import msgspec

from overhaul.errors import InputError, NetworkError, TrustError
from overhaul.transfer.fetcher import UnreachableError
from overhaul.transfer.wire import check_address, trusted_authorities

_LIMIT_BYTES = 16 * 1024 * 1024
_TIMEOUT_S = 60.0
_USER_AGENT = "overhaul-sysupgrade/1"
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+~-]{0,200}", re.ASCII)
_DIRECTORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+~-]{0,200}(/[A-Za-z0-9_][A-Za-z0-9_.,+~-]{0,200}){0,9}", re.ASCII)
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


class ServerAnswerError(NetworkError):
    """The server answered with something that no such server says."""

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"{url} gave an answer that cannot be used: {reason}. Check the server's address.")


class RefusedByServerError(InputError):
    """The server will not build this; it says why."""

    def __init__(self, *, status: int, detail: str, packages: str = "") -> None:
        self.status = status
        self.detail = detail
        #: Packages that it does not have, as it named them.
        self.packages = packages
        named = f" (packages: {packages})" if packages and packages != "none" else ""
        super().__init__(f"The server refuses the request: {detail}{named}. Change the package list or the version.")


class BuildFailedOnServerError(InputError):
    """The build ended without an image."""

    def __init__(self, *, detail: str, log: str) -> None:
        self.detail = detail
        self.log = log
        super().__init__(f"The server could not build the image: {detail}.")


class OverloadedServerError(NetworkError):
    """The server has too much to do."""

    def __init__(self, *, url: str) -> None:
        self.url = url
        super().__init__(f"{url} has too many builds waiting; try again in a few minutes.")


class UnsafeAnswerError(TrustError):
    """A name from the server that would lead elsewhere."""

    def __init__(self, *, value: str) -> None:
        self.value = value
        super().__init__(f"The server named {value[:80]!r}, which no file is called; nothing of its answer was used.")


@dataclass(frozen=True, kw_only=True)
class HttpAnswer:
    """What came back."""

    status: int
    #: Lower-case names.
    headers: Mapping[str, str]
    body: bytes

    def document(self, url: str) -> dict[str, Any]:
        """Return the body as a JSON object.

        Raises:
            ServerAnswerError: It is none.
        """
        try:
            return msgspec.json.decode(self.body or b"{}", type=dict[str, Any])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ServerAnswerError(url=url, reason=f"status {self.status} with {error}") from error


class Http(Protocol):
    """Sends one request."""

    def ask(self, method: str, url: str, document: object = None) -> HttpAnswer:
        """Return the answer; a status of 400 or more is one."""


class UrllibHttp:
    """Http over urllib3."""

    def __init__(self, *, allow_http: bool = False, ca_file: Path | None = None) -> None:
        import urllib3

        self._allow_http = allow_http
        self._pool = urllib3.PoolManager(ca_certs=trusted_authorities(ca_file), timeout=_TIMEOUT_S)

    def ask(self, method: str, url: str, document: object = None) -> HttpAnswer:
        """Send one request; a redirect is followed only for GET and only to an allowed address."""
        import urllib3

        check_address(url, allow_http=self._allow_http)
        headers = {"User-Agent": _USER_AGENT, "Accept": "application/json"}
        body = None
        if document is not None:
            body = msgspec.json.encode(document)
            headers["Content-Type"] = "application/json"
        try:
            response = self._pool.request(
                method, url, body=body, headers=headers, preload_content=False, redirect=False, retries=False
            )
            try:
                data = response.read(_LIMIT_BYTES + 1, decode_content=True)
            finally:
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnreachableError(url=url, reason=str(error)) from error
        if len(data) > _LIMIT_BYTES:
            raise ServerAnswerError(url=url, reason=f"it is larger than {_LIMIT_BYTES} bytes")
        told = {name.lower(): value for name, value in response.headers.items()}
        return HttpAnswer(status=response.status, headers=told, body=data)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The image to ask for."""

    distribution: str
    version: str
    #: Revision that the version must have; empty for any.
    revision: str
    target: str
    board: str
    packages: tuple[str, ...]
    filesystem: str | None = None


@dataclass(frozen=True, kw_only=True)
class Progressing:
    """A build that is not over."""

    name: str
    #: In words: where it waits or what is being done.
    state: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """An image that can be fetched."""

    name: str
    #: Address of the directory its files are in, without a slash at the end.
    directory_url: str
    file: str
    #: None where the server's era tells no digest.
    sha256: str | None
    manifest: Mapping[str, str]


Told = Progressing | Finished


class Service(Protocol):
    """One era's interface."""

    def newest(self, version: str, target: str, revision: str, packages: Mapping[str, str]) -> "Newest":
        """Return what there is for a device."""

    def request(self, wanted: Wanted) -> Told:
        """Ask for an image."""

    def poll(self, name: str, wanted: Wanted) -> Told:
        """Ask how far it is."""


@dataclass(frozen=True, kw_only=True)
class Newest:
    """What the server has for a device."""

    version: str
    revision: str
    #: Whether that is newer than what runs.
    is_newer: bool
    #: The packages to ask for, with what became of those that exist no longer.
    packages: tuple[str, ...]
    #: Package -> version there; empty where the server does not say.
    versions: Mapping[str, str]
    #: Old name -> new name, or None where nothing takes its place.
    replaced: Mapping[str, str | None]


def checked_file(name: object) -> str:
    """Return `name` when it is a plain file name.

    Raises:
        UnsafeAnswerError: It is not.
    """
    if not isinstance(name, str) or _FILE.fullmatch(name) is None:
        raise UnsafeAnswerError(value=str(name))
    return name


def checked_directory(path: object) -> str:
    """Return `path` when it is made of plain names."""
    if not isinstance(path, str) or _DIRECTORY.fullmatch(path) is None:
        raise UnsafeAnswerError(value=str(path))
    return path


def checked_digest(text: object) -> str:
    """Return `text` when it is a SHA-256 in hexadecimal."""
    if not isinstance(text, str) or _DIGEST.fullmatch(text) is None:
        raise UnsafeAnswerError(value=str(text))
    return text


def quoted(*parts: str) -> str:
    """Return parts of a path as they stand in an address; slashes inside them stay."""
    return "/".join(quote(part) for part in parts)


def texts(value: object) -> dict[str, str]:
    """Return a table of texts out of an answer; anything else in it is left out."""
    return {key: text for key, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}
