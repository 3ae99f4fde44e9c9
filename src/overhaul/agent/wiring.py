"""The one place where the agent's parts are put together, from a configuration.

What is heavy is imported when it is opened: status, history and confirm load neither TUF nor an HTTP engine.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from overhaul.agent.mirroring import MirroredRepository, MirroredShipped, Mirrors
from overhaul.agent.ports import Cost, Device, Repository, Shipped, Work
from overhaul.agent.reporting import HttpReporter, KeptReports, NoReports
from overhaul.errors import DeviceError
from overhaul.host.memory import peak_memory_bytes
from overhaul.host.metered import ask_network_manager
from overhaul.install.facts import memory_bytes
from overhaul.install.opening import open_boot
from overhaul.install.probe import run_probe
from overhaul.install.reboot import LogindRestarter, NeverRestarts, Restarter
from overhaul.install.settings import DeviceSettings
from overhaul.install.slots import Slot
from overhaul.install.state import StateFile
from overhaul.progress import Progress
from overhaul.release.record import DeltaRef, Release
from overhaul.transfer.kit import KIT_URL, KitFetcher

if TYPE_CHECKING:
    from overhaul.content.neighbours import Neighbourhood
    from overhaul.content.plan import Limits
    from overhaul.content.preparing import Materials
    from overhaul.transfer.counting import CountingFetcher
    from overhaul.transfer.fetcher import Fetcher
    from overhaul.transfer.kit import Kit
    from overhaul.transfer.mirrors import MirrorFetcher
    from overhaul.transfer.settings import FetchSettings


class TrustAnchorError(DeviceError):
    """The first root metadata is not there."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(
            f"The trust anchor {path} cannot be read ({reason}); copy the repository's first root metadata there, "
            "over a way you trust."
        )


def utc_now() -> datetime:
    """Return what the system's clock says."""
    return datetime.now(UTC)


def open_device(
    settings: DeviceSettings,
    *,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], None] = time.sleep,
    fetching: "FetchSettings | None" = None,
    kit: "Kit | None" = None,
) -> Device:
    """Return the device that `settings` describe.

    `fetching` holds what the configuration does not say about fetching; where it says something, that counts.
    A `kit` takes the place of the network.
    """
    state_directory = Path(settings.state_directory)
    network = _Network(settings, sleep=sleep, fetching=fetching, kit=kit)
    return Device(
        settings=settings,
        slots={name: Slot(name=name, path=path) for name, path in settings.slot_paths.items()},
        boot=open_boot(settings),
        states=StateFile(state_directory),
        open_repository=lambda: _open_repository(settings, network, clock=clock),
        open_content=lambda: _SlotContent(settings, network),
        open_shipped=lambda release: _open_shipped(release, settings, network),
        traffic=network,
        restarter=_open_restarter(settings, clock=clock, sleep=sleep),
        reporter=_open_reporter(settings),
        run=run_probe,
        clock=clock,
        monotonic=time.monotonic,
        sleep=sleep,
        peak_memory=peak_memory_bytes,
        free_memory=lambda: memory_bytes(Path(settings.facts_root), "MemAvailable"),
        free_space=_free_space,
        lock_path=state_directory / "lock",
        shows_layer=lambda slot: _shows_layer(settings, slot),
        is_metered=ask_network_manager if kit is None else lambda: False,
    )


class _Network:
    """One fetcher for everything, so that all traffic is counted and capped together."""

    def __init__(
        self,
        settings: DeviceSettings,
        *,
        sleep: Callable[[float], None],
        fetching: "FetchSettings | None",
        kit: "Kit | None",
    ) -> None:
        self._settings = settings
        self._fetching = fetching
        self._kit = kit
        self._mirroring: MirrorFetcher | None = None
        #: Waits between two tries of a request; no kit gets better by waiting.
        self.sleep: Callable[[float], None] = sleep if kit is None else _wait_not

    @property
    def base_url(self) -> str:
        return KIT_URL if self._kit is not None else self._settings.repository.urls[0]

    @property
    def requests(self) -> int:
        return self.counting.requests if self._is_open else 0

    @property
    def bytes_received(self) -> int:
        return self.counting.bytes_received if self._is_open else 0

    @property
    def neighbour_bytes(self) -> int:
        return 0 if self.neighbourhood is None else self.neighbourhood.received_bytes

    @cached_property
    def neighbourhood(self) -> "Neighbourhood | None":
        """Who is asked before the repository; nobody unless the configuration says so."""
        share = self._settings.share
        if self._kit is not None or not share.asks:
            return None
        from overhaul.agent.sharing.asking import find
        from overhaul.content.neighbours import Neighbourhood

        return Neighbourhood(find=lambda: find(share))

    @cached_property
    def fetcher(self) -> "Fetcher":
        """What repeats by itself."""
        from overhaul.transfer.resuming import ResumingFetcher

        return ResumingFetcher(self.counting, wait=self.sleep)

    @property
    def mirrors(self) -> Mirrors:
        """The mirrors to try; a kit is the only one of its kind."""
        return Mirrors(1 if self._kit is not None else len(self._settings.repository.urls), self._turn)

    def _turn(self) -> None:
        if self._mirroring is not None:
            self._mirroring.turn()

    @property
    def _is_open(self) -> bool:
        return "counting" in vars(self)

    @cached_property
    def counting(self) -> "CountingFetcher":
        """The engine with its wrappers, which does not repeat by itself; the assembler does that."""
        from overhaul.transfer.counting import CountingFetcher
        from overhaul.transfer.mirrors import MirrorFetcher
        from overhaul.transfer.opening import open_fetcher
        from overhaul.transfer.settings import FetchSettings

        if self._kit is not None:
            return CountingFetcher(KitFetcher(self._kit))
        repository = self._settings.repository
        fetcher = open_fetcher(
            replace(
                self._fetching or FetchSettings(),
                allow_http=repository.allow_http,
                proxy=repository.proxy or None,
                ca_file=Path(repository.ca_file) if repository.ca_file else None,
                max_bytes_per_s=repository.max_bytes_per_s or None,
                mirrors=repository.urls,
                published_only=True,
            )
        )
        if isinstance(fetcher, MirrorFetcher):
            self._mirroring = fetcher
        return CountingFetcher(fetcher)


def _wait_not(_seconds: float) -> None:
    """Return at once."""


class _SlotContent:
    """Binds the assembler to this device's network and limits."""

    def __init__(self, settings: DeviceSettings, network: _Network) -> None:
        self._settings = settings
        self._network = network
        self._cache = Path(settings.state_directory) / "content"
        self._neighbourhood = network.neighbourhood

    def preview(
        self,
        release: Release,
        *,
        source: Path,
        source_index: str | None,
        chains: Sequence[tuple[DeltaRef, ...]] = (),
    ) -> Cost:
        from overhaul.content.assembler import preview

        if self._neighbourhood is not None:
            from overhaul.content.byneighbours import describe_from_neighbours

            describe_from_neighbours(release, self._cache, self._neighbourhood, source_index=source_index)
        materials = self._materials(source, source_index, chains, progress=None)
        # The target is left out: reading it here and again when assembling would only say that it costs less.
        return self._network.mirrors.any(lambda: preview(release, materials))

    def assemble(
        self,
        release: Release,
        *,
        target: Path,
        source: Path,
        source_index: str | None,
        chains: Sequence[tuple[DeltaRef, ...]] = (),
        progress: Progress,
    ) -> Work:
        from overhaul.content.assembler import assemble

        materials = self._materials(source, source_index, chains, progress=progress)
        if self._neighbourhood is not None:
            from overhaul.content.byneighbours import fill_from_neighbours

            with self._neighbourhood as neighbourhood:
                fill_from_neighbours(
                    release,
                    materials,
                    neighbourhood,
                    target=target,
                    bytes_per_saved_byte=self._settings.share.max_bytes_per_saved_byte,
                )
        return self._network.mirrors.any(lambda: assemble(release, materials, target=target))

    def _materials(
        self,
        source: Path,
        source_index: str | None,
        chains: Sequence[tuple[DeltaRef, ...]],
        *,
        progress: Progress | None,
    ) -> "Materials":
        from overhaul.content.preparing import Materials

        return Materials(
            base_url=self._network.base_url,
            fetcher=self._network.counting,
            source=source,
            source_index=source_index,
            chains=chains,
            limits=self._limits,
            progress=progress,
            cache=self._cache,
            keeps_segments=bool(self._settings.share.listen),
            wait=self._network.sleep,
        )

    @cached_property
    def _limits(self) -> "Limits":
        """What there was when the update began: what is installed must be what was looked at beforehand."""
        from overhaul.content.plan import Limits

        settings = self._settings
        return Limits(
            memory_bytes=settings.limits.memory_bytes or memory_bytes(Path(settings.facts_root), "MemAvailable")
        )


def _open_shipped(release: Release, settings: DeviceSettings, network: _Network) -> Shipped | None:
    from overhaul.content.cache import ContentCache
    from overhaul.content.configuration import PublishedConfiguration

    ref = release.configuration
    if ref is msgspec.UNSET:
        return None
    cache = ContentCache(Path(settings.state_directory) / "configuration")
    return MirroredShipped(
        lambda: PublishedConfiguration(ref, base_url=network.base_url, fetcher=network.fetcher, cache=cache),
        network.mirrors,
    )


def _open_repository(settings: DeviceSettings, network: _Network, *, clock: Callable[[], datetime]) -> Repository:
    from overhaul.trust.client import TrustedRepository

    anchor = Path(settings.root_metadata)
    try:
        root = anchor.read_bytes()
    except OSError as error:
        raise TrustAnchorError(path=anchor, reason=error.strerror or str(error)) from error
    repository = TrustedRepository(
        state_directory=Path(settings.state_directory) / "trust",
        base_url=network.base_url,
        bootstrap_root=root,
        fetcher=network.fetcher,
        clock=clock,
        accept_builds=settings.repository.accept_builds,
    )
    return MirroredRepository(repository, network.mirrors)


def _open_restarter(
    settings: DeviceSettings, *, clock: Callable[[], datetime], sleep: Callable[[float], None]
) -> Restarter:
    if settings.reboot.policy == "never":
        return NeverRestarts()
    return LogindRestarter(
        window=settings.window,
        wait_s=settings.reboot.inhibitor_wait_s,
        local_time=lambda: clock().astimezone(),
        sleep=sleep,
    )


def _open_reporter(settings: DeviceSettings) -> KeptReports | NoReports:
    if not settings.reports.url:
        return NoReports()
    repository = settings.repository
    sender = HttpReporter(url=settings.reports.url, proxy=repository.proxy, ca_file=repository.ca_file)
    return KeptReports(sender, Path(settings.state_directory) / "reports.json")


def _shows_layer(settings: DeviceSettings, slot: str) -> bool:
    from overhaul.install.configuration.layers import layers_in

    etc = Path(settings.configuration.etc)
    # Elsewhere it is that of a virtual device, which no initial RAM file system starts.
    return etc != Path("/etc") or layers_in(settings).is_shown(slot, etc, Path("/proc/self/mountinfo").read_text())


def _free_space(directory: Path) -> int:
    told = os.statvfs(directory)
    return told.f_bavail * told.f_frsize
