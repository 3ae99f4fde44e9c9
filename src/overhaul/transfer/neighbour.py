"""Asking another device of the same network for pieces of a release.

The protocol is a strict part of HTTP/1.1, in clear text: whoever asks verifies every byte by a signed digest, so there
is nothing to protect but one's time. It is GET alone, with these paths; everything else is refused:

    /overhaul/1/images/INDEX                 204: I have the image whose index has this SHA-256
    /overhaul/1/images/INDEX/FIRST-LAST      200: the bytes of these chunks (numbers in the index), behind one another
    /overhaul/1/pieces/DIGEST                200: a published file, or a part of one, with this SHA-256

404 says that it is not there, 503 that nothing is given for so many seconds (`Retry-After`), or no more at all.

A neighbour is a stranger that may lie, hang or flood: an answer must begin, grow and end within a time that follows
from its size, it has the size that was asked for, its head is short, redirects are not followed. The first thing that
is wrong ends it with `NeighbourFailedError`; what came before that is whole pieces that can be checked.
"""

import asyncio
import re
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from overhaul.errors import NetworkError

PREFIX = "/overhaul/1"
#: Chunks are asked for in runs of at most so many bytes, or of one chunk.
MAX_RUN_BYTES = 1024 * 1024
#: What an answer must bring, once it has begun.
MIN_BYTES_PER_S = 64 * 1024
_PATIENCE_S = 5.0
_MAX_HEAD = 4096
_PIECE = 64 * 1024
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})(?: [^\r\n]*)?\Z")
#: How long a neighbour may ask to be left alone, and how seldom it is asked then.
MIN_RETRY_S = 1.0
_MAX_RETRY_S = 5.0
_UNAVAILABLE = 503
_LENGTH = re.compile(rb"(?i)content-length:[ \t]*(\d{1,12})[ \t]*\Z")
_RETRY_AFTER = re.compile(rb"(?i)retry-after:[ \t]*(\d{1,4})[ \t]*\Z")


class NeighbourFailedError(NetworkError):
    """A neighbour does not do what neighbours do; it is not asked again, and nothing is lost."""

    def __init__(self, *, address: str, reason: str) -> None:
        self.address = address
        self.reason = reason
        super().__init__(f"The neighbour {address} is of no use ({reason}); what it lacks comes from the repository.")


class NeighbourBusyError(NetworkError):
    """A neighbour has given all it may for the moment; it may be asked again."""

    def __init__(self, *, address: str, retry_after_s: float) -> None:
        self.address = address
        self.retry_after_s = retry_after_s
        super().__init__(f"The neighbour {address} gives nothing for {retry_after_s:g} seconds.")


class HttpNeighbour:
    """One neighbour, asked by one thread at a time over one connection."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        patience_s: float = _PATIENCE_S,
        min_bytes_per_s: int = MIN_BYTES_PER_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = f"{host}:{port}"
        self._host, self._port = host, port
        self._patience_s = patience_s
        self._min_bytes_per_s = min_bytes_per_s
        self._monotonic = monotonic
        self._runner = asyncio.Runner()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back."""
        if self._streams is not None:
            self._forget_connection()
            # The transport lets go of its socket in the next turn of the loop.
            self._runner.run(asyncio.sleep(0))
        self._runner.close()

    def has_image(self, index_sha256: str) -> bool:
        """Tell whether the neighbour says that it has the image with this index."""
        return self._ask(f"{PREFIX}/images/{index_sha256}", size=0, expected=204) is not None

    def chunks(self, index_sha256: str, *, first: int, last: int, size: int) -> bytes | None:
        """Return what the neighbour says are the chunks `first` to `last`, or None when it does not give them."""
        return self._ask(f"{PREFIX}/images/{index_sha256}/{first}-{last}", size=size, expected=200)

    def piece(self, sha256: str, *, size: int) -> bytes | None:
        """Return what the neighbour says has this digest, or None when it has no such thing."""
        return self._ask(f"{PREFIX}/pieces/{sha256}", size=size, expected=200)

    def _ask(self, path: str, *, size: int, expected: int) -> bytes | None:
        try:
            return self._runner.run(self._answer(path, size, expected))
        except (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise NeighbourFailedError(
                address=self.address, reason=str(error) or "it is too slow or broke off"
            ) from error

    async def _answer(self, path: str, size: int, expected: int) -> bytes | None:
        async with asyncio.timeout(self._patience_s + size / self._min_bytes_per_s):
            reader, head = await self._head(path)
            status, length, retry_after_s = _parse_head(head)
            if status != expected:
                if length:
                    raise ValueError(f"it answers with status {status} and a body")
                if status != _UNAVAILABLE:
                    return None
                if retry_after_s is None:
                    raise ValueError("it gives nothing now")
                raise NeighbourBusyError(address=self.address, retry_after_s=retry_after_s)
            if length != size:
                raise ValueError(f"it announces {length} bytes where there are {size}")
            return await _read_exactly(reader, size)

    async def _head(self, path: str) -> tuple[asyncio.StreamReader, bytes]:
        """Ask for `path`; return the head of the answer, and what its body is read from."""
        is_kept = self._streams is not None
        try:
            return await self._head_once(path)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            # Neighbours do not keep a connection for long, and between two questions may lie minutes.
            came = error.partial if isinstance(error, asyncio.IncompleteReadError) else b""
            if not is_kept or came:
                raise
            self._forget_connection()
            return await self._head_once(path)

    async def _head_once(self, path: str) -> tuple[asyncio.StreamReader, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port, limit=_MAX_HEAD)
        reader, writer = self._streams
        host = f"[{self._host}]" if ":" in self._host else self._host
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{self._port}\r\n\r\n".encode())
        await writer.drain()
        return reader, await reader.readuntil(b"\r\n\r\n")

    def _forget_connection(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def _read_exactly(reader: asyncio.StreamReader, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await reader.read(min(_PIECE, size - len(data)))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def _parse_head(head: bytes) -> tuple[int, int, float | None]:
    """Return status, length of the body, and after how many seconds to ask again."""
    first, *rest = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    status = _STATUS_LINE.match(first)
    lengths = {int(found[1]) for line in rest if (found := _LENGTH.match(line))}
    if status is None or len(lengths) > 1 or any(line.lower().startswith(b"transfer-encoding") for line in rest):
        raise ValueError("it does not speak as neighbours do")
    told = next((float(found[1]) for line in rest if (found := _RETRY_AFTER.match(line))), None)
    retry_after_s = None if told is None else max(MIN_RETRY_S, min(told, _MAX_RETRY_S))
    return int(status[1]), lengths.pop() if lengths else 0, retry_after_s
