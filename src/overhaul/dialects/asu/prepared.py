"""Answers as bytes, and the thin ASGI layer that sends them: any origin, any body type, no surprises.

Clients of the attended-sysupgrade interface run in browsers of other sites, send JSON under any type and in chunks,
and ask with HEAD where they want headers only. That is settled here, once, for every route.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from overhaul.errors import InputError

#: No request of any client comes near it.
MAX_BODY_BYTES = 256 * 1024

_EXPOSED = "X-Imagebuilder-Status, X-Build-Queue-Position, X-Queue-Position, X-Unknown-Package, X-Request-Hash"
CORS = (
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", _EXPOSED.encode()),
)
_PREFLIGHT = (
    *CORS,
    (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
    (b"access-control-allow-headers", b"*, Content-Type, Accept, Authorization"),
    (b"access-control-max-age", b"86400"),
    (b"content-length", b"0"),
)
_NOT_STORED = (b"cache-control", b"no-store")


class Prepared:
    """An answer that is ready to be sent again and again."""

    __slots__ = ("_unchanged", "body", "headers", "status")

    def __init__(
        self,
        status: int,
        body: bytes,
        *,
        headers: Mapping[str, str] | None = None,
        media_type: str = "application/json",
        etag: str | None = None,
        cache_control: str | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.headers: list[tuple[bytes, bytes]] = list(CORS)
        if status not in {204, 304}:
            self.headers.append((b"content-type", media_type.encode()))
            self.headers.append((b"content-length", str(len(body)).encode()))
        self.headers.append(_NOT_STORED if cache_control is None else (b"cache-control", cache_control.encode()))
        self._unchanged = None if etag is None else etag.encode()
        if self._unchanged is not None:
            self.headers.append((b"etag", self._unchanged))
        for name, value in (headers or {}).items():
            self.headers.append((name.lower().encode(), header_text(value).encode()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI fixes it
        """Send it, or say that the client has it already."""
        if self._unchanged is not None and any(
            name == b"if-none-match" and self._unchanged in value for name, value in scope["headers"]
        ):
            kept = [header for header in self.headers if header[0] not in {b"content-type", b"content-length"}]
            await send({"type": "http.response.start", "status": 304, "headers": kept})
            await send({"type": "http.response.body", "body": b""})
            return
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self.body})

    def header(self, name: str) -> str:
        """Return a header, empty when there is none."""
        wanted = name.lower().encode()
        return next((value.decode() for key, value in self.headers if key == wanted), "")


def json_answer(status: int, value: object, **headers: str) -> Prepared:
    """Return `value` as JSON; underscores in header names become dashes."""
    return Prepared(
        status, msgspec.json.encode(value), headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


def header_text(value: str) -> str:
    """Return `value` as a header can carry it: one line of printable ASCII."""
    return "".join(char if " " <= char <= "~" else "?" for char in value[:1000])


class BodyTooLargeError(InputError):
    """More was sent than any request holds."""

    http_status = 413

    def __init__(self, *, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(f"The request is larger than {limit_bytes} bytes; ask for fewer packages or a shorter script.")


async def read_body(receive: Receive, *, limit_bytes: int = MAX_BODY_BYTES) -> bytes:
    """Return the whole body.

    Raises:
        BodyTooLargeError: It is larger than `limit_bytes`.
        ClientGoneError: The client went away in the middle of it.
    """
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) > limit_bytes:
            raise BodyTooLargeError(limit_bytes=limit_bytes)
        return body
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit_bytes:
            raise BodyTooLargeError(limit_bytes=limit_bytes)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()


class ClientGoneError(Exception):
    """There is nobody left to answer."""


class Ask:
    """One request, as the handlers see it."""

    __slots__ = ("receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive

    @property
    def path(self) -> Mapping[str, str]:
        """The variable parts of the path."""
        params: Mapping[str, str] = self.scope["path_params"]
        return params

    @property
    def headers(self) -> Headers:
        """The request's headers."""
        return Headers(scope=self.scope)

    @property
    def address(self) -> str:
        """Where it came from."""
        client = self.scope.get("client")
        return client[0] if client else ""


Handler = Callable[[Ask], Awaitable["Prepared | Callable[[Scope, Receive, Send], Awaitable[None]]"]]


class Endpoint:
    """Turns a handler into an ASGI application, which answers preflights by itself."""

    def __init__(self, handler: Handler, *, methods: Sequence[str] = ("GET", "HEAD")) -> None:
        self._handler = handler
        self._methods = frozenset(methods)
        self._allowed = ", ".join((*methods, "OPTIONS"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        method = scope["method"]
        if method in self._methods:
            try:
                answer = await self._handler(Ask(scope, receive))
            except BodyTooLargeError as error:
                answer = json_answer(413, {"detail": str(error), "status": 413})
            except ClientGoneError:
                return
            await answer(scope, receive, send)
        elif method == "OPTIONS":
            await send({"type": "http.response.start", "status": 204, "headers": list(_PREFLIGHT)})
            await send({"type": "http.response.body", "body": b""})
        else:
            refused = json_answer(405, {"detail": "Method Not Allowed", "status": 405}, allow=self._allowed)
            await refused(scope, receive, send)
