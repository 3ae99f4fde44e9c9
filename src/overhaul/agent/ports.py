"""Everything the agent's steps stand on, handed in: they open no socket, read no clock and know no path.

`agent.wiring` fills these in with the real parts; tests fill in others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from overhaul.install.boot import BootControl
from overhaul.install.health import Runner
from overhaul.install.reboot import Restarter
from overhaul.install.settings import DeviceSettings
from overhaul.install.slots import Slot
from overhaul.install.state import StateFile
from overhaul.progress import Progress
from overhaul.release.configuration import Configuration
from overhaul.release.record import DeltaRef, Release


class Repository(Protocol):
    """The trusted view of what is published; `trust.client.TrustedRepository` is one."""

    @property
    def time_floor(self) -> datetime:
        """The earliest time it can be."""

    def poll(self) -> bool:
        """Ask whether there is something new."""

    def refresh(self) -> None:
        """Verify and take what is new."""

    def read_target(self, path: str) -> bytes:
        """Return the verified bytes of a target."""

    def signers_of(self, path: str) -> tuple[str, ...]:
        """Return the ids of the keys whose signature counts for a target."""


class Cost(Protocol):
    """What bringing an image into a slot will take; `content.plan.Plan` is one."""

    @property
    def download_bytes(self) -> int:
        """Bytes to be fetched."""

    @property
    def memory_bytes(self) -> int:
        """Memory of the agent and its children."""

    @property
    def scratch_bytes(self) -> int:
        """Free space needed outside the slots."""


class Work(Protocol):
    """What bringing an image into a slot took; `content.assembler.AssemblyReport` is one."""

    @property
    def way(self) -> str:
        """How it was done."""

    @property
    def repaired_chunks(self) -> int:
        """Chunks that were wrong at first."""

    @property
    def kept_bytes(self) -> int:
        """Bytes that were right in the target already."""

    @property
    def reused_bytes(self) -> int:
        """Bytes that came from elsewhere on the device."""


class Content(Protocol):
    """Whoever brings an image into a slot and reads it back."""

    def preview(
        self,
        release: Release,
        *,
        source: Path,
        source_index: str | None,
        chains: Sequence[tuple[DeltaRef, ...]] = (),
    ) -> Cost:
        """Return what `assemble` costs at most, without touching any slot."""

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
        """Write the image of `release` to `target`; when this returns, every byte was read back and is right."""


class Shipped(Protocol):
    """What a release ships as configuration; `content.configuration.PublishedConfiguration` is one."""

    @property
    def configuration(self) -> Configuration:
        """Every object."""

    def content(self, sha256: bytes) -> bytes | None:
        """Return the content with this digest, or None when it is not published by itself."""


class Traffic(Protocol):
    """What the network was used for so far."""

    @property
    def requests(self) -> int:
        """Requests sent."""

    @property
    def bytes_received(self) -> int:
        """Bytes of all response bodies."""

    @property
    def neighbour_bytes(self) -> int:
        """Bytes that neighbours gave instead."""


class Reporter(Protocol):
    """Tells the server what happened, when the owner wants that."""

    def send(self, report: Mapping[str, object]) -> None:
        """Send one report; never raises."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One device, as the agent's steps see it."""

    settings: DeviceSettings
    slots: Mapping[str, Slot]
    boot: BootControl
    states: StateFile
    #: Opened on use: a device that only confirms needs no network and no trust anchor.
    open_repository: Callable[[], Repository]
    open_content: Callable[[], Content]
    #: What a release ships as configuration; None for releases that do not tell.
    open_shipped: Callable[[Release], Shipped | None] = lambda _release: None
    traffic: Traffic
    restarter: Restarter
    reporter: Reporter
    run: Runner
    clock: Callable[[], datetime]
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    #: Whether the running system shows the layer of configuration that its slot boots with.
    shows_layer: Callable[[str], bool] = lambda _slot: True
    #: VmHWM of this process and the largest of its children.
    peak_memory: Callable[[], int]
    free_memory: Callable[[], int | None]
    free_space: Callable[[Path], int]
    lock_path: Path
    #: Whether the connection costs money by the byte.
    is_metered: Callable[[], bool] = lambda: False

    def has_lost_layer(self, booted: str) -> bool:
        """Tell whether the running system should show a layer of configuration and does not."""
        return self.settings.configuration.carry != "nothing" and not self.shows_layer(booted)

    def now(self) -> int:
        """Return the clock's time in seconds since 1970 UTC."""
        return int(self.clock().timestamp())
