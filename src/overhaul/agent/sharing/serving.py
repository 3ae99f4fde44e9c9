"""The server that neighbours ask; its protocol is described in `transfer.neighbour`.

It answers nobody but private and link-local addresses, few at once, and each within a time; a head that is long or slow
ends the connection. Pieces wait for their place in the allowance, or are refused (503) when that is far away.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from socket import socket

from overhaul.agent.sharing.allowance import Allowance
from overhaul.agent.sharing.shelf import Shelf
from overhaul.transfer.nearness import is_near
from overhaul.transfer.neighbour import MIN_BYTES_PER_S, PREFIX

MAX_CONNECTIONS = 16
MAX_CONNECTIONS_EACH = 2
_MAX_HEAD = 2048
_HEAD_TIMEOUT_S = 10.0
_SENDING_TIMEOUT_S = 10.0
_REQUEST = re.compile(rb"GET (/[!-~]{1,300}) HTTP/1\.1\r\n")
_PATH = re.compile(
    rf"{PREFIX}/(?:images/(?P<image>[0-9a-f]{{64}})(?:/(?P<first>\d{{1,8}})-(?P<last>\d{{1,8}}))?"
    rf"|indexes/(?P<index>[0-9a-f]{{64}}))\Z"
)


@dataclass
class ShareServer:
    """Gives what is on the shelf, as far as it is allowed."""

    shelf: Shelf
    allowance: Allowance
    #: Whether this network costs by volume; nothing is given then.
    is_metered: Callable[[], bool]
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    head_timeout_s: float = _HEAD_TIMEOUT_S
    #: Bytes that went out.
    given_bytes: int = 0
    _peers: Counter[str] = field(default_factory=Counter)

    async def serve(self, listening: socket, *, started: Callable[[], None] = lambda: None) -> None:
        """Serve on a listening socket until it is cancelled."""
        server = await asyncio.start_server(self._connected, sock=listening, limit=_MAX_HEAD)
        async with server:
            started()
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        full = self._peers.total() >= MAX_CONNECTIONS or self._peers[peer] >= MAX_CONNECTIONS_EACH
        if full or not is_near(peer):
            writer.transport.abort()
            return
        self._peers[peer] += 1
        try:
            # Slow, broken or gone neighbours, and heads that are too long.
            with suppress(TimeoutError, OSError, EOFError, asyncio.LimitOverrunError):
                while await self._answer_one(reader, writer):
                    pass
        finally:
            writer.transport.abort()
            self._peers[peer] -= 1
            if not self._peers[peer]:
                del self._peers[peer]

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        async with asyncio.timeout(self.head_timeout_s):
            head = await reader.readuntil(b"\r\n\r\n")
        request = _REQUEST.match(head)
        path = None if request is None else _PATH.match(request[1].decode("ascii"))
        # A body would be taken for the next request.
        if path is None or b"\r\ncontent-length:" in head.lower() or b"\r\ntransfer-encoding:" in head.lower():
            await self._send(writer, HTTPStatus.BAD_REQUEST, b"")
            return False
        status, body = await self._body(path)
        await self._send(writer, status, body)
        return True

    async def _body(self, path: re.Match[str]) -> tuple[HTTPStatus, bytes]:
        # It may ask on the bus, with an event loop of its own.
        if await asyncio.to_thread(self.is_metered):
            return HTTPStatus.SERVICE_UNAVAILABLE, b""
        image, index = path["image"], path["index"]
        if image is not None and path["first"] is None:
            has = await asyncio.to_thread(self.shelf.has_image, image)
            return HTTPStatus.NO_CONTENT if has else HTTPStatus.NOT_FOUND, b""
        if index is not None:
            data = await asyncio.to_thread(self.shelf.index, index)
            size = None if data is None else len(data)
        else:
            first, last = int(path["first"]), int(path["last"])
            size = await asyncio.to_thread(self.shelf.size_of, image, first, last)
        if size is None:
            return HTTPStatus.NOT_FOUND, b""
        wait_s = self.allowance.reserve(size)
        if wait_s is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, b""
        if wait_s:
            await self.sleep(wait_s)
        if index is None:
            data = await asyncio.to_thread(self.shelf.chunks, image, first, last)
        return (HTTPStatus.NOT_FOUND, b"") if data is None else (HTTPStatus.OK, data)

    async def _send(self, writer: asyncio.StreamWriter, status: HTTPStatus, body: bytes) -> None:
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: {len(body)}\r\n\r\n"
        async with asyncio.timeout(_SENDING_TIMEOUT_S + len(body) / MIN_BYTES_PER_S):
            writer.write(head.encode() + body)
            await writer.drain()
        self.given_bytes += len(body)
