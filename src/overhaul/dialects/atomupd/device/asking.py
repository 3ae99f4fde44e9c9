"""Asking the server which images come next: the addresses to try, in order, and the answer.

The static protocol asks for the file of exactly this image, and when the server does not know it (any status of 400
to 499) for the fallback file of its channel. The query protocol sends what the image is as parameters. Opt-in facts of
the hardware ride along as further parameters in both; a server of plain files does not look at them.

With a root of trust configured, both come out of the repository's signed answers and from nowhere else (`verified`).

A 5xx or a broken connection ends the asking at once: the fallback answers another question, and asking it because a
server is in trouble could lead a device astray.
"""

import base64
import netrc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

from overhaul.dialects.atomupd.candidates import NO_UPDATE, UnreadableUpdateError, Update, decode_update
from overhaul.dialects.atomupd.device.settings import ClientSettings, Era
from overhaul.dialects.atomupd.manifest import Image, legacy_variant_of
from overhaul.dialects.atomupd.paths import answer_paths
from overhaul.errors import InputError, NetworkError
from overhaul.transfer.fetcher import Fetcher, OversizeError, RefusedStatusError, Request, Response
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

#: Far more than any answer has.
_MAX_ANSWER_BYTES = 16 << 20


class UnknownToServerError(NetworkError):
    """Every address answered that it has nothing for this image."""

    exit_code = 2

    def __init__(self, *, urls: Sequence[str], statuses: Sequence[int]) -> None:
        self.urls = tuple(urls)
        self.statuses = tuple(statuses)
        tried = ", ".join(f"{url} ({status})" for url, status in zip(urls, statuses, strict=True))
        super().__init__(
            f"The server has no answer for this image: {tried}. Check MetaUrl and the image's variant and branch."
        )


class CredentialsError(InputError):
    """The file of passwords cannot be used."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        super().__init__(f"{path} cannot be used: {reason}. Correct it or move it away.")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the caller asks for beyond the running image's own channel."""

    #: None: the image's own.
    variant: str | None = None
    branch: str | None = None
    penultimate: bool = False


def client_fetcher(settings: ClientSettings, *, url: str) -> Fetcher:
    """Return a fetcher for `url` that keeps to the configuration and to the proxy variables of the environment."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxy = None if proxy_bypass(host) else getproxies().get(parts.scheme)
    return open_fetcher(
        FetchSettings(allow_http=settings.allow_http, proxy=proxy or None, user_agent="overhaul-atomupd")
    )


def addresses(settings: ClientSettings, image: Image, wish: Wish, facts: Mapping[str, str]) -> list[str]:
    """Return the addresses to ask, in order."""
    if settings.era is Era.EARLY:
        return [_query_address(settings, image, facts)]
    branch = wish.branch or image.default_update_branch
    parameters = f"?{urlencode(facts)}" if facts else ""
    urls = [f"{settings.meta_url}/{path}{parameters}" for path in _paths(image, wish, branch)]
    if settings.query_url and not wish.penultimate:
        urls.append(_query_address(settings, image, facts, wish))
    return urls


def ask(settings: ClientSettings, urls: Sequence[str]) -> Update:
    """Return what the server offers.

    Raises:
        UnknownToServerError: Every address answered with a status of 400 to 499.
        RefusedStatusError: The server is in trouble.
        NetworkError: It cannot be reached.
        UnreadableUpdateError: What it sent is no answer.
    """
    statuses = []
    for url in urls:
        status, body = _get(settings, url)
        if status == 200:
            if not body.strip() and not _is_query(settings, url):
                raise UnreadableUpdateError("it is empty")
            return decode_update(body) if body.strip() else NO_UPDATE
        if not 400 <= status < 500:
            raise RefusedStatusError(url=url, status=status)
        statuses.append(status)
    raise UnknownToServerError(urls=urls, statuses=statuses)


def fetch_text(settings: ClientSettings, url: str) -> str:
    """Return a small text file of the server.

    Raises:
        RefusedStatusError: The server has none.
        NetworkError: It cannot be reached.
        UnreadableUpdateError: It is no text.
    """
    status, body = _get(settings, url)
    if status != 200:
        raise RefusedStatusError(url=url, status=status)
    try:
        return body.decode()
    except UnicodeError as error:
        raise UnreadableUpdateError(f"{url} is no text") from error


def _paths(image: Image, wish: Wish, branch: str) -> list[str]:
    if image.legacy_variant:
        # The branch, where one is asked for, says all there is to say about a legacy variant.
        variant = legacy_variant_of(branch) if wish.branch else wish.variant or image.legacy_variant
        found = answer_paths(image, branch=branch, variant=variant)
        return [found.penultimate] if wish.penultimate else [found.standard, found.fallback]
    found = answer_paths(image, branch=branch, variant=wish.variant)
    if wish.penultimate:
        return [found.penultimate]
    if wish.variant and wish.variant != image.variant:
        # The running image does not exist in another variant, so there is no file of its own.
        return [found.fallback, found.fallback]
    return [found.standard, found.fallback]


def _query_address(settings: ClientSettings, image: Image, facts: Mapping[str, str], wish: Wish | None = None) -> str:
    branch = wish.branch if wish is not None else None
    parameters = {
        "product": image.product,
        "release": image.release,
        "variant": (wish.variant if wish is not None else None) or image.shown_variant,
        "arch": image.arch,
        "version": image.version.text,
        "buildid": str(image.build_id),
    }
    if image.branch:
        if not image.legacy_variant:
            parameters["branch"] = branch or image.branch
            parameters["default_update_branch"] = image.default_update_branch
        if image.level:
            parameters["introduces_checkpoint"] = str(image.introduces_checkpoint)
            parameters["requires_checkpoint"] = str(image.requires_checkpoint)
        parameters["estimated_size"] = "0"
    else:
        parameters["checkpoint"] = str(image.checkpoint)
    parameters["want-unstable"] = str(settings.want_unstable)
    return f"{settings.query_url}?{urlencode({**parameters, **facts})}"


def _is_query(settings: ClientSettings, url: str) -> bool:
    return bool(settings.query_url) and url.startswith(f"{settings.query_url}?")


def _get(settings: ClientSettings, url: str) -> tuple[int, bytes]:
    fetcher = client_fetcher(settings, url=url)
    if settings.trust is not None:
        from overhaul.dialects.atomupd.device.verified import signed_files

        path = url.removeprefix(f"{settings.meta_url}/").partition("?")[0]
        data = signed_files(settings.trust, fetcher).get(path)
        return (404, b"") if data is None else (200, data)
    with fetcher.fetch(Request(url=url)) as response:
        if response.status != 401:
            return response.status, _body(response)
        authorization = _authorization(settings, url)
    if authorization is None:
        return 401, b""
    with fetcher.fetch(Request(url=url, authorization=authorization)) as response:
        return response.status, _body(response)


def _body(response: Response) -> bytes:
    if response.status != 200:
        return b""
    body = bytearray()
    for piece in response.body:
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            raise OversizeError(url=response.url, limit_bytes=_MAX_ANSWER_BYTES)
    return bytes(body)


def _authorization(settings: ClientSettings, url: str) -> str | None:
    """Return the value of `Authorization` for a server that wants one: of the configuration, else of `~/.netrc`."""
    found = (settings.username, settings.password) if settings.username else _of_netrc(urlsplit(url).hostname or "")
    if found is None:
        return None
    return "Basic " + base64.b64encode(":".join(found).encode()).decode()


def _of_netrc(host: str) -> tuple[str, str] | None:
    path = Path("~/.netrc").expanduser()
    try:
        entry = netrc.netrc(str(path)).authenticators(host)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError, netrc.NetrcParseError) as error:
        raise CredentialsError(path=path, reason=str(error)) from error
    return (entry[0], entry[2] or "") if entry is not None else None
