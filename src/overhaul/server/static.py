"""The published tree over HTTP: ranges, validators and lifetimes that a resumable updater can stand on.

What a client may count on:

* A strong entity tag for every file; `If-None-Match` answers 304, `If-Range` decides about a range.
* One range (206), several ranges (206, multipart/byteranges), and 416 for a range behind the end.
* Content-named files may be kept for ever; the pointer must be asked for again; a 404 must not be kept.
* Nothing outside the public tree is reachable, however the path is written.

The unchanged poll is answered from memory without touching a body.
"""

import hashlib
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from overhaul.errors import OverhaulError
from overhaul.repository.storage import MissingObjectError
from overhaul.server.caching import POINTER_PATH, REVALIDATE, Naming, etag_matches, naming_of
from overhaul.server.pointer import Headers, Pointer
from overhaul.server.ranges import Span, UnsatisfiableRangeError, parse_range
from overhaul.server.tree import OpenFile, PublicTree

#: Bytes read and sent at a time; also what one slow client can hold in memory.
PIECE_BYTES = 256 * 1024
_REMEMBERED_ETAGS = 4096

_LOGGER = logging.getLogger(__name__)


class StaticTree:
    """The ASGI application that answers for the published tree."""

    def __init__(self, tree: PublicTree, pointer: Pointer, *, redirect_to: str | None = None) -> None:
        self._tree = tree
        self._pointer = pointer
        self._redirect_to = None if redirect_to is None else redirect_to.rstrip("/")
        self._etags: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["method"] not in {"GET", "HEAD"}:
            await _send_error(scope, send, 405, "Method Not Allowed", [(b"allow", b"GET, HEAD")])
            return
        path = scope["path"][len(scope.get("root_path", "")) :].removeprefix("/")
        try:
            await self._answer(path, scope, receive, send)
        except MissingObjectError:
            await _send_not_found(scope, send)
        except OverhaulError as error:
            _LOGGER.warning("%s cannot be served: %s", path, error)
            await _send_error(scope, send, 503, "The storage does not answer", [(b"retry-after", b"30")])

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        if path == POINTER_PATH:
            await self._send_pointer(scope, send)
            return
        naming = naming_of(path)
        if naming is None:
            await _send_not_found(scope, send)
        elif self._redirect_to is not None and path.startswith(("content/", "castr/")):
            location = f"{self._redirect_to}/{path}".encode()
            await _send(scope, send, 307, [(b"location", location), (b"cache-control", REVALIDATE.encode())], b"")
        else:
            await self._send_file(naming, scope, receive, send)

    async def _send_pointer(self, scope: Scope, send: Send) -> None:
        prepared = await self._pointer.current()
        if prepared is None:
            await _send_not_found(scope, send)
            return
        asked = _request_headers(scope)
        if etag_matches(asked.get(b"if-none-match"), prepared.etag):
            await _send(scope, send, 304, prepared.unchanged_headers, b"")
            return
        try:
            spans = _spans(asked, prepared.etag, len(prepared.body))
        except UnsatisfiableRangeError as error:
            await _send_unsatisfiable(scope, send, error)
            return
        if len(spans) == 1:
            (span,) = spans
            headers = [
                *(header for header in prepared.full_headers if header[0] != b"content-length"),
                (b"content-length", str(span.size).encode()),
                (b"content-range", _content_range(span, len(prepared.body))),
            ]
            await _send(scope, send, 206, headers, prepared.body[span.start : span.end])
        else:  # several ranges of a file this small are answered with all of it
            await _send(scope, send, 200, prepared.full_headers, prepared.body)

    async def _send_file(self, naming: Naming, scope: Scope, receive: Receive, send: Send) -> None:
        opened = await self._tree.open(naming.path)
        if opened is None:
            await _send_not_found(scope, send)
            return
        with opened:
            asked = _request_headers(scope)
            if naming.is_foreign:
                etag = f'"{opened.version}"'
            else:
                etag = naming.etag or await self._etag_of(naming.path, opened)
            shared = [(b"etag", etag.encode()), (b"cache-control", naming.cache_control.encode())]
            if etag_matches(asked.get(b"if-none-match"), etag):
                await _send(scope, send, 304, shared, b"")
                return
            try:
                spans = _spans(asked, etag, opened.size)
            except UnsatisfiableRangeError as error:
                await _send_unsatisfiable(scope, send, error)
                return
            shared += [(b"accept-ranges", b"bytes"), (b"x-content-type-options", b"nosniff")]
            answer = _Answer(naming, opened, spans)
            headers = [*shared, *answer.headers]
            if scope["method"] == "HEAD":
                await _send(scope, send, answer.status, headers, b"")
            elif len(spans) <= 1 and answer.size <= PIECE_BYTES:
                span = spans[0] if spans else Span(0, opened.size)
                await _send(scope, send, answer.status, headers, await opened.read(span.start, span.end))
            else:
                # Starlette's response also notices a client that goes away in the middle.
                response = StreamingResponse(answer.pieces(), status_code=answer.status)
                response.raw_headers = headers
                try:
                    await response(scope, receive, send)
                except OverhaulError as error:
                    raise _BrokenOffError from error

    async def _etag_of(self, path: str, opened: OpenFile) -> str:
        """Return the tag of a file whose name holds no digest; these are metadata, hence small."""
        key = (path, opened.version)
        known = self._etags.get(key)
        if known is None:
            digest = hashlib.sha256()
            for start in range(0, opened.size, PIECE_BYTES):
                digest.update(await opened.read(start, min(start + PIECE_BYTES, opened.size)))
            known = self._etags[key] = f'"{digest.hexdigest()}"'
            if len(self._etags) > _REMEMBERED_ETAGS:
                self._etags.popitem(last=False)
        return known


class _BrokenOffError(Exception):
    """The storage failed in the middle of a body; the engine cuts the connection, so that the client notices."""


class _Answer:
    """Status, headers and body of one file or of spans of it."""

    def __init__(self, naming: Naming, opened: OpenFile, spans: tuple[Span, ...]) -> None:
        self._opened = opened
        self._parts: list[tuple[bytes, Span]]
        self._tail = b""
        media_type = naming.media_type.encode()
        self.status = 206 if spans else 200
        self.headers: Headers = []
        if len(spans) <= 1:
            span = spans[0] if spans else Span(0, opened.size)
            self._parts = [(b"", span)]
            if spans:
                self.headers.append((b"content-range", _content_range(span, opened.size)))
        else:
            boundary = secrets.token_hex(12).encode()
            self._parts = [
                (
                    b"\r\n--%s\r\ncontent-type: %s\r\ncontent-range: %s\r\n\r\n"
                    % (boundary, media_type, _content_range(span, opened.size)),
                    span,
                )
                for span in spans
            ]
            self._tail = b"\r\n--%s--\r\n" % boundary
            media_type = b"multipart/byteranges; boundary=" + boundary
        self.size = sum(len(head) + span.size for head, span in self._parts) + len(self._tail)
        self.headers += [(b"content-type", media_type), (b"content-length", str(self.size).encode())]

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body, a piece at a time."""
        for head, span in self._parts:
            if head:
                yield head
            for start in range(span.start, span.end, PIECE_BYTES):
                yield await self._opened.read(start, min(start + PIECE_BYTES, span.end))
        if self._tail:
            yield self._tail


def _request_headers(scope: Scope) -> dict[bytes, str]:
    wanted = (b"if-none-match", b"if-range", b"range")
    return {name: value.decode("latin-1") for name, value in scope["headers"] if name in wanted}


def _spans(asked: dict[bytes, str], etag: str, size: int) -> tuple[Span, ...]:
    condition = asked.get(b"if-range")
    if condition is not None and condition.strip() != etag:
        return ()
    return parse_range(asked.get(b"range"), size=size)


def _content_range(span: Span, size: int) -> bytes:
    return b"bytes %d-%d/%d" % (span.start, span.end - 1, size)


async def _send(scope: Scope, send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


async def _send_not_found(scope: Scope, send: Send) -> None:
    await _send_error(scope, send, 404, "Not Found", [])


async def _send_unsatisfiable(scope: Scope, send: Send, error: UnsatisfiableRangeError) -> None:
    await _send_error(scope, send, 416, str(error), [(b"content-range", b"bytes */%d" % error.size)])


async def _send_error(scope: Scope, send: Send, status: int, detail: str, headers: Headers) -> None:
    body = b'{"detail":"%s"}' % detail.encode()
    shared = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", REVALIDATE.encode()),
    ]
    await _send(scope, send, status, [*headers, *shared], body)
