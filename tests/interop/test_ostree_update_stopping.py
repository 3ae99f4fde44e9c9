"""Stopping and disabling the updater's service under a real systemd: nothing is left half-done, and it stays off."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.loopback import LoopbackServer, serving
from tests.ostree_container import PATIENCE_S, PROGRAM, REBOOTED, SERVICE, Container, container, system_files
from tests.ostree_scene import BRANCH, REMOTE, OstreeDevice, Publisher, ostree, quiet_directory

pytestmark = pytest.mark.timeout(1800)
_KERNEL = "usr/lib/modules/6.1/vmlinuz"


@dataclass
class Scene:
    """A device with its first release, and whoever publishes the second."""

    publisher: Publisher
    server: LoopbackServer
    device: OstreeDevice
    first: str


@pytest.fixture
def scene() -> Iterator[Scene]:
    with quiet_directory() as place:
        publisher = Publisher(place / "publisher")
        with serving(publisher.repository) as server:
            first = publisher.publish("1", system_files())
            device = OstreeDevice.make(place / "device", server.url)
            device.install()
            yield Scene(publisher, server, device, first)


def stopped_in_order(booted: Container) -> bool:
    """Tell whether systemd stopped the service without having to kill it."""
    shown = booted.show(SERVICE)
    return (shown["ActiveState"], shown["Result"]) == ("inactive", "success")


def freeze_when(process: int, is_reached: Callable[[], bool]) -> None:
    """Stop a process at once when a moment is reached, which is looked for without a pause."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_reached():
        assert time.monotonic() < deadline, "the moment never came"
    os.kill(process, signal.SIGSTOP)


def test_a_disabled_service_stays_off_after_a_restart_and_after_an_update_by_hand(scene: Scene) -> None:
    device = scene.device
    with container(device, device.booted) as booted:
        booted.read_until(f"up-to-date {scene.first[:12]}")
        booted.run("systemctl", "disable", "--now", SERVICE)
        assert stopped_in_order(booted)
        second = scene.publisher.publish("2", system_files())
    with container(device, device.booted) as booted:
        assert booted.until_started() == "running"
        assert booted.show(SERVICE)["ActiveState"] == "inactive"
        scene.server.requests.clear()
        assert booted.run(*PROGRAM, "--one-shot", "--no-reboot").splitlines()[-1].startswith("deployed 2 ")
        assert device.deployed() == [second, scene.first]
    third = scene.publisher.publish("3", system_files())
    with container(device, device.boot().name) as booted:
        booted.read_until("confirmed 2")
        assert booted.until_started() == "running"
        assert booted.run("systemctl", "is-enabled", SERVICE) == "disabled"
        assert booted.show(SERVICE)["ActiveState"] == "inactive"
        booted.run("systemctl", "enable", "--now", SERVICE)
        assert booted.process.wait(PATIENCE_S) == REBOOTED
    assert device.deployed() == [third, second]


def test_a_stop_in_the_middle_of_a_pull_leaves_nothing_half_written_and_the_next_start_goes_on(scene: Scene) -> None:
    device, server = scene.device, scene.server
    many = {f"usr/share/{number}": f"file {number}\n" * 100 for number in range(60)}
    second = scene.publisher.publish("2", {**system_files(), **many})
    is_silent, asked = threading.Event(), []

    def stay_silent_after_some(path: str) -> None:
        if path.endswith(".filez"):
            asked.append(path)
            if len(asked) > 20:
                is_silent.set()
                server.stay_silent(path)

    server.on_request = stay_silent_after_some
    with container(device, device.booted) as booted:
        assert is_silent.wait(PATIENCE_S)
        booted.run("systemctl", "stop", SERVICE)
        assert stopped_in_order(booted)
        assert device.deployed() == [scene.first]
        device.fsck()
        assert ostree("rev-parse", f"--repo={device.repository}", f"{REMOTE}:{BRANCH}").strip() == scene.first
        kept = {path.name for path in device.repository.glob("tmp/overhaul-staging-*/*.file")}
        assert kept
        server.on_request = lambda _path: None
        server.requests.clear()
        booted.run("systemctl", "start", SERVICE)
        booted.process.wait(PATIENCE_S)
    assert device.deployed() == [second, scene.first]
    again = {seen.path.removeprefix("objects/").replace("/", "") for seen in server.requests}
    assert not kept & {name.replace(".filez", ".file") for name in again}
    device.fsck()


def test_a_person_who_interrupts_an_update_by_hand_need_not_wait_for_a_silent_server(
    scene: Scene, tmp_path: Path
) -> None:
    device, server = scene.device, scene.server
    scene.publisher.publish("2", {**system_files(), "usr/share/new": "new\n"})
    asked = threading.Event()

    def stay_silent(path: str) -> None:
        if path.endswith(".filez"):
            asked.set()
            server.stay_silent(path)

    server.on_request = stay_silent
    config = tmp_path / "ostree-update.toml"
    config.write_text(f'state_directory = "{tmp_path}"\n[network]\nallow_http = true\n')
    command: list[str | Path] = [*PROGRAM, "--one-shot", "--sysroot", device.sysroot, "--config", config]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as updater:
        assert asked.wait(PATIENCE_S)
        updater.send_signal(signal.SIGINT)
        assert updater.wait(PATIENCE_S) == 130
        assert updater.stdout is not None
        assert updater.stdout.read().decode().startswith("Interrupted; what was done so far is kept")
    assert device.deployed() == [scene.first]
    device.fsck()


def test_a_stop_while_the_boot_entries_are_written_leaves_the_old_ones_and_the_next_start_finishes(
    scene: Scene,
) -> None:
    device = scene.device
    boot = device.sysroot / "boot"
    before = set((boot / "ostree").iterdir())
    link = (boot / "loader").readlink()
    with container(device, device.booted) as booted:
        booted.read_until(f"up-to-date {scene.first[:12]}")
        updater = booted.host_pid(int(booted.show(SERVICE)["MainPID"]))
        second = scene.publisher.publish("2", {**system_files(), _KERNEL: "another kernel\n" * 8_000_000})
        freeze_when(updater, lambda: set((boot / "ostree").iterdir()) != before)
        assert (boot / "loader").readlink() == link
        # systemd lets it go on when it has told it to end.
        booted.run("systemctl", "stop", SERVICE)
        assert stopped_in_order(booted)
        assert device.deployed() == [scene.first]
        device.fsck()
        booted.run("systemctl", "start", SERVICE)
        booted.process.wait(PATIENCE_S)
    assert device.deployed() == [second, scene.first]
    for one in device.open().deployments():
        assert (boot / one.entry.linux.lstrip("/")).stat().st_size > 0
    device.fsck()
