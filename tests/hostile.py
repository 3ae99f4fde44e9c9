"""A device, its honest publisher, and between them a server that a thief controls.

What the thief changes in `thief.files` is served in place of the publisher's files, which stay as they are: when the
attack is over, the same address serves the honest repository again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from overhaul.agent.checking import check
from overhaul.agent.confirming import confirm
from overhaul.agent.outcomes import Checked, Ready, Updated
from overhaul.agent.ports import Device, Traffic
from overhaul.agent.updating import update
from overhaul.agent.wiring import open_device
from overhaul.errors import NetworkError, OverhaulError, TrustError
from overhaul.install.boot import SlotStatus
from overhaul.install.settings import load_settings
from overhaul.install.state import Event, EventKind, Phase
from overhaul.policy.document import policy_target_path
from overhaul.progress import Silence
from overhaul.publishing.opening import Repository
from overhaul.release.record import Release
from overhaul.transfer.settings import FetchSettings
from overhaul.trust.layout import target_key
from overhaul.trust.roles import role_of_path
from tests.fleet import PRODUCT, RealDevice, RealRepository, release_id, small_image
from tests.loopback import LoopbackServer
from tests.signed_tree import SignedFiles

STABLE = policy_target_path(PRODUCT, "stable")


@dataclass(frozen=True)
class World:
    """What every attack begins with: a publisher with the releases 1.0 and 2.0, and a device that knows of 1.0."""

    repository: RealRepository
    device: RealDevice
    #: Image of each version.
    images: dict[str, bytes]
    #: What was signed when only 1.0 was out.
    first: dict[str, bytes]

    @classmethod
    def make(cls, directory: Path, server: LoopbackServer, *, images: Mapping[str, Path] | None = None) -> "World":
        """Publish small images or those given, and let a device on 1.0 look once before 2.0 comes out."""
        if images is None:
            images = {version: small_image(directory / version, version) for version in ("1.0", "2.0")}
        repository = RealRepository(directory / "repository")
        _serve(server, repository, {})
        repository.publish(images["1.0"], "1.0")
        device = RealDevice.make(
            directory / "device",
            url=server.url,
            root=repository.root,
            image=images["1.0"],
            version="1.0",
            slot_size=images["1.0"].stat().st_size,
        )
        check(device.device)
        first = signed_files(repository.public)
        repository.publish(images["2.0"], "2.0")
        return cls(repository, device, {version: path.read_bytes() for version, path in images.items()}, first)


@dataclass(frozen=True)
class Attack:
    """What the thief does, and what the agent must make of it."""

    name: str
    prepare: Callable[["Scene"], object]
    refused_by: type[OverhaulError]
    #: What the device does after that and before it is judged: it may take in what verifies.
    learn: Callable[["Scene"], object] = lambda _scene: None
    #: Whether the refusal comes when part of the idle slot is written.
    wrote: bool = False
    #: The keys the publisher must replace before devices follow again.
    stolen: tuple[str, ...] = ()


class Scene:
    """One attack on a copy of a world."""

    def __init__(self, world: World, directory: Path, server: LoopbackServer) -> None:
        self.repository = world.repository.copy(directory / "repository")
        self.device = world.device.copy(directory / "device")
        self.images, self.first = dict(world.images), world.first
        self.server = server
        self.thief = SignedFiles(signed_files(self.repository.public), self.repository.opened.keyring)
        #: How far the device's clock is ahead of the real one.
        self.passed = timedelta()
        self.fetching = FetchSettings()
        #: What the agent that was started last has used the network for.
        self.traffic: Traffic
        _serve(server, self.repository, self.thief.files)
        self._idle_bytes = self.device.slot("B").read_bytes()

    def now(self) -> datetime:
        """Return what the device's clock says."""
        return datetime.now(UTC) + self.passed

    def agent(self) -> Device:
        """Return the agent as it has just been started; it never waits between two tries."""
        settings = load_settings(self.device.configuration)
        agent = open_device(settings, clock=self.now, sleep=lambda _seconds: None, fetching=self.fetching)
        self.traffic = agent.traffic
        return agent

    def update(self) -> Updated | Ready | Checked:
        """Run `overhaul device update`."""
        return update(self.agent(), progress=Silence())

    def learn_metadata(self) -> None:
        """Let the device take in what verifies of the signed roles."""
        self.agent().open_repository().refresh()

    def learn_policy(self) -> None:
        """Let the device take in what verifies up to the policy."""
        check(self.agent())

    def learn_policy_bytes(self) -> None:
        """Let the device take in what verifies up to the bytes of the policy, whatever they say."""
        repository = self.agent().open_repository()
        repository.refresh()
        repository.read_target(STABLE)

    def learn_everything(self) -> None:
        """Let the device take in all that is signed, so that only content is left to be fetched."""
        check(self.agent())
        repository = self.agent().open_repository()
        for version in ("1.0", "2.0"):
            repository.read_target(release_id(version).target_path)

    def configure(self, old: str, new: str) -> None:
        """Change the device's configuration."""
        text = self.device.configuration.read_text()
        assert old in text
        self.device.configuration.write_text(text.replace(old, new))

    def release(self, version: str) -> Release:
        """Return the record of a published release."""
        return self.repository.opened.published().releases[release_id(version).target_path]

    def signed_key(self, path: str) -> str:
        """Return where the bytes of a signed target are served."""
        signed = self.thief.read(self.thief.key_of(role_of_path(path))).signed
        return target_key(path, signed.targets[path].hashes["sha256"])

    @property
    def publisher(self) -> Repository:
        """The publisher, who lives at the same time as the device."""
        return replace(self.repository.opened, clock=lambda: self.now().timestamp())

    def take_over(self) -> None:
        """Let the thief have what the publisher has published meanwhile."""
        self.thief.files.clear()
        self.thief.files.update(signed_files(self.repository.public))

    def end_attack(self, *, stolen: Sequence[str] = ()) -> None:
        """Serve the honest repository from now on, refreshed and with new keys in place of stolen ones."""
        _serve(self.server, self.repository, {})
        self.fetching = FetchSettings()
        publisher = self.publisher
        for role in stolen:
            publisher.keyring.renew(role)
        with publisher.locked("end of an attack") as lock:
            change = publisher.change(lock)
            for role in stolen:
                change.editor.rotate(role)
            change.editor.refresh()
            change.commit()

    def trusted(self) -> dict[str, bytes]:
        """Return everything the device trusts; a target is named by its bytes, so only foreign ones are listed."""
        state = self.device.directory / "state/trust"
        genuine = set(signed_files(self.repository.public).values())
        files = {str(path.relative_to(state)): path.read_bytes() for path in state.rglob("*") if path.is_file()}
        return {name: data for name, data in files.items() if not (name.startswith("targets/") and data in genuine)}

    def require_refusal(self, attack: Attack) -> None:
        """Fail unless the agent refuses an attack as it should and installs 2.0 when it is over."""
        attack.prepare(self)
        attack.learn(self)
        trusted = self.trusted()
        with pytest.raises(attack.refused_by) as caught:
            self.update()
        assert type(caught.value) is attack.refused_by
        assert caught.value.exit_code in {TrustError.exit_code, NetworkError.exit_code}
        assert self.traffic.bytes_received < 2 * len(self.images["2.0"])
        assert self.trusted() == trusted
        self.require_unharmed(wrote=attack.wrote)
        self.end_attack(stolen=attack.stolen)
        self.require_update()

    def require_unharmed(self, *, wrote: bool) -> None:
        """Fail unless the device runs 1.0, will go on to, and says the truth about what was tried."""
        assert self.device.slot("A").read_bytes() == self.images["1.0"]
        boot = self.device.boot
        assert (boot.booted(), boot.primary()) == ("A", "A")
        assert boot.state("A").status is SlotStatus.GOOD
        assert boot.state("B").status is SlotStatus.BAD
        state = self.agent().states.load()
        assert state.refused == ()
        assert "B" not in state.slots
        if wrote:
            assert (state.phase, _kinds(state.history)) == (Phase.INSTALLING, [EventKind.STARTED])
        else:
            assert (state.phase, _kinds(state.history)) == (Phase.IDLE, [])
            assert self.device.slot("B").read_bytes() == self._idle_bytes
        assert boot.simulate_boot() == "A"

    def require_update(self, version: str = "2.0") -> None:
        """Fail unless the device now updates to a version, boots it and confirms it."""
        running = self.device.boot.booted()
        outcome = self.update()
        assert isinstance(outcome, Updated), outcome
        self.require_installed(version)
        assert self.device.slot(running).read_bytes() != self.images[version]

    def require_installed(self, version: str) -> None:
        """Fail unless an installed version boots, is whole and is confirmed."""
        slot = self.device.boot.simulate_boot()
        assert self.device.slot(slot).read_bytes() == self.images[version]
        confirm(self.agent())
        state = self.agent().states.load()
        assert (state.phase, self.device.boot.state(slot).status) == (Phase.IDLE, SlotStatus.GOOD)
        assert _kinds(state.history)[-3:] == [EventKind.STARTED, EventKind.INSTALLED, EventKind.CONFIRMED]


def signed_files(public: Path) -> dict[str, bytes]:
    """Return all that is signed below a document root, by path."""
    found = [path for folder in ("metadata", "targets") for path in (public / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(public)): path.read_bytes() for path in found}


def _serve(server: LoopbackServer, repository: RealRepository, files: dict[str, bytes]) -> None:
    """Serve a repository, with `files` in place of its own, and nothing of what was served before."""
    server.root, server.files, server.behaviours = repository.public, files, {}
    server.requests.clear()


def _kinds(history: Sequence[Event]) -> list[EventKind]:
    return [event.kind for event in history]
