"""`metadata/timestamp.json` in memory: the answer to a poll is prepared once for each change of the file.

A local file is asked for its version on every poll (one `stat`); a bucket is asked at most every few seconds,
and while that question is under way everybody else gets the bytes known so far.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from overhaul.server.caching import POINTER_PATH, REVALIDATE
from overhaul.server.tree import PublicTree

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The pointer file, ready to be sent."""

    version: str
    body: bytes
    etag: str
    full_headers: Headers = field(repr=False)
    unchanged_headers: Headers = field(repr=False)


class Pointer:
    """Gives the current pointer file."""

    def __init__(self, tree: PublicTree, *, ask_every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._tree = tree
        self._ask_every_s = 0.0 if tree.answers_at_once else ask_every_s
        self._clock = clock
        self._asked_at = float("-inf")
        self._asking = anyio.Lock()
        self._prepared: Prepared | None = None

    async def current(self) -> Prepared | None:
        """Return the pointer as it is now, or None when the repository has none yet."""
        if self._tree.answers_at_once:
            version = self._tree.version(POINTER_PATH)
            if self._prepared is None or version != self._prepared.version:
                self._prepared = None if version is None else self._load(version)
            return self._prepared
        if self._clock() - self._asked_at < self._ask_every_s:
            return self._prepared
        if self._asking.locked() and self._prepared is not None:
            return self._prepared
        async with self._asking:
            if self._clock() - self._asked_at >= self._ask_every_s:
                self._prepared = await anyio.to_thread.run_sync(self._ask)
                self._asked_at = self._clock()
        return self._prepared

    def _ask(self) -> Prepared | None:
        version = self._tree.version(POINTER_PATH)
        if version is None or (self._prepared is not None and version == self._prepared.version):
            return None if version is None else self._prepared
        return self._load(version)

    def _load(self, version: str) -> Prepared | None:
        body = self._tree.read_all(POINTER_PATH)
        if body is None:
            return None
        etag = f'"{hashlib.sha256(body).hexdigest()}"'
        unchanged = [(b"etag", etag.encode()), (b"cache-control", REVALIDATE.encode())]
        return Prepared(
            version=version,
            body=body,
            etag=etag,
            unchanged_headers=unchanged,
            full_headers=[
                *unchanged,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"accept-ranges", b"bytes"),
                (b"x-content-type-options", b"nosniff"),
            ],
        )
