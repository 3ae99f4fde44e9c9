"""The one place that makes queue, store, builders, worker and signer out of settings.

The database is opened above this room and handed in.
"""

import secrets
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from overhaul.builds import database as tables
from overhaul.builds.builder import Builder
from overhaul.builds.database import Connections
from overhaul.builds.debian import DebianBuilder
from overhaul.builds.debian_archives import DebianArchives, DebianExpectation
from overhaul.builds.expecting import ImageBuilderExpectation
from overhaul.builds.imagebuilders import ImageBuilders, UpstreamKeys
from overhaul.builds.leasing import LeaseQueue
from overhaul.builds.openwrt import OpenWrtBuilder
from overhaul.builds.records import BuildRecord, Lifetimes, QueueLimits
from overhaul.builds.results import PublishedRelease
from overhaul.builds.retention import Retention
from overhaul.builds.sandbox import Limits
from overhaul.builds.settings import BuildSettings, UnusableSettingsError
from overhaul.builds.signer_process import SocketSigner
from overhaul.builds.signing import Expectation, KeySigner
from overhaul.builds.store import ArtefactStore
from overhaul.builds.worker import Worker
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings
from overhaul.trust.usign import parse_public_key, parse_secret_key

_MINUTE_S, _HOUR_S, _DAY_S = 60.0, 3600.0, 86_400.0


@dataclass(frozen=True, kw_only=True)
class Works:
    """Settings, and the directory that their relative paths are below."""

    settings: BuildSettings
    base: Path

    @property
    def directory(self) -> Path:
        """Where everything lies."""
        return self.base / self.settings.directory

    @property
    def socket(self) -> Path:
        """Where the signer listens."""
        return (
            self.base / self.settings.signer.socket if self.settings.signer.socket else self.directory / "signer.socket"
        )

    @property
    def lifetimes(self) -> Lifetimes:
        """How long ends of builds are answers."""
        table = self.settings.retention
        return Lifetimes(
            with_defaults_s=table.with_defaults_minutes * _MINUTE_S,
            with_versions_s=table.with_versions_days * _DAY_S,
            other_s=table.other_hours * _HOUR_S,
            failure_s=table.failure_minutes * _MINUTE_S,
        )

    @property
    def retention(self) -> Retention:
        """What is removed when."""
        table = self.settings.retention
        return Retention(store_bytes=table.store_mib << 20, logs_s=table.logs_days * _DAY_S)

    @property
    def limits(self) -> Limits:
        """What one build may use."""
        table = self.settings.limits
        return Limits(
            time_s=table.time_minutes * _MINUTE_S,
            cpu_s=table.cpu_minutes * _MINUTE_S,
            memory_bytes=table.memory_mib << 20,
            processes=table.processes,
            disk_bytes=table.disk_mib << 20,
        )

    def database_url(self) -> str:
        """Return the address of the queue's database."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.settings.queue.database:
            return self.settings.queue.database
        path = (self.directory / "builds.sqlite3").absolute()
        # SQLite itself lets only the owner write to a file that it makes, whatever the umask says; server, signer and
        # worker may run under accounts that share a group.
        path.touch()
        return f"sqlite:///{path}"

    def queue(self, database: Connections) -> LeaseQueue:
        """Return the queue in `database`, whose tables are brought to the newest revision."""
        table = self.settings.queue
        limits = QueueLimits(
            waiting=table.waiting,
            waiting_of_client=table.waiting_of_client,
            lease_s=table.lease_seconds,
            attempts=table.attempts,
        )
        if table.kind == "procrastinate":
            from overhaul.builds import distributed

            distributed.upgrade(database)
            return distributed.ProcrastinateQueue(
                database, address=self.database_url(), limits=limits, lifetimes=self.lifetimes
            )
        tables.upgrade(database)
        return LeaseQueue(database, limits=limits, lifetimes=self.lifetimes)

    def store(self) -> ArtefactStore:
        """Return the artefact store."""
        return ArtefactStore(self.directory / "artefacts")

    def imagebuilders(self, place: str = "imagebuilders") -> ImageBuilders:
        """Return the ImageBuilders, below `place`."""
        table = self.settings.openwrt
        keys = UpstreamKeys(
            usign=tuple(parse_public_key(self._read(name)) for name in table.usign_keys),
            keyrings=tuple(self.base / name for name in table.keyrings),
            fingerprints=table.fingerprints,
        )
        fetching = FetchSettings(allow_http=table.allow_http)
        return ImageBuilders(
            self.directory / place,
            upstream_url=table.upstream_url,
            keys=keys,
            open_fetcher=lambda: open_fetcher(fetching),
            limits=self.limits,
        )

    def archives(self, place: str = "debian") -> DebianArchives:
        """Return the Debian archives, below `place`."""
        return DebianArchives(
            directory=self.directory / place, sources=self.settings.debian.sources, limits=self.limits
        )

    def builders(self) -> tuple[Builder, ...]:
        """Return the builders that are enabled."""
        found: list[Builder] = []
        if self.settings.openwrt.enabled:
            network = self.settings.openwrt.network
            found.append(OpenWrtBuilder(imagebuilders=self.imagebuilders(), limits=self.limits, network=network))
        if self.settings.debian.enabled:
            found.append(DebianBuilder(archives=self.archives(), limits=self.limits))
        return tuple(found)

    def worker(self, database: Connections) -> Worker:
        """Return a worker with a name and a directory of its own, which asks the signer at its socket."""
        name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        return Worker(
            name=name,
            queue=self.queue(database),
            store=self.store(),
            builders=self.builders(),
            signer=SocketSigner(self.socket),
            directory=self.directory / "work" / name,
            lifetimes=self.lifetimes,
            output_limit_bytes=self.limits.disk_bytes,
        )

    def signer(
        self,
        database: Connections,
        *,
        publish: Callable[[BuildRecord, Path], PublishedRelease | None] | None = None,
        record_statement: Callable[[str, bytes], None] | None = None,
    ) -> KeySigner:
        """Return the signer with its key; only its own process calls this."""
        path = self.base / self.settings.signer.key
        if not self.settings.signer.key or not path.is_file():
            raise UnusableSettingsError(path=path, reason="[signer] key names no file with a usign secret key")
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise UnusableSettingsError(path=path, reason="others can read this secret key; run `chmod 600` on it")
        store = self.store()
        expectations: dict[str, Expectation] = {}
        # Directories of its own, so that no worker decides what the signer finds there.
        if self.settings.openwrt.enabled:
            expectations["openwrt"] = ImageBuilderExpectation(self.imagebuilders("signer/imagebuilders"))
        if self.settings.debian.enabled:
            expectations["debian"] = DebianExpectation(self.archives("signer/debian"))
        return KeySigner(
            key=parse_secret_key(path.read_text()),
            queue=self.queue(database),
            expectations=expectations,
            incoming=store.root / "incoming",
            publish=publish,
            record_statement=record_statement,
        )

    def _read(self, name: str) -> str:
        path = self.base / name
        try:
            return path.read_text()
        except (OSError, UnicodeError) as error:
            raise UnusableSettingsError(path=path, reason=str(error)) from error
