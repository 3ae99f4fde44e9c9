"""Where python-tuf meets our seams: its updater with our fetcher, our reckoning of time and our errors.

The one private thing of python-tuf used here is `Updater._trusted_set`: its reference time is fixed from the
system clock when it is made, and only by replacing it can a time floor count. It must be replaced after the
roots are loaded, since they decide which witnesses of the floor are still trusted, and before the timestamp is,
since that is where the first expiry is checked. `TimedUpdater` does that and gives read access; nobody else
touches it. `tests/unit/trust/test_updater.py` fails when a new python-tuf changes this.
"""

from collections.abc import Callable, Generator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api import exceptions
from tuf.api.metadata import Root, Signed
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from overhaul.errors import OverhaulError, TrustError
from overhaul.transfer.fetcher import Fetcher, RefusedStatusError, Request
from overhaul.trust import roles
from overhaul.trust._gathering import TIMESTAMP_LIMIT_BYTES, gathered
from overhaul.trust._store import role_of_file
from overhaul.trust.refusals import (
    BadSignatureError,
    MalformedMetadataError,
    MixAndMatchError,
    RollbackError,
    StaleRepositoryError,
)

#: Largest files accepted where no signed size says better.
CONFIG = UpdaterConfig(
    max_root_rotations=256,
    max_delegations=8,
    root_max_length=256 * 1024,
    timestamp_max_length=TIMESTAMP_LIMIT_BYTES,
    snapshot_max_length=2 * 1024 * 1024,
    targets_max_length=16 * 1024 * 1024,
)

_NOT_FOUND = 404

# What an exception means depends on the role it was raised for (None: any). The digest of a snapshot is checked
# before its content, so what goes back or is missing there is a role that the former snapshot listed. Members of
# a family stand before the family.
_MEANINGS: tuple[tuple[type[Exception], frozenset[str] | None, Callable[..., OverhaulError]], ...] = (
    (exceptions.UnsignedMetadataError, None, BadSignatureError),
    (exceptions.LengthOrHashMismatchError, None, MixAndMatchError),
    (DeserializationError, None, MalformedMetadataError),
    (exceptions.BadVersionNumberError, frozenset({roles.ROOT, roles.TIMESTAMP, roles.SNAPSHOT}), RollbackError),
    (exceptions.BadVersionNumberError, None, MixAndMatchError),
    (exceptions.RepositoryError, frozenset({roles.SNAPSHOT}), RollbackError),
    (exceptions.RepositoryError, None, MalformedMetadataError),
)


class SeamFetcher(FetcherInterface):
    """python-tuf's fetching interface on top of ours.

    `prepared` holds answers, by file name, that need no request. With `local_only` no later root is looked for.
    """

    def __init__(self, fetcher: Fetcher, *, prepared: dict[str, bytes] | None = None, local_only: bool = False) -> None:
        self._fetcher = fetcher
        self._prepared = prepared or {}
        self._local_only = local_only
        #: The role asked for last; when python-tuf raises, this is the one it speaks of.
        self.role = roles.ROOT
        #: Entity tags by file name.
        self.etags: dict[str, str | None] = {}

    def _fetch(self, url: str) -> Generator[bytes]:
        name = url.rpartition("/")[2]
        self.role = role_of_file(name)
        if name in self._prepared:
            yield self._prepared[name]
            return
        if self._local_only and self.role == roles.ROOT:
            raise exceptions.DownloadHTTPError(f"{url} was not asked for", _NOT_FOUND)
        with self._fetcher.fetch(Request(url=url)) as response:
            if response.status in {403, _NOT_FOUND} and self.role == roles.ROOT:
                raise exceptions.DownloadHTTPError(f"{url}: {response.status}", response.status)
            if response.status != 200:
                raise RefusedStatusError.of(response)
            self.etags[name] = response.headers.get("etag")
            yield from response.body

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """Return the bytes of `url` without the temporary file of the inherited method."""
        # Closed here and not by the collector, so that a refused answer gives its connection back at once.
        with closing(self._fetch(url)) as pieces:
            return gathered(pieces, url=url, limit_bytes=max_length)


class TimedUpdater(Updater):
    """An updater that judges expiry by `reckon`, asked once the newest root is known."""

    def __init__(
        self,
        *,
        directory: Path,
        base_url: str,
        bootstrap: bytes,
        fetcher: SeamFetcher,
        reckon: Callable[[Root], datetime],
    ) -> None:
        super().__init__(
            metadata_dir=str(directory),
            metadata_base_url=f"{base_url}/metadata/",
            fetcher=fetcher,
            config=CONFIG,
            bootstrap=bootstrap,
        )
        self._reckon = reckon

    def _load_root(self) -> None:
        super()._load_root()
        self._trusted_set.reference_time = self._reckon(self._trusted_set.root)

    @property
    def reference(self) -> datetime:
        """The time expiry is judged by."""
        return self._trusted_set.reference_time

    @property
    def root(self) -> Root:
        """The newest trusted root."""
        return self._trusted_set.root

    def signed(self, role: str) -> Signed | None:
        """Return the verified metadata of `role`, or None while there is none."""
        return self._trusted_set.get(role)

    def keyids_of(self, role: str) -> tuple[str, ...] | None:
        """Return the keys that the verified delegations name for the delegated `role`; None for an unknown one."""
        targets = self._trusted_set.targets
        delegated = (targets.delegations.roles or {}) if targets.delegations is not None else {}
        return tuple(delegated[role].keyids) if role in delegated else None

    def judge(self, role: str, moment: datetime) -> None:
        """Judge expiry by `moment` from now on; raise `StaleRepositoryError` when what is loaded ended by then."""
        self._trusted_set.reference_time = moment
        for name in dict.fromkeys((*roles.TOP_LEVEL, role)):
            signed = self.signed(name)
            if signed is not None and signed.is_expired(moment):
                raise StaleRepositoryError(role=name, expires=signed.expires, reference=moment)


def refusal(error: Exception, *, fetcher: SeamFetcher, updater: TimedUpdater) -> OverhaulError:
    """Return what `error`, raised by `updater` while working with `fetcher`, means to us."""
    if isinstance(error, OverhaulError):
        return error
    if isinstance(error, exceptions.ExpiredMetadataError):
        return _stale(fetcher.role, updater)
    for raised, asked_for, member in _MEANINGS:
        if isinstance(error, raised) and fetcher.role in (asked_for or {fetcher.role}):
            return member(role=fetcher.role, reason=str(error.__cause__ or error))
    return TrustError(f"The repository's {fetcher.role} metadata was refused: {error}.")


def _stale(role: str, updater: TimedUpdater) -> StaleRepositoryError:
    """Name the role that ended: one already loaded, or else the one that was just looked at."""
    for name in (roles.ROOT, roles.TIMESTAMP, roles.SNAPSHOT):
        signed: Any = updater.signed(name)
        if signed is not None and signed.is_expired(updater.reference):
            return StaleRepositoryError(role=name, expires=signed.expires, reference=updater.reference)
    return StaleRepositoryError(role=role, expires=None, reference=updater.reference)
