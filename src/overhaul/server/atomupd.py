"""atomupd queries beside the repository: products by their signed policies, and image pools of others.

    /atomupd/PRODUCT/updates     a product of this repository, each device judged for itself
    Prefixes of a pool's file    an existing pool; `/` only with a query, because the status page is there

A pool that cannot be read does not keep the rest of the server from starting: its queries get 503, the log says why,
and it is tried again.
"""

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio.to_thread

from overhaul.dialects.atomupd.own_queries import PolicySource
from overhaul.dialects.atomupd.serve import QueryServer, query_app_of
from overhaul.errors import OperatorError, OverhaulError
from overhaul.policy.document import Policy
from overhaul.server.caching import POINTER_PATH
from overhaul.server.catalogue import Catalogue, read_catalogue
from overhaul.server.settings import AtomupdProduct, ServerSettings
from overhaul.server.tree import LocalTree, PublicTree

_TRY_AGAIN_AFTER_S = 2.0
_STATUS_PAGE = frozenset({"", "/"})

_LOGGER = logging.getLogger(__name__)


class UnusablePoolError(OperatorError):
    """A pool's file cannot be used."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{reason} It stands in `atomupd_pools` of the server; mend it or take it out.")


class SharedPrefixError(OperatorError):
    """Two pools want to answer at one path."""

    def __init__(self, *, prefix: str, path: Path) -> None:
        self.prefix = prefix
        self.path = path
        super().__init__(
            f"{path} and another pool of the server both answer at {prefix or '/'!r}; give each its own `Prefixes` in "
            "[Overhaul]."
        )


class SignedPolicies:
    """The policies that are published now; read again only when the pointer has moved, and cheap to ask."""

    def __init__(self, tree: PublicTree) -> None:
        self._tree = tree
        self._reading = threading.Lock()
        self._version: str | None = None
        self._catalogue: Catalogue | None = None

    def of(self, product: AtomupdProduct) -> Sequence[Policy]:
        """Return the policies of a product, the most stable channel first.

        Raises:
            UnreadableMetadataError: What is published is damaged.
        """
        with self._reading:
            version = self._tree.version(POINTER_PATH)
            if version != self._version or self._catalogue is None:
                self._read()
                self._version = version
            policies = () if self._catalogue is None else self._catalogue.policies
        places = {channel: place for place, channel in enumerate(product.channels)}
        own = [policy for policy in policies if policy.product == product.name]
        return sorted(own, key=lambda policy: (places.get(policy.channel, len(places)), policy.channel))

    def _read(self) -> None:
        pointer = self._tree.read_all(POINTER_PATH)
        if pointer is None:
            self._catalogue = None
        else:
            self._catalogue = read_catalogue(self._tree, pointer=pointer, pointer_etag="", before=self._catalogue)


class QueryServers:
    """Everything that answers atomupd queries in this process."""

    def __init__(self, servers: Sequence[QueryServer]) -> None:
        self._servers = tuple(servers)

    def find(self, path: str, query: bytes) -> QueryServer | None:
        """Return who answers at `path`, or None when nobody does."""
        for server in self._servers:
            if server.answers_path(path) and (query or path not in _STATUS_PAGE):
                return server
        return None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read the pools and follow them."""
        missing = [server for server in self._servers if not await anyio.to_thread.run_sync(_started, server)]
        trying = asyncio.create_task(_try_again(missing))
        try:
            yield
        finally:
            trying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await trying
            for server in self._servers:
                await anyio.to_thread.run_sync(server.stop)


def open_query_servers(settings: ServerSettings, tree: PublicTree) -> QueryServers:
    """Return what answers queries as `settings` say.

    Raises:
        OverhaulError: A pool's file cannot be used, or two pools want one path.
    """
    policies = SignedPolicies(tree)
    servers = []
    # Bundles lie in a directory; a repository in a bucket has no product in this dialect.
    if isinstance(tree, LocalTree):
        for product in settings.atomupd_products:
            directory = tree.root / "atomupd" / product.name
            servers.append(_own_server(product, directory, functools.partial(policies.of, product)))
    taken = {prefix for server in servers for prefix in server.prefixes}
    for path in settings.atomupd_pools:
        try:
            server = query_app_of(path)
        except OverhaulError as error:
            # The file's own program has exit codes of its own; here it is one more setting.
            raise UnusablePoolError(path=path, reason=str(error)) from error
        for prefix in server.prefixes:
            if prefix in taken:
                raise SharedPrefixError(prefix=prefix, path=path)
        taken.update(server.prefixes)
        servers.append(server)
    return QueryServers(servers)


def _own_server(product: AtomupdProduct, directory: Path, policies: Callable[[], Sequence[Policy]]) -> QueryServer:
    source = PolicySource(product.settings, product=product.name, directory=directory, policies=policies)
    return QueryServer(source, prefixes=(f"/atomupd/{product.name}/updates",))


def _started(server: QueryServer) -> bool:
    try:
        server.start()
    except (OverhaulError, OSError) as error:
        _LOGGER.warning("atomupd queries at %s cannot be answered yet: %s", server.prefixes[0] or "/", error)
        return False
    return True


async def _try_again(servers: list[QueryServer]) -> None:
    while servers:
        await asyncio.sleep(_TRY_AGAIN_AFTER_S)
        servers = [server for server in servers if not await anyio.to_thread.run_sync(_started, server)]
