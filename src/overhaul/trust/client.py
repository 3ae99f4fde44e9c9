"""The device's view of a repository: nothing comes out of here that did not verify.

A poll is one conditional request for the timestamp. A refresh follows the full TUF client workflow through
python-tuf, and its result is kept only when the whole chain verified (see `_store`), so a refused repository
leaves the device trusting what it trusted before. Expiry is judged by the later of the clock and the time floor
(see `timefloor`): a clock that stands in the past lets nothing expired in, and one far ahead refuses everything
until it is set right, but is never learned from.

python-tuf is imported only when there is something to verify: an unchanged poll stays small.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from overhaul.errors import DeviceError
from overhaul.transfer.fetcher import Fetcher, RefusedStatusError, Request
from overhaul.trust import roles
from overhaul.trust._gathering import TIMESTAMP_LIMIT_BYTES, gathered
from overhaul.trust._store import TrustStore
from overhaul.trust.layout import TIMESTAMP_KEY, target_key
from overhaul.trust.refusals import (
    BuildsRefusedError,
    MalformedMetadataError,
    StaleRepositoryError,
    UnknownTargetError,
    UnusableRootError,
    WrongTargetError,
)
from overhaul.trust.timefloor import TimeFloor

if TYPE_CHECKING:
    from tuf.api.metadata import Root, TargetFile

    from overhaul.trust._updater import SeamFetcher, TimedUpdater

_TIMESTAMP_FILE = "timestamp.json"
#: python-tuf does not check the types of all that it reads, so these surface where a value is used.
_WRONG_TYPES = (TypeError, ValueError, AttributeError, LookupError, RecursionError)


class TrustStateError(DeviceError):
    """The directory with what the device trusts cannot be used."""

    def __init__(self, *, directory: Path, reason: str) -> None:
        self.directory = directory
        self.reason = reason
        super().__init__(
            f"The trust state in {directory} cannot be read or written ({reason}); "
            "check that it exists on a writable medium with free space."
        )


class TrustedRepository:
    """A repository, seen through what this device trusts. One process at a time may use a state directory."""

    def __init__(
        self,
        *,
        state_directory: Path,
        base_url: str,
        bootstrap_root: bytes,
        fetcher: Fetcher,
        clock: Callable[[], datetime],
        accept_builds: bool = False,
    ) -> None:
        self._store = TrustStore(state_directory)
        self._base_url = base_url.rstrip("/")
        self._bootstrap_root = bootstrap_root
        self._fetcher = fetcher
        self._clock = clock
        self._accept_builds = accept_builds
        self._updater: TimedUpdater | None = None
        self._seam: SeamFetcher | None = None
        #: A timestamp that a poll brought and its entity tag; a refresh need not ask for it again.
        self._polled: tuple[bytes, str | None] | None = None

    @property
    def time_floor(self) -> datetime:
        """The earliest time it can be, as learned from verified metadata."""
        return self._store.floor().moment

    def poll(self) -> bool:
        """Ask once whether there is something new; True means that `refresh` should be called.

        Raises:
            StaleRepositoryError: Nothing is new, but what is trusted has expired: an unchanged answer never
                extends a signature.
            NetworkError: The repository could not be asked.
        """
        chain = self._store.chain()
        data, etag = self._ask_for_timestamp(self._store.etag() if chain is not None else None)
        if chain is None or (data is not None and data != self._store.timestamp()):
            self._polled = None if data is None else (data, etag)
            return True
        self._require_fresh(chain, chain)
        if data is not None:
            self._store.keep_etag(etag)
        return False

    def refresh(self) -> None:
        """Bring the trusted metadata up to date.

        Raises:
            TrustError: The repository was refused, by the member that says why; nothing but verified new
                roots is kept of it.
            NetworkError: The repository could not be read.
            TrustStateError: The state directory cannot be used.
        """
        from overhaul.trust._updater import SeamFetcher

        polled, self._polled = self._polled, None
        prepared = {} if polled is None else {_TIMESTAMP_FILE: polled[0]}
        seam = SeamFetcher(self._fetcher, prepared=prepared)
        self._open(seam)
        self._store.keep_etag(seam.etags.get(_TIMESTAMP_FILE) if polled is None else polled[1])

    def read_target(self, path: str) -> bytes:
        """Return the verified bytes of the target `path` of the repository as last refreshed.

        What was read before and is still signed is not fetched again.

        Raises:
            UnknownTargetError: The role that owns the path does not list it.
            WrongTargetError: The bytes are not those that were signed.
            BuildsRefusedError: It is an image made on demand and the device did not opt in.
            TrustError: Metadata on the way to it was refused, by the member that says why.
            NetworkError: It could not be fetched.
        """
        role = roles.role_of_path(path)
        if role == roles.BUILDS and not self._accept_builds:
            raise BuildsRefusedError(path=path)
        seam, updater = self._opened(role)
        with self._work(seam, updater):
            target = updater.get_targetinfo(path)
            if target is None:
                raise UnknownTargetError(path=path, role=role)
            data = self._target_bytes(seam, path, target)
            self._store.take_all()
        self._store.keep_target(path, data)
        return data

    def signers_of(self, path: str) -> tuple[str, ...]:
        """Return the ids of the keys whose signature counts for the target `path`.

        Raises:
            UnknownTargetError: The repository has no role for it.
            TrustError: The repository must be refreshed first and was refused.
        """
        role = roles.role_of_path(path)
        _seam, updater = self._opened(role)
        keyids = updater.keyids_of(role)
        if keyids is None:
            raise UnknownTargetError(path=path, role=role)
        return keyids

    def _ask_for_timestamp(self, known_etag: str | None) -> tuple[bytes | None, str | None]:
        """Return the published timestamp and its entity tag; None for bytes that are those of `known_etag`."""
        url = f"{self._base_url}/{TIMESTAMP_KEY}"
        with self._fetcher.fetch(Request(url=url, etag=known_etag)) as response:
            if response.status == 304 and known_etag is not None:
                return None, known_etag
            if response.status != 200:
                raise RefusedStatusError.of(response)
            data = gathered(response.body, url=url, limit_bytes=TIMESTAMP_LIMIT_BYTES)
            return data, response.headers.get("etag")

    def _target_bytes(self, seam: "SeamFetcher", path: str, target: "TargetFile") -> bytes:
        stored = self._store.target(path)
        if stored is not None and _mismatch(target, stored) is None:
            return stored
        digest = target.hashes.get("sha256")
        if digest is None:
            raise WrongTargetError(path=path, reason="no SHA-256 is signed for it")
        data = seam.download_bytes(f"{self._base_url}/{quote(target_key(path, digest))}", target.length)
        if (reason := _mismatch(target, data)) is not None:
            raise WrongTargetError(path=path, reason=reason)
        return data

    def _require_fresh(self, chain: Mapping[str, datetime], needed: Iterable[str]) -> None:
        reference = self._store.floor().reference(self._clock())
        for role in needed:
            if role in chain and chain[role] <= reference:
                raise StaleRepositoryError(role=role, expires=chain[role], reference=reference)

    def _opened(self, role: str) -> "tuple[SeamFetcher, TimedUpdater]":
        """Return the updater on the stored chain, made without a request when the chain is whole and unexpired."""
        if self._updater is not None and self._seam is not None:
            self._updater.judge(role, self._store.floor().reference(self._clock()))
            return self._seam, self._updater
        chain, timestamp = self._store.chain(), self._store.timestamp()
        if chain is None or timestamp is None:
            self.refresh()
        else:
            from overhaul.trust._updater import SeamFetcher

            self._require_fresh(chain, roles.TOP_LEVEL)
            self._open(SeamFetcher(self._fetcher, prepared={_TIMESTAMP_FILE: timestamp}, local_only=True))
        return self._opened(role)

    def _open(self, seam: "SeamFetcher") -> None:
        from tuf.api.exceptions import RepositoryError

        from overhaul.trust._updater import TimedUpdater

        self._updater = self._seam = None
        with self._working_copy() as directory:
            try:
                updater = TimedUpdater(
                    directory=directory,
                    base_url=self._base_url,
                    bootstrap=self._bootstrap_root,
                    fetcher=seam,
                    reckon=self._reckon,
                )
            except (RepositoryError, *_WRONG_TYPES) as error:
                raise UnusableRootError(reason=str(error.__cause__ or error)) from error
            with _refusing(seam, updater):
                try:
                    updater.refresh()
                finally:
                    self._store.take_roots()
            self._store.take_all()
            self._store.keep_floor(self._learned(updater))
        self._updater, self._seam = updater, seam

    @contextmanager
    def _work(self, seam: "SeamFetcher", updater: "TimedUpdater") -> Iterator[None]:
        with self._working_copy(), _refusing(seam, updater):
            yield

    @contextmanager
    def _working_copy(self) -> Iterator[Path]:
        try:
            with self._store.working_copy() as directory:
                yield directory
        except OSError as error:
            raise TrustStateError(directory=self._store.directory, reason=str(error)) from error

    def _reckon(self, root: "Root") -> datetime:
        return self._floor_under(root).reference(self._clock())

    def _floor_under(self, root: "Root") -> TimeFloor:
        known = self._store.floor().trusting({name: role.keyids for name, role in root.roles.items()})
        return known.learn(
            roles.ROOT,
            claim=root.unrecognized_fields.get(roles.SIGNED_AT),
            expires=root.expires,
            keyids=root.roles[roles.ROOT].keyids,
        )

    def _learned(self, updater: "TimedUpdater") -> TimeFloor:
        floor = self._floor_under(updater.root)
        for role in (roles.TARGETS, roles.SNAPSHOT, roles.TIMESTAMP):
            signed = updater.signed(role)
            if signed is not None:
                claim = signed.unrecognized_fields.get(roles.SIGNED_AT)
                keyids = updater.root.roles[role].keyids
                floor = floor.learn(role, claim=claim, expires=signed.expires, keyids=keyids)
        return floor


@contextmanager
def _refusing(seam: "SeamFetcher", updater: "TimedUpdater") -> Iterator[None]:
    """Turn what python-tuf raises into our errors."""
    from tuf.api.exceptions import DownloadError, RepositoryError

    from overhaul.trust._updater import refusal

    try:
        yield
    except (RepositoryError, DownloadError) as error:
        raise refusal(error, fetcher=seam, updater=updater) from error
    except _WRONG_TYPES as error:
        raise MalformedMetadataError(role=seam.role, reason=f"{type(error).__name__}: {error}") from error


def _mismatch(target: "TargetFile", data: bytes) -> str | None:
    """Return why `data` is not `target`, or None when it is."""
    from tuf.api.exceptions import LengthOrHashMismatchError

    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        return str(error)
    return None
