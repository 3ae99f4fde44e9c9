"""A device killed at every durable step of an update, a confirmation and a roll back, and started again each time.

Real publisher, real trust client, real assembler, real agent, over loopback; only the boot loader is simulated. What
holds after every kill: the boot loader finds a slot, that slot holds an old or new release byte for byte, and running
the same commands again finishes the work.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from overhaul.agent.checking import check
from overhaul.agent.confirming import confirm
from overhaul.agent.going_back import roll_back
from overhaul.agent.looking import status
from overhaul.agent.updating import update
from overhaul.install.boot import SlotStatus
from overhaul.install.health import UnhealthyError
from overhaul.install.state import EventKind, Phase
from overhaul.progress import Silence
from tests.crash.killing import run_killed_at
from tests.fleet import RealDevice, RealRepository, release_id, small_image
from tests.loopback import serving

SIZE = 640 * 1024


@dataclass(frozen=True)
class Scene:
    """A published pair of releases and a device that runs the old one."""

    device: RealDevice
    images: dict[str, bytes]
    directory: Path

    def sisters(self, device: RealDevice) -> Iterator[tuple[int, RealDevice]]:
        """Yield crash points, each with a fresh copy of `device`."""
        for point in itertools.count():
            yield point, device.copy(self.directory / f"{device.directory.name}-{point}")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("crash")
    repository = RealRepository(directory / "repository")
    images = {}
    for version in ("1.0", "2.0"):
        image = small_image(directory / f"{version}.img", version, size=SIZE)
        images[version] = image.read_bytes()
        repository.publish(image, version)
    with serving(repository.public) as server:
        device = RealDevice.make(
            directory / "device",
            url=server.url,
            root=repository.root,
            image=directory / "1.0.img",
            version="1.0",
            slot_size=SIZE,
        )
        check(device.device)
        yield Scene(device=device, images=images, directory=directory)


def run_update(device: RealDevice) -> None:
    update(device.device, progress=Silence())


def run_confirm(device: RealDevice) -> None:
    confirm(device.device)


def run_roll_back(device: RealDevice) -> None:
    roll_back(device.device)


def require_verified(device: RealDevice, scene: Scene) -> str:
    """Start the device, and return the version that runs, which must be whole."""
    device.boot.simulate_boot()
    running = device.booted_bytes(SIZE)
    versions = [version for version, data in scene.images.items() if data == running]
    assert versions, "the booted slot holds neither release"
    assert any(device.boot.state(slot).status is SlotStatus.GOOD for slot in "AB")
    return versions[0]


def finish(device: RealDevice) -> None:
    """Do what the services of a device do at each start, until nothing is left to do."""
    for _ in range(6):
        if status(device.device).phase is Phase.TRIAL:
            confirm(device.device)
        update(device.device, progress=Silence())
        if status(device.device).phase is Phase.IDLE:
            return
        device.boot.simulate_boot()
    raise AssertionError("the update never came to an end")


def half_written(device: RealDevice) -> list[Path]:
    """Return the temporary files of the device."""
    return [path for path in device.directory.rglob(".*") if path.suffix == ".tmp"]


def visit(
    scene: Scene, before: RealDevice, action: Callable[[RealDevice], None], after: Callable[[int, RealDevice], None]
) -> int:
    """Kill `action` at every crash point of a sister of `before`, look `after` each; return how many there were.

    What was half-written when it was killed is gone `after`.
    """
    left = 0
    for point, device in scene.sisters(before):
        passed = run_killed_at(lambda device=device: action(device), point)  # type: ignore[misc]
        left += len(half_written(device))
        after(point, device)
        assert half_written(device) == []
        if passed is not None:
            assert passed == point
            assert left > 0
            return passed
    raise AssertionError


def test_an_update_killed_anywhere_leaves_a_verified_slot_and_can_be_finished(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: set[str] = set()

    def after(point: int, device: RealDevice) -> None:
        seen.add(require_verified(device, scene))
        finish(device)
        assert require_verified(device, scene) == "2.0"
        assert status(device.device).running == release_id("2.0")
        assert [event.kind for event in device.device.states.load().history].count(EventKind.CONFIRMED) == 1

    points = visit(scene, scene.device, run_update, after)
    with capsys.disabled():
        print(f"\n    update: killed at {points} crash points")
    assert seen == {"1.0", "2.0"}
    assert points > 40


@pytest.fixture(scope="module")
def on_trial(scene: Scene) -> RealDevice:
    """A device that has just started the new slot."""
    device = scene.device.copy(scene.directory / "on-trial")
    run_update(device)
    device.boot.simulate_boot()
    return device


@pytest.fixture(scope="module")
def up_to_date(scene: Scene, on_trial: RealDevice) -> RealDevice:
    """A device that has confirmed the new slot."""
    device = on_trial.copy(scene.directory / "up-to-date")
    run_confirm(device)
    return device


def test_a_confirmation_killed_anywhere_ends_confirmed(
    scene: Scene, on_trial: RealDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    def after(point: int, device: RealDevice) -> None:
        assert require_verified(device, scene) == "2.0"
        finish(device)
        assert device.boot.state("B").status is SlotStatus.GOOD
        assert [device.boot.simulate_boot() for _ in range(5)] == ["B"] * 5

    points = visit(scene, on_trial, run_confirm, after)
    with capsys.disabled():
        print(f"\n    confirm: killed at {points} crash points")
    assert points >= 8


def test_giving_up_a_sick_slot_killed_anywhere_ends_on_the_old_one_and_refuses_the_version(
    scene: Scene, on_trial: RealDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    sick = on_trial.copy(scene.directory / "sick")
    sick.configuration.write_text(sick.configuration.read_text().replace("commands = []", 'commands = ["exit 3"]'))

    def give_up(device: RealDevice) -> None:
        with pytest.raises(UnhealthyError):
            confirm(device.device)

    def after(point: int, device: RealDevice) -> None:
        running = require_verified(device, scene)
        while running == "2.0":
            # Still on trial: the health check of this start finds it sick again, until the attempts are used up.
            if status(device.device).phase is Phase.TRIAL:
                give_up(device)
            running = require_verified(device, scene)
        state = status(device.device)
        assert state.phase is Phase.IDLE
        assert [refused.version for refused in state.refused] == ["2.0"]
        assert check(device.device).exit_code == 21

    points = visit(scene, sick, give_up, after)
    with capsys.disabled():
        print(f"\n    giving up: killed at {points} crash points")
    assert points >= 8


def test_a_roll_back_by_hand_killed_anywhere_ends_on_a_confirmed_slot(
    scene: Scene, up_to_date: RealDevice, capsys: pytest.CaptureFixture[str]
) -> None:
    def after(point: int, device: RealDevice) -> None:
        require_verified(device, scene)
        if device.boot.booted() == "B":
            # Nothing durable had happened yet, or only the wish was noted: the person asks again.
            run_roll_back(device)
            if status(device.device).phase is Phase.IDLE:
                run_roll_back(device)
            device.boot.simulate_boot()
        confirm(device.device)
        assert require_verified(device, scene) == "1.0"
        assert device.boot.state("A").status is device.boot.state("B").status is SlotStatus.GOOD
        assert "2.0" in [refused.version for refused in status(device.device).refused]

    points = visit(scene, up_to_date, run_roll_back, after)
    with capsys.disabled():
        print(f"\n    roll back: killed at {points} crash points")
    assert points >= 8


def test_a_device_killed_again_and_again_still_gets_there(scene: Scene) -> None:
    chance = random.Random(11)
    device = scene.device.copy(scene.directory / "unlucky")
    for _ in range(20):
        if status(device.device).phase is Phase.TRIAL:
            # Killed three times here the slot would be given up, as it should be.
            run_confirm(device)
        run_killed_at(lambda: run_update(device), chance.randrange(20, 100))
        require_verified(device, scene)
    finish(device)
    assert require_verified(device, scene) == "2.0"
    assert half_written(device) == []
