"""The query protocol over HTTP: a bare ASGI application, for a server of its own and for `overhaul serve`.

What is served is looked at again every half second, whether anybody asks or not, so a new image is offered within
two seconds, without a restart. While a pool is read again, and when it cannot be read, the one before is served.
"""

import hashlib
import ipaddress
import logging
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from overhaul.dialects.atomupd.catalogue import Catalogue, make_catalogue
from overhaul.dialects.atomupd.pool import PoolScanner
from overhaul.dialects.atomupd.query import Answers, QueryAnswer
from overhaul.dialects.atomupd.requirements import Requirement
from overhaul.dialects.atomupd.server_configuration import ServerConfiguration, read_server_configuration
from overhaul.errors import OverhaulError

# The interface of ASGI, which is untyped by its nature.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LOGGER = logging.getLogger(__name__)
_ALLOW = b"GET, HEAD, OPTIONS"
_NOT_FOUND = QueryAnswer(404, b"text/plain; charset=utf-8", b"Not Found")
_NOT_ALLOWED = QueryAnswer(405, b"text/plain; charset=utf-8", b"Method Not Allowed")
_HTTPS_ONLY = QueryAnswer(
    403, b"text/plain; charset=utf-8", b"Ask over https; plain http is answered only with AllowHttp = yes"
)
_UNAVAILABLE = QueryAnswer(503, b"text/plain; charset=utf-8", b"The image pool is being read for the first time")
#: Addresses are cut to the network that one site has.
_NETWORK_BITS = {4: 24, 6: 56}


@dataclass(frozen=True, kw_only=True)
class ServedPool:
    """What is served until the next change."""

    catalogue: Catalogue
    requirements: tuple[Requirement, ...] = ()


class PoolSource(Protocol):
    """Where a server gets its pool from; asked by one thread at a time."""

    def has_changed(self) -> bool:
        """Whether loading again is worth while; cheap."""

    def load(self) -> ServedPool:
        """Return the pool as it is now.

        Raises:
            OverhaulError: It cannot be served; the one before goes on being served.
        """


class DirectorySource:
    """An image pool in a directory."""

    def __init__(self, configuration: ServerConfiguration) -> None:
        self._configuration = configuration
        self._scanner = PoolScanner(configuration.pool, branches=configuration.support.has_branches)

    def has_changed(self) -> bool:
        """Whether a directory or manifest of the pool has."""
        return self._scanner.has_changed()

    def load(self) -> ServedPool:
        """Walk the pool."""
        configuration = self._configuration
        catalogue = make_catalogue(self._scanner.scan(), configuration.support)
        return ServedPool(catalogue=catalogue, requirements=configuration.requirements)


class QueryServer:
    """Answers queries at its prefixes; an ASGI application.

    `start` reads the pool and begins to watch it, `stop` ends that; both are called by who runs the application, or
    by the engine through ASGI's lifespan. Until the pool was read, queries are answered with 503.
    """

    def __init__(
        self,
        source: PoolSource,
        *,
        prefixes: tuple[str, ...] = ("/", "/updates"),
        lists: bool = False,
        rollout_by_address: bool = False,
        look_every_s: float = 0.5,
        allow_http: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        #: The exact paths that are answered, with or without a slash at the end.
        self.prefixes = tuple(dict.fromkeys(prefix.rstrip("/") for prefix in prefixes))
        self._paths = frozenset(path for prefix in self.prefixes for path in (prefix, f"{prefix}/"))
        self._list_paths = frozenset(f"{prefix}/list" for prefix in self.prefixes) if lists else frozenset()
        self._source = source
        self._rollout_by_address = rollout_by_address
        self._look_every_s = look_every_s
        self._allow_http = allow_http
        self._clock = clock
        self._answers: Answers | None = None
        self._reported: tuple[str, ...] = ()
        self._loading = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def catalogue(self) -> Catalogue | None:
        """What is served; None before the first pool was read."""
        return self._answers.catalogue if self._answers is not None else None

    def answers_path(self, path: str) -> bool:
        """Whether `path` is one of those this server answers."""
        return path in self._paths or path in self._list_paths

    def start(self) -> None:
        """Read the pool, and watch it from now on; nothing happens when it is watched already.

        Raises:
            OverhaulError: It cannot be served, and is not watched; this may be called again.
        """
        with self._loading:
            if self._thread is not None:
                return
            self._load()
            self._ended.clear()
            self._thread = threading.Thread(target=self._watch, name="atomupd-pool", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._ended.set()
        thread = self._thread
        if thread is not None:
            thread.join()
            self._thread = None

    def reload(self) -> None:
        """Read the pool again now; when it cannot be served, say so and keep the one before."""
        with self._loading:
            try:
                self._load()
            except (OverhaulError, OSError) as error:
                self._report((f"the pool cannot be read again, and the one before is served: {error}",))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        answer = self._answer(scope) if self._allow_http or not is_plain(scope) else _HTTPS_ONLY
        headers = [
            (b"content-type", answer.content_type),
            (b"content-length", str(len(answer.body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        if answer is _NOT_ALLOWED or scope["method"] == "OPTIONS":
            headers.append((b"allow", _ALLOW))
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _answer(self, scope: Scope) -> QueryAnswer:
        path = scope["path"]
        root_path = scope.get("root_path", "")
        if root_path and path.startswith(root_path):
            path = path[len(root_path) :]
        listed = path in self._list_paths
        if not listed and path not in self._paths:
            return _NOT_FOUND
        method = scope["method"]
        if method == "OPTIONS":
            return QueryAnswer(200, b"text/html; charset=utf-8", b"")
        if method not in ("GET", "HEAD"):
            return _NOT_ALLOWED
        answers = self._answers
        if answers is None:
            return _UNAVAILABLE
        query = scope["query_string"]
        if listed:
            return answers.listing(query)
        network = ""
        if self._rollout_by_address and answers.asks_for_places:
            network = network_of(scope.get("client"))
        return answers.answer(query, network=network)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    self.start()
                except OverhaulError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    def _watch(self) -> None:
        wait_s = self._look_every_s
        while not self._ended.wait(wait_s):
            begun = time.monotonic()
            # A look into what somebody else is just loading would end this thread, and with it all watching.
            with self._loading:
                try:
                    changed = self._source.has_changed()
                except OverhaulError:
                    changed = True
            if changed:
                self.reload()
            # However large the pool, looking at it takes a small part of a processor.
            wait_s = max(self._look_every_s, min(20 * (time.monotonic() - begun), 1.5))

    def _load(self) -> None:
        served = self._source.load()
        self._report(served.catalogue.problems + served.catalogue.warnings)
        # One assignment: a request sees the old pool or the new one.
        self._answers = Answers(served.catalogue, requirements=served.requirements, clock=self._clock)

    def _report(self, sentences: tuple[str, ...]) -> None:
        for sentence in sentences:
            if sentence not in self._reported:
                _LOGGER.warning("%s", sentence)
        self._reported = sentences


def create_query_app(configuration: ServerConfiguration) -> QueryServer:
    """Return the application that serves the pool of one configuration."""
    return QueryServer(
        DirectorySource(configuration),
        prefixes=configuration.prefixes,
        lists=configuration.lists,
        rollout_by_address=configuration.rollout_by_address,
        look_every_s=configuration.look_every_s,
        allow_http=configuration.allow_http,
    )


def query_app_of(path: Path) -> QueryServer:
    """Return the application of the configuration file at `path`.

    Raises:
        UnusableConfigurationError: The file cannot be used.
    """
    return create_query_app(read_server_configuration(path))


def is_plain(scope: Scope) -> bool:
    """Whether a request crossed a network in the clear.

    What comes from this machine itself did not: it is a proxy that speaks https, or a person. The engine has already
    put in what a proxy on this machine says about its own client (`X-Forwarded-For`, `X-Forwarded-Proto`).
    """
    if scope.get("scheme") == "https":
        return False
    client = scope.get("client")
    return client is not None and not is_local(client[0])


def is_local(host: str) -> bool:
    """Whether `host` is an address of this machine that no other can reach."""
    if host.startswith("127."):  # nearly all requests, without looking closer
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def network_of(client: tuple[str, int] | None) -> str:
    """Return what stands in for a device's place in rollouts: a digest of the network it asks from, or nothing."""
    if client is None:
        return ""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return ""
    network = ipaddress.ip_network((address, _NETWORK_BITS[address.version]), strict=False)
    return hashlib.sha256(f"overhaul atomupd network {network}".encode()).hexdigest()[:16]
