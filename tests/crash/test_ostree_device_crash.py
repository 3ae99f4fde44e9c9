"""An OSTree device killed at every durable step of an update and of a roll back, and started again each time.

What holds after every kill: the boot loader leads to a deployment that is whole, what ran can still be booted, and
running the same command again finishes the work, as if nothing had happened.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from overhaul.dialects.ostree.device.kernel import find_kernel
from overhaul.dialects.ostree.device.state import EventKind, Phase
from overhaul.dialects.ostree.device.updating import Mode, confirm, roll_back, run_cycle
from overhaul.install.health import UnhealthyError
from tests.crash.killing import run_killed_at
from tests.loopback import serving
from tests.ostree_scene import OstreeDevice, Publisher, ostree, quiet_directory


@dataclass(frozen=True)
class Scene:
    place: Path
    device: OstreeDevice
    first: str
    second: str


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with quiet_directory() as place:
        publisher = Publisher(place / "publisher")
        with serving(publisher.repository) as server:
            first = publisher.publish("1")
            device = OstreeDevice.make(place / "device", server.url)
            device.install()
            (device.etc() / "mine").write_text("mine\n")
            second = publisher.publish("2", {"usr/bin/new": "new\n", "usr/lib/modules/6.1/vmlinuz": "kernel 2\n"})
            yield Scene(place=place, device=device, first=first, second=second)


def killed_everywhere(
    scene: Scene, device: OstreeDevice, act: Callable[[OstreeDevice], object], after: Callable[[OstreeDevice], None]
) -> int:
    """Kill `act` at each of its crash points on a device of its own, see `after`; return how many there were."""
    for point in itertools.count():
        twin = device.copy(scene.place / f"{device.directory.name}-{point}")
        passed = run_killed_at(partial(_carry_out, act, twin), point)
        check_bootable(twin)
        after(twin)
        if passed is not None:
            return point
    raise AssertionError("unreachable")


def _carry_out(act: Callable[[OstreeDevice], object], device: OstreeDevice) -> None:
    act(device)


def check_bootable(device: OstreeDevice) -> None:
    """Everything that the boot loader may start is there, with its kernel; what runs is among it."""
    sysroot = device.open()
    deployments = sysroot.deployments()
    assert device.booted in [one.name for one in deployments]
    for one in deployments:
        directory = sysroot.directory(one)
        layout = find_kernel(directory)
        for path in (one.entry.linux, one.entry.initrd):
            assert (device.sysroot / "boot" / path.lstrip("/")).is_file()
        assert (device.sysroot / "boot" / one.entry.linux.lstrip("/")).read_bytes() == layout.kernel[1].read_bytes()
        assert (directory / "etc/motd").is_file()
        assert (directory / "usr/bin/shortcut").is_symlink()


def bring_to_esp(device: OstreeDevice) -> None:
    """Have a hook write which deployment the ESP's application would start, as the one for UEFI applications does."""
    name = '"$(dirname "$0")/../../esp"'
    device.write_hook("post-apply", "00-esp", f'printf %s "$(basename "$2")" > {name}')


def esp(device: OstreeDevice) -> str:
    """Return the deployment whose application the firmware would start."""
    return (device.directory / "esp").read_text()


def test_an_update_killed_anywhere_is_finished_by_the_next_run(scene: Scene) -> None:
    def finish(device: OstreeDevice) -> None:
        run_cycle(device.updater(), Mode.BOTH)
        assert device.deployed() == [scene.second, scene.first]
        assert device.updater().states.load().phase is Phase.READY
        assert (device.etc() / "mine").read_text() == "mine\n"
        home = device.open().deployments_directory("example")
        assert {path.name for path in home.iterdir() if path.is_dir()} == {
            one.name for one in device.open().deployments()
        }
        assert not list((device.repository / "tmp").glob("overhaul-*"))
        assert not list((device.repository / "state").iterdir())
        assert not list((device.repository / "refs").rglob(".*"))

    points = killed_everywhere(scene, scene.device, lambda device: run_cycle(device.updater(), Mode.BOTH), finish)
    assert points > 60
    ostree("fsck", f"--repo={scene.place}/device-{points}/sysroot/ostree/repo")


def test_going_back_from_a_sick_update_killed_anywhere_still_ends_with_the_old_one(scene: Scene) -> None:
    device = scene.device.copy(scene.place / "sick")
    run_cycle(device.updater(), Mode.BOTH)
    device.boot()
    bring_to_esp(device)
    (device.directory / "esp").write_text(device.booted)
    device.write_hook("post-update-check", "10-sick", "exit 1")

    def go_back(sick: OstreeDevice) -> None:
        with pytest.raises(UnhealthyError):
            confirm(sick.updater())

    def finish(sick: OstreeDevice) -> None:
        # Nothing restarts a device on its way back before the hooks have run for the old deployment.
        if sick.updater().states.load().phase is Phase.LEAVING:
            assert esp(sick) == sick.open().deployments()[0].name
        if sick.updater().states.load().phase is Phase.TRIAL or sick.deployed()[0] == scene.second:
            with contextlib.suppress(UnhealthyError):
                confirm(sick.updater())
        assert sick.deployed()[0] == scene.first
        assert sick.updater().states.load().refusal(scene.second) is not None
        sick.boot()
        run_cycle(sick.updater(), Mode.BOTH)
        assert sick.updater().states.load().phase is Phase.IDLE
        assert sick.deployed()[0] == scene.first
        assert esp(sick) == sick.booted

    assert killed_everywhere(scene, device, go_back, finish) > 15


def test_an_update_started_without_its_hooks_by_a_loss_of_power_runs_them_before_it_counts(scene: Scene) -> None:
    def lose_power(device: OstreeDevice) -> None:
        device.boot()
        for _start in range(3):
            run_cycle(device.updater(), Mode.BOTH)
            device.boot()
        state = device.updater().states.load()
        assert (state.phase, state.history[-1].kind) == (Phase.IDLE, EventKind.CONFIRMED)
        assert device.deployed() == [scene.second, scene.first]
        assert esp(device) == device.booted

    device = scene.device.copy(scene.place / "power")
    bring_to_esp(device)
    assert killed_everywhere(scene, device, lambda one: run_cycle(one.updater(), Mode.BOTH), lose_power) > 60


def test_a_roll_back_by_hand_killed_anywhere_leaves_a_device_that_boots(scene: Scene) -> None:
    device = scene.device.copy(scene.place / "back")
    run_cycle(device.updater(), Mode.BOTH)
    device.boot()
    confirm(device.updater())
    bring_to_esp(device)

    def finish(back: OstreeDevice) -> None:
        state = back.updater().states.load()
        if state.refusal(scene.second) is None or state.phase is not Phase.IDLE:
            roll_back(back.updater())
        assert back.deployed()[0] == scene.first
        assert esp(back) == back.open().deployments()[0].name

    assert killed_everywhere(scene, device, lambda back: roll_back(back.updater()), finish) > 15
