"""A virtual device for tests: files as slots, the file boot backend, and a repository and assembler in memory.

The parts in memory keep the promises of the real ones: a target is verified or refused, and an image that was
assembled is wholly in its slot.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from overhaul.agent.ports import Device
from overhaul.install.fileboot import FileBoot
from overhaul.install.health import Answer
from overhaul.install.settings import DeviceSettings, parse_settings
from overhaul.install.slots import Slot
from overhaul.install.state import StateFile
from overhaul.policy.document import Floor, Policy, PolicyEntry, Recall, encode_policy, policy_target_path
from overhaul.progress import Progress
from overhaul.release.record import DeltaRef, FileRef, ImageRecord, Release, ReleaseId, encode_release
from overhaul.trust.refusals import UnknownTargetError

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SLOT_SIZE = 256 * 1024


def release_id(version: str) -> ReleaseId:
    """Return the release of the test product with this version."""
    return ReleaseId(product="weather", variant="lite", arch="amd64", version=version, build_id=f"b{version}")


def image_of(version: str, size: int = 192 * 1024) -> bytes:
    """Return bytes that stand for the image of a version."""
    return hashlib.shake_256(version.encode()).digest(size)


@dataclass
class MemoryRepository:
    """Implements `agent.ports.Repository`; tests publish by changing it."""

    targets: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, PolicyEntry] = field(default_factory=dict)
    time_floor: datetime = START
    unread: bool = True
    polls: int = 0
    keyids: tuple[str, ...] = ("policy-key",)
    floors: tuple[Floor, ...] = ()
    #: Raised by the next poll when it is set.
    failure: Exception | None = None

    def publish(self, version: str, *, size: int | None = None, recall: str = "", allow_lower: bool = False) -> Release:
        """Publish a release and list it in the channel `stable`."""
        named = release_id(version)
        data = image_of(version)
        digest = hashlib.sha256(data).hexdigest()
        release = Release(
            format=1,
            id=named,
            published_at=0,
            image=ImageRecord(
                size=size or len(data),
                filesystem="raw",
                index=FileRef(path=f"content/indexes/aa/{digest}.caibx", size=1, sha256=digest),
                packs=(),
            ),
        )
        self.targets[named.target_path] = encode_release(release)
        self.entries[version] = PolicyEntry(
            variant=named.variant,
            arch=named.arch,
            version=named.version,
            build_id=named.build_id,
            index_sha256=digest,
            recall=Recall(reason=recall, since=0, allow_lower=allow_lower) if recall else None,
        )
        self.unread = True
        return release

    def poll(self) -> bool:
        """Ask whether there is something new."""
        self.polls += 1
        if self.failure is not None:
            raise self.failure
        return self.unread

    def refresh(self) -> None:
        """Take what is new."""
        policy = Policy(
            product="weather",
            channel="stable",
            revision=1,
            signed_at=0,
            floors=self.floors,
            entries=tuple(self.entries.values()),
        )
        self.targets[policy_target_path("weather", "stable")] = encode_policy(policy)
        self.unread = False

    def read_target(self, path: str) -> bytes:
        """Return a target."""
        if path not in self.targets:
            raise UnknownTargetError(path=path, role="test")
        return self.targets[path]

    def signers_of(self, path: str) -> tuple[str, ...]:
        """Return the ids of the policy keys."""
        return self.keyids


@dataclass(frozen=True)
class MemoryCost:
    """Implements `agent.ports.Cost`."""

    download_bytes: int = 1000
    memory_bytes: int = 1000
    scratch_bytes: int = 1000


@dataclass(frozen=True)
class MemoryWork:
    """Implements `agent.ports.Work`."""

    way: str = "chunks"
    kept_bytes: int = 0
    reused_bytes: int = 7
    repaired_chunks: int = 0


@dataclass
class MemoryContent:
    """Implements `agent.ports.Content` by writing the bytes that stand for a version."""

    cost: MemoryCost = field(default_factory=MemoryCost)
    sources: list[tuple[Path, str | None]] = field(default_factory=list)
    #: Raised after the first half when it is set.
    failure: Exception | None = None
    #: Called when the first byte is about to be written.
    before_first_byte: Callable[[], None] = lambda: None

    def preview(
        self,
        release: Release,
        *,
        source: Path,
        source_index: str | None,
        chains: Sequence[tuple[DeltaRef, ...]] = (),
    ) -> MemoryCost:
        """Return the cost."""
        return self.cost

    def assemble(
        self,
        release: Release,
        *,
        target: Path,
        source: Path,
        source_index: str | None,
        chains: Sequence[tuple[DeltaRef, ...]] = (),
        progress: Progress,
    ) -> MemoryWork:
        """Write the image."""
        self.before_first_byte()
        self.sources.append((source, source_index))
        data = image_of(release.id.version)
        half = len(data) // 2
        with target.open("r+b") as stream:
            os.pwrite(stream.fileno(), data[:half], 0)
            if self.failure is not None:
                raise self.failure
            os.pwrite(stream.fileno(), data[half:], half)
            os.fsync(stream.fileno())
        return MemoryWork()


@dataclass
class MemoryRestarter:
    """Implements `Restarter`: notes what was asked for."""

    asked: list[bool] = field(default_factory=list)
    failure: Exception | None = None

    def restart(self, *, urgent: bool = False) -> bool:
        """Note the wish."""
        if self.failure is not None:
            raise self.failure
        self.asked.append(urgent)
        return True


@dataclass
class MemoryReporter:
    """Implements `Reporter`: keeps what was sent."""

    sent: list[Mapping[str, object]] = field(default_factory=list)

    def send(self, report: Mapping[str, object]) -> None:
        """Keep one report."""
        self.sent.append(report)


@dataclass(frozen=True)
class NoTraffic:
    """Implements `Traffic` for a device that has no network."""

    requests: int = 3
    bytes_received: int = 1234
    neighbour_bytes: int = 0


@dataclass
class Bench:
    """A virtual device and everything around it, for a test to look at and to change."""

    directory: Path
    health: dict[str, Answer] = field(default_factory=dict)
    repository: MemoryRepository = field(default_factory=MemoryRepository)
    content: MemoryContent = field(default_factory=MemoryContent)
    restarter: MemoryRestarter = field(default_factory=MemoryRestarter)
    reporter: MemoryReporter = field(default_factory=MemoryReporter)
    free_memory: int | None = 1 << 30
    free_space: int = 1 << 30
    seconds: float = 0.0

    def __post_init__(self) -> None:
        for name in ("A", "B"):
            path = self.slot(name)
            if not path.exists():
                path.write_bytes((image_of("1.0") if name == "A" else b"").ljust(SLOT_SIZE, b"\0"))
        self.settings = settings_for(self.directory)
        self.boot = FileBoot(self.directory / "boot.json", ("A", "B"))
        self.states = StateFile(self.directory / "state")

    def slot(self, name: str) -> Path:
        """Return the file of a slot."""
        return self.directory / f"slot-{name}.img"

    def holds(self, name: str) -> str:
        """Return the version whose image the slot holds, or `?`."""
        data = self.slot(name).read_bytes()
        return next((text for text in ("1.0", "2.0", "3.0") if data.startswith(image_of(text))), "?")

    def run(self, command: Sequence[str], *, timeout_s: float) -> Answer:
        """Answer a health command by its last word; healthy unless a test says otherwise."""
        return self.health.get(command[-1], Answer(exit_code=0, output=""))

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.seconds += seconds

    @property
    def device(self) -> Device:
        """Return the device as a program that has just been started sees it."""
        return Device(
            settings=self.settings,
            slots={name: Slot(name=name, path=self.slot(name)) for name in ("A", "B")},
            boot=self.boot,
            states=self.states,
            open_repository=lambda: self.repository,
            open_content=lambda: self.content,
            traffic=NoTraffic(),
            restarter=self.restarter,
            reporter=self.reporter,
            run=self.run,
            clock=lambda: START + timedelta(seconds=self.seconds),
            monotonic=lambda: self.seconds,
            sleep=self.sleep,
            peak_memory=lambda: 50_000_000,
            free_memory=lambda: self.free_memory,
            free_space=lambda _directory: self.free_space,
            lock_path=self.directory / "state/lock",
        )


def settings_for(directory: Path, *, more: str = "") -> DeviceSettings:
    """Return the settings of a virtual device in `directory`."""
    text = f"""
product = "weather"
variant = "lite"
arch = "amd64"
channel = "stable"
version = "1.0"
build_id = "b1.0"
state_directory = "state"
facts_root = "root"
[repository]
urls = ["https://updates.test"]
[slots]
A = "slot-A.img"
B = "slot-B.img"
[boot]
backend = "file"
file = "boot.json"
[health]
commands = ["healthy"]
{more}
"""
    return parse_settings(text.encode(), directory / "device.toml")
