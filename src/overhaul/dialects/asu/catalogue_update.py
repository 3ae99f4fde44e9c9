"""The catalogue's updater: asks upstream what changed, checks it, and switches to the new state, in the background.

* Every question carries the validator of the last answer; what did not change costs a few hundred bytes.
* What upstream fails to give, gives damaged, or does not sign, leaves what was known before in use. The failures are
  told in the result and never to a client.
* One version is taken over at once: its files become visible together.
* The newest version of each branch and the snapshots are asked about each time, other releases once a day.

One process updates at a time; the others see its result.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, local

import msgspec

from overhaul.dialects.asu import upstream_documents as documents
from overhaul.dialects.asu.catalogue import System, known_systems
from overhaul.dialects.asu.catalogue_store import CatalogueStore, Fetched, Generation
from overhaul.dialects.asu.distributions import Distribution
from overhaul.dialects.asu.settings import AsuSettings
from overhaul.dialects.asu.upstream_documents import UpstreamDocumentError
from overhaul.errors import OperatorError, OverhaulError
from overhaul.host.locks import LockedError, locked
from overhaul.transfer.fetcher import Fetcher, OversizeError, RefusedStatusError, Request
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings
from overhaul.trust.usign import UsignPublicKey, parse_public_key, verify_usign

_LIMIT_BYTES = 64 * 1024 * 1024
_WORKERS = 4
_SETTLED_S = 86400.0
#: Failures told of one update; the others are counted.
_PROBLEMS = 50

_LOGGER = logging.getLogger(__name__)


class UnsignedDocumentError(UpstreamDocumentError):
    """A file that is not the one that upstream signed."""

    def __init__(self, *, name: str) -> None:
        super().__init__(name=name, reason="it is not the file whose digest upstream signed")


class KeyFileError(OperatorError):
    """A file of upstream's keys that cannot be used."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The key {path} cannot be used: {reason}. Correct `usign_keys` in [asu].")


@dataclass
class UpdateResult:
    """What one update did."""

    #: Files asked about, and those that were new.
    asked: int = 0
    changed: int = 0
    problems: list[str] = field(default_factory=list)
    problems_total: int = 0

    def add_problem(self, error: OverhaulError) -> None:
        """Note a failure."""
        self.problems_total += 1
        if len(self.problems) < _PROBLEMS:
            self.problems.append(str(error))


def load_keys(settings: AsuSettings, *, base: Path) -> tuple[UsignPublicKey, ...]:
    """Return upstream's keys; relative paths begin at `base`.

    Raises:
        KeyFileError: One cannot be used.
    """
    keys = []
    for name in settings.usign_keys:
        path = base / name
        try:
            keys.append(parse_public_key(path.read_text()))
        except (OSError, UnicodeDecodeError, OverhaulError) as error:
            raise KeyFileError(path=path, reason=str(error)) from error
    return tuple(keys)


class CatalogueUpdater:
    """Keeps the catalogue of one directory up to date."""

    def __init__(
        self,
        store: CatalogueStore,
        settings: AsuSettings,
        *,
        seeds: Mapping[str, Distribution] | None = None,
        keys: Sequence[UsignPublicKey] = (),
        open_fetcher: Callable[[], Fetcher] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._settings = settings
        self._seeds = dict(seeds or {})
        self._keys = tuple(keys)
        self._open_fetcher = open_fetcher or self._default_fetcher
        self._clock = clock
        self._threads = local()

    def update(self, *, stop: Event | None = None) -> UpdateResult:
        """Ask upstream about everything that is due.

        Raises:
            LockedError: Another process is at it.
        """
        with locked(self._store.lock_path, purpose="The update of the catalogue"):
            return self._update(stop or Event())

    def run(self, stop: Event) -> None:
        """Update again and again until `stop` is set."""
        while not stop.is_set():
            try:
                result = self.update(stop=stop)
                for problem in result.problems:
                    _LOGGER.warning("%s", problem)
            except LockedError:
                _LOGGER.debug("another process updates the catalogue")
            except (OverhaulError, OSError):
                _LOGGER.exception("the catalogue could not be updated; what was known stays in use")
            stop.wait(self._settings.update_every_minutes * 60)

    def _update(self, stop: Event) -> UpdateResult:
        result = UpdateResult()
        state = _State(self._store, self._store.read(), clock=self._clock)
        listed_url = f"{self._settings.upstream_url}/.versions.json"
        self._keep(state, result, listed_url, documents.parse_versions)
        state.switch()
        listed = documents.parse_versions(state.body(listed_url) or b"{}", name=listed_url)
        systems = known_systems(listed, self._settings, self._seeds)
        with ThreadPoolExecutor(_WORKERS, thread_name_prefix="catalogue") as pool:
            for system in systems:  # their targets first: without them no client sees the version
                url, absent = system.file(".targets.json"), system.is_snapshot
                self._keep(state, result, url, documents.parse_targets, may_be_absent=absent)
            state.switch()
            newest: set[str] = set()
            for system in systems:
                if stop.is_set():
                    return result
                line = f"{system.distribution} {system.version.rpartition('.')[0]}"
                settled = not system.is_snapshot and line in newest
                if not system.is_snapshot:
                    newest.add(line)
                self._update_system(pool, state, result, system, settled=settled)
                state.switch()
        state.drop_unknown({self._settings.upstream_url}, systems)
        state.switch()
        self._store.sweep(state.generation)
        return result

    def _update_system(
        self, pool: ThreadPoolExecutor, state: "_State", result: UpdateResult, system: System, *, settled: bool
    ) -> None:
        body = state.body(system.file(".targets.json"))
        if body is None:
            return
        targets = documents.parse_targets(body, name=system.file(".targets.json"))
        due = not settled or state.is_older(system.file(".targets.json") + "#all", _SETTLED_S)
        if not due:
            return
        done = pool.map(lambda target: self._update_target(state, result, system, target), targets)
        list(done)
        arches = {arch for arch in targets.values() if arch}
        for target in targets:
            known = self._profiles(state, system, target)
            if known is not None and known.arch_packages:
                arches.add(known.arch_packages)
        list(pool.map(lambda arch: self._update_arch(state, result, system, arch), sorted(arches)))
        state.note(system.file(".targets.json") + "#all")

    def _update_target(self, state: "_State", result: UpdateResult, system: System, target: str) -> None:
        url = system.file(f"targets/{target}")
        sums: dict[str, str] | None = None
        if self._keys:
            try:
                sums = self._signed_sums(url)
            except (OverhaulError, UnicodeDecodeError) as error:
                result.add_problem(error if isinstance(error, OverhaulError) else UnsignedDocumentError(name=url))
                return

        def profiles(data: bytes, *, name: str) -> object:
            if sums is not None and hashlib.sha256(data).hexdigest() != sums.get("profiles.json"):
                raise UnsignedDocumentError(name=name)
            return documents.parse_profiles(data, name=name, target=target)

        self._keep(state, result, f"{url}/profiles.json", profiles)
        self._keep_index(state, result, f"{url}/packages")
        known = self._profiles(state, system, target)
        kmods = None if known is None else documents.kmods_path(known)
        if kmods is not None:
            # Not every version has its modules apart; where it has none there is nothing to complain about.
            self._keep_index(state, result, f"{url}/kmods/{kmods}", may_be_absent=True)

    def _update_arch(self, state: "_State", result: UpdateResult, system: System, arch: str) -> None:
        url = system.file(f"packages/{arch}")
        self._keep(state, result, f"{url}/feeds.conf", documents.parse_feeds)
        body = state.body(f"{url}/feeds.conf")
        for feed in documents.parse_feeds(body, name=url) if body else ():
            self._keep_index(state, result, f"{url}/{feed}")

    def _keep_index(self, state: "_State", result: UpdateResult, url: str, *, may_be_absent: bool = False) -> None:
        """Keep an index: as opkg reads it, which tells sizes, or else the short one of apk's releases."""
        try:
            if self._ask(state, result, f"{url}/Packages", documents.parse_opkg_packages):
                return
        except OverhaulError as error:
            result.add_problem(error)
            return
        self._keep(state, result, f"{url}/index.json", documents.parse_index, may_be_absent=may_be_absent)

    def _keep(
        self,
        state: "_State",
        result: UpdateResult,
        url: str,
        parse: Callable[..., object],
        *,
        may_be_absent: bool = False,
    ) -> None:
        """Ask about one file; a failure leaves what is known of it."""
        try:
            found = self._ask(state, result, url, parse)
            if not found and not may_be_absent:
                raise RefusedStatusError(url=url, status=404)
        except OverhaulError as error:
            result.add_problem(error)

    def _ask(self, state: "_State", result: UpdateResult, url: str, parse: Callable[..., object]) -> bool:
        """Ask about one file and take it up when it is new and right; return False when upstream has none."""
        known = state.get(url)
        result.asked += 1
        with self._fetcher().fetch(Request(url=url, etag=known.etag if known and known.etag else None)) as response:
            if response.status == 304 and known is not None:
                state.checked(url, known)
                return True
            if response.status in {404, 410}:
                return False
            if response.status != 200:
                raise RefusedStatusError(url=url, status=response.status)
            data = bytearray()
            for piece in response.body:
                data += piece
                if len(data) > _LIMIT_BYTES:
                    raise OversizeError(url=url, limit_bytes=_LIMIT_BYTES)
            etag = response.headers.get("etag", "")
        body = bytes(data)
        parse(body, name=url)
        result.changed += state.take(url, body, etag=etag)
        return True

    def _signed_sums(self, url: str) -> dict[str, str]:
        sums, signature = (self._get(f"{url}/{name}") for name in ("sha256sums", "sha256sums.sig"))
        verify_usign(sums, signature.decode(), self._keys, name=f"{url}/sha256sums")
        return documents.parse_sums(sums, name=f"{url}/sha256sums")

    def _get(self, url: str) -> bytes:
        with self._fetcher().fetch(Request(url=url)) as response:
            if response.status != 200:
                raise RefusedStatusError(url=url, status=response.status)
            data = bytearray()
            for piece in response.body:
                data += piece
                if len(data) > _LIMIT_BYTES:
                    raise OversizeError(url=url, limit_bytes=_LIMIT_BYTES)
        return bytes(data)

    def _profiles(self, state: "_State", system: System, target: str) -> documents.Profiles | None:
        url = system.file(f"targets/{target}/profiles.json")
        body = state.body(url)
        return None if body is None else documents.parse_profiles(body, name=url, target=target)

    def _fetcher(self) -> Fetcher:
        """Return this thread's fetcher."""
        fetcher: Fetcher | None = getattr(self._threads, "fetcher", None)
        if fetcher is None:
            fetcher = self._threads.fetcher = self._open_fetcher()
        return fetcher

    def _default_fetcher(self) -> Fetcher:
        return open_fetcher(FetchSettings(allow_http=self._settings.allow_http, user_agent="overhaul-catalogue"))


class _State:
    """The state that is being made; several threads add to it, one file each."""

    def __init__(self, store: CatalogueStore, generation: Generation, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._files = dict(generation.files)
        self._clock = clock
        self._last = generation

    @property
    def generation(self) -> Generation:
        return self._last

    def get(self, url: str) -> Fetched | None:
        return self._files.get(url)

    def body(self, url: str) -> bytes | None:
        fetched = self._files.get(url)
        if fetched is None:
            return None
        try:
            return self._store.body(fetched.sha256)
        except OperatorError:
            # Damaged: forget it, so that the next question is not a conditional one.
            self._files.pop(url, None)
            return None

    def checked(self, url: str, known: Fetched) -> None:
        self._files[url] = msgspec.structs.replace(known, checked_at=self._clock())

    def take(self, url: str, body: bytes, *, etag: str) -> bool:
        """Note what a file holds now; return whether that is new."""
        now = self._clock()
        known = self._files.get(url)
        digest = self._store.put(body)
        is_new = known is None or known.sha256 != digest
        if known is not None and is_new:
            self._store.touch(known.sha256)
        changed_at = now if known is None or is_new else known.changed_at
        self._files[url] = Fetched(sha256=digest, etag=etag, changed_at=changed_at, checked_at=now)
        return is_new

    def note(self, url: str) -> None:
        """Remember when something was done."""
        now = self._clock()
        self._files[url] = Fetched(sha256="", changed_at=now, checked_at=now)

    def is_older(self, url: str, age_s: float) -> bool:
        known = self._files.get(url)
        return known is None or known.checked_at < self._clock() - age_s

    def drop_unknown(self, upstreams: Iterable[str], systems: Sequence[System]) -> None:
        """Forget versions that are offered no longer, unless nothing at all is: then upstream is broken."""
        if not systems:
            return
        kept = (*(f"{url}/." for url in upstreams), *(system.file("") for system in systems))
        self._files = {url: fetched for url, fetched in self._files.items() if url.startswith(kept)}

    def switch(self) -> None:
        """Make what was taken up so far count."""
        self._last = Generation(files=dict(self._files), updated_at=self._clock())
        self._store.switch(self._last)
