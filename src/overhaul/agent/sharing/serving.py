"""The server that neighbours ask; its protocol is described in `transfer.neighbour`.

It answers nobody but private and link-local addresses, few at once, and each within a time; a head that is long or slow
ends the connection. Answers wait for their place in the allowance; when that is far away, whoever asks is told when to
ask again (503).
"""

import asyncio
import math
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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
    rf"|pieces/(?P<piece>[0-9a-f]{{64}}))\Z"
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
            await self._send(writer, HTTPStatus.BAD_REQUEST)
            return False
        # It may ask on the bus, with an event loop of its own.
        if await asyncio.to_thread(self.is_metered):
            await self._send(writer, HTTPStatus.SERVICE_UNAVAILABLE)
        elif path["image"] is not None and path["first"] is None:
            has = await asyncio.to_thread(self.shelf.has_image, path["image"])
            await self._send(writer, HTTPStatus.NO_CONTENT if has else HTTPStatus.NOT_FOUND)
        else:
            await self._give(writer, *self._wanted(path))
        return True

    def _wanted(self, path: re.Match[str]) -> tuple[Callable[[], int | None], Callable[[], bytes | None]]:
        """Return what tells the size of what is asked for, and what reads it; both may block."""
        if path["piece"] is not None:
            return partial(self.shelf.size_of_piece, path["piece"]), partial(self.shelf.piece, path["piece"])
        run = (path["image"], int(path["first"]), int(path["last"]))
        return partial(self.shelf.size_of, *run), partial(self.shelf.chunks, *run)

    async def _give(
        self, writer: asyncio.StreamWriter, size_of: Callable[[], int | None], read: Callable[[], bytes | None]
    ) -> None:
        size = await asyncio.to_thread(size_of)
        if size is None:
            await self._send(writer, HTTPStatus.NOT_FOUND)
            return
        turn = self.allowance.reserve(size)
        if turn is None:
            await self._send(writer, HTTPStatus.SERVICE_UNAVAILABLE)
        elif not turn.is_booked:
            await self._send(writer, HTTPStatus.SERVICE_UNAVAILABLE, retry_after_s=math.ceil(turn.wait_s))
        else:
            if turn.wait_s:
                await self.sleep(turn.wait_s)
            data = await asyncio.to_thread(read)
            await self._send(writer, HTTPStatus.NOT_FOUND if data is None else HTTPStatus.OK, data or b"")

    async def _send(
        self, writer: asyncio.StreamWriter, status: HTTPStatus, body: bytes = b"", *, retry_after_s: int | None = None
    ) -> None:
        later = "" if retry_after_s is None else f"Retry-After: {min(retry_after_s, 9999)}\r\n"
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n{later}Content-Length: {len(body)}\r\n\r\n"
        async with asyncio.timeout(_SENDING_TIMEOUT_S + len(body) / MIN_BYTES_PER_S):
            writer.write(head.encode() + body)
            await writer.drain()
        self.given_bytes += len(body)
