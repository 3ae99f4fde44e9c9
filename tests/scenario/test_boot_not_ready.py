"""A real device with a boot loader that could not be told about an update: noticed before the update is fetched."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.fleet import RealDevice, RealRepository, small_image
from tests.loopback import LoopbackServer, serving

from overhaul.agent.outcomes import Updated
from overhaul.agent.ports import Device
from overhaul.agent.updating import update
from overhaul.install.boot import BootControlError
from overhaul.install.loaderentry import render_entry
from overhaul.install.state import Phase
from overhaul.install.systemdboot import SystemdBoot
from overhaul.progress import Silence


@dataclass(frozen=True)
class Scene:
    """A device with systemd-boot, and an update that waits for it."""

    directory: Path
    server: LoopbackServer
    real: RealDevice

    @property
    def partition(self) -> Path:
        return self.directory / "esp"

    @property
    def device(self) -> Device:
        boot = SystemdBoot(
            self.partition,
            {name: self.real.slot(name) for name in "AB"},
            kernel="/vmlinuz",
            initrd="/initrd.img",
            options="ro",
            root=self.directory / "running",
            look_into=lambda _slot: nullcontext(self.directory / "running"),
        )
        return replace(self.real.device, boot=boot)

    def fetched(self) -> list[str]:
        """Return what was asked of the repository beside its metadata, policies and records."""
        return [seen.path for seen in self.server.requests if seen.path.startswith("content/")]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    repository = RealRepository(tmp_path / "repository")
    images = {version: small_image(tmp_path / version, version) for version in ("1.0", "2.0")}
    for version, image in images.items():
        repository.publish(image, version)
    with serving(repository.public) as server:
        real = RealDevice.make(
            tmp_path / "device",
            url=server.url,
            root=repository.root,
            image=images["1.0"],
            version="1.0",
            slot_size=2 << 20,
        )
        made = Scene(tmp_path, server, real)
        running = tmp_path / "running"
        (running / "proc/sys/kernel/random").mkdir(parents=True)
        (running / "proc/cmdline").write_text("ro overhaul.slot=A\n")
        (running / "proc/sys/kernel/random/boot_id").write_text("this one\n")
        (running / "vmlinuz").write_bytes(b"kernel")
        (made.partition / "loader/entries").mkdir(parents=True)
        (made.partition / "loader/loader.conf").write_text("default overhaul-*\n")
        entry = render_entry("A", version=1, options="ro", has_initrd=False)
        (made.partition / "loader/entries/overhaul-A.conf").write_bytes(entry)
        yield made


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(
            lambda esp: (esp / "loader/loader.conf").write_text("default @saved\n"), "one line", id="other default"
        ),
        pytest.param(lambda esp: (esp / "loader/loader.conf").unlink(), "mounted there", id="not mounted"),
    ],
)
def test_an_update_that_could_not_be_armed_is_not_fetched(
    scene: Scene, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(scene.partition)
    before = scene.real.slot("B").read_bytes()

    with pytest.raises(BootControlError, match=reason) as refused:
        update(scene.device, progress=Silence())

    assert str(refused.value).count("\n") == 0
    assert scene.fetched() == []
    assert scene.device.states.load().phase is Phase.IDLE
    assert scene.real.slot("B").read_bytes() == before


def test_once_it_is_mended_the_same_update_is_installed(scene: Scene) -> None:
    (scene.partition / "loader/loader.conf").write_text("default @saved\n")
    with pytest.raises(BootControlError):
        update(scene.device, progress=Silence())

    (scene.partition / "loader/loader.conf").write_text("default overhaul-*\n")

    assert isinstance(update(scene.device, progress=Silence()), Updated)
    assert scene.fetched()
    assert scene.device.boot.primary() == "B"
