"""The daemon as a user interface meets it: a private bus, the real busctl and gdbus, the real client and RAUC."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.atomupd_answers import image, static_files, update_to, write_manifest
from tests.atomupd_devices import (
    RaucDevice,
    Signer,
    image_bytes,
    make_casync_bundle,
    make_signer,
    rauc_device,
    write_configuration,
)
from tests.loopback import LoopbackServer, serving
from tests.tools import need
from tests.waiting import until

from overhaul.dialects.atomupd.candidates import NO_UPDATE

OLD, NEW = image_bytes(1), image_bytes(2)
NAME = "com.steampowered.Atomupd1"
PATH = "/com/steampowered/Atomupd1"
#: Longer than any answer takes on a busy machine.
_PATIENCE_S = 120
NEXT = image(version="3.7.0", buildid="20240201.1", estimated_size=123)
LATER = image(version="3.7.1", buildid="20240301.1", requires_checkpoint=1)


class DaemonDevice:
    """A device with a daemon on its bus, and a user interface's way to call it."""

    def __init__(self, device: RaucDevice, server: LoopbackServer) -> None:
        self.device = device
        self.server = server
        self.root = device.directory / "root"
        self.process: subprocess.Popen[bytes] | None = None
        self.configure()
        write_manifest(self.root / "manifest.json")

    def configure(self, **client: str) -> None:
        """Write the daemon's configuration."""
        directory = self.root / "etc/steamos-atomupd"
        directory.mkdir(parents=True, exist_ok=True)
        write_configuration(
            directory / "client.conf",
            {
                "Server": {
                    "MetaUrl": f"{self.server.url}/meta",
                    "ImagesUrl": self.server.url,
                    "Variants": "steamdeck;vanilla",
                    "Branches": "stable;beta",
                },
                "Host": {
                    "RuntimeDir": str(self.root / "run/steamos-atomupd"),
                    "Manifest": str(self.root / "manifest.json"),
                },
                "Client": {"AllowHttp": "yes", **client},
                "Install": {"RaucConfiguration": str(self.device.configuration)},
            },
        )

    def offer(self, *images: Any, **options: Any) -> None:
        """Let the server offer these images."""
        self.server.files.update(static_files(update_to(*images, **options)))

    def start(self) -> None:
        """Start the daemon, and wait for its name."""
        program = Path(sys.executable).with_name("atomupd-daemon")
        log = self.device.directory / "daemon.log"
        with log.open("wb") as stream:
            process = subprocess.Popen([program, "--root", self.root], env=self.device.environment, stderr=stream)
        self.process = process
        until(lambda: "Serving" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()

    def stop(self) -> None:
        """End the daemon."""
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(timeout=_PATIENCE_S) == 0
            self.process = None

    def busctl(self, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run busctl on the device's bus."""
        place = [f"--address={self.device.address}", f"--timeout={_PATIENCE_S}", "--json=short"]
        done = subprocess.run([need("busctl"), *place, *arguments], capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def call(self, member: str, *arguments: str) -> Any:
        """Call a method and return its values."""
        done = self.busctl("call", NAME, PATH, NAME, member, *arguments)
        return json.loads(done.stdout)["data"] if done.stdout.strip() else None

    def refused(self, member: str, *arguments: str) -> str:
        """Call a method that must fail, and return what it said."""
        done = self.busctl("call", NAME, PATH, NAME, member, *arguments, check=False)
        assert done.returncode != 0
        return done.stderr

    def read(self, name: str) -> Any:
        """Return a property's value."""
        return json.loads(self.busctl("get-property", NAME, PATH, NAME, name).stdout)["data"]

    def check(self, *options: str) -> Any:
        """Check for updates."""
        return self.call("CheckForUpdates", "a{sv}", *(options or ("0",)))

    def await_status(self, status: int) -> None:
        """Wait until the daemon has a status."""
        until(lambda: self.read("UpdateStatus") == status)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Signer]:
    directory = tmp_path_factory.mktemp("published")
    signer = make_signer(directory)
    make_casync_bundle(directory, "chunked", NEW, signer)
    return directory, signer


@pytest.fixture
def server(published: tuple[Path, Signer]) -> Iterator[LoopbackServer]:
    with serving(published[0]) as running:
        running.files.update(static_files(NO_UPDATE))
        yield running


@pytest.fixture
def stopped(published: tuple[Path, Signer], server: LoopbackServer, tmp_path: Path) -> Iterator[DaemonDevice]:
    """A device whose daemon a test starts itself."""
    with rauc_device(tmp_path / "device", published[1], image=OLD) as device:
        made = DaemonDevice(device, server)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def device(stopped: DaemonDevice) -> DaemonDevice:
    stopped.start()
    return stopped


def test_the_interface_is_the_one_user_interfaces_were_written_for(device: DaemonDevice) -> None:
    shown = device.busctl("introspect", NAME, PATH, NAME, "--no-legend", "--json=off").stdout
    found = {tuple(line.split()[:3]) for line in shown.splitlines()}
    methods = {
        "CheckForUpdates": "a{sv}",
        "StartUpdate": "s",
        "StartCustomUpdate": "a{sv}",
        "PauseUpdate": "-",
        "ResumeUpdate": "-",
        "CancelUpdate": "-",
        "SwitchToVariant": "s",
        "SwitchToBranch": "s",
        "ReloadConfiguration": "a{sv}",
        "EnableHttpProxy": "sia{sv}",
        "DisableHttpProxy": "-",
        "EnableDevKeys": "a{sv}",
        "DisableDevKeys": "a{sv}",
        "GetBuilds": "a{sv}",
        "SimulateUpdate": "a{sv}",
    }
    properties = {
        "Version": "u",
        "ProgressPercentage": "d",
        "EstimatedCompletionTime": "t",
        "UpdateStatus": "u",
        "UpdateBuildID": "s",
        "UpdateVersion": "s",
        "Variant": "s",
        "Branch": "s",
        "HttpProxy": "(si)",
        "FailureCode": "s",
        "FailureMessage": "s",
        "UpdatesAvailable": "a{sa{sv}}",
        "UpdatesAvailableLater": "a{sa{sv}}",
        "CurrentVersion": "s",
        "CurrentBuildID": "s",
        "KnownVariants": "as",
        "KnownBranches": "as",
        "KnownDevBranches": "as",
        "SimulateUpdateResult": "a{sv}",
        "SimulateUpdateStatus": "u",
        "SimulateFailureMessage": "s",
    }
    expected = {(f".{name}", "method", signature) for name, signature in methods.items()}
    expected |= {(f".{name}", "property", signature) for name, signature in properties.items()}
    assert found == expected
    assert device.read("Version") == 8


def test_what_runs_and_what_can_be_followed_is_told(device: DaemonDevice) -> None:
    names = ("CurrentVersion", "CurrentBuildID", "Variant", "Branch", "KnownVariants", "KnownBranches")
    assert [device.read(name) for name in names] == [
        "3.6.0",
        "20240101.1",
        "steamdeck",
        "stable",
        ["steamdeck", "vanilla"],
        ["stable", "beta"],
    ]


def test_a_check_finds_what_is_next_and_what_comes_later(device: DaemonDevice) -> None:
    device.offer(NEXT, LATER)
    available, later = device.check()
    shown = {name: field["data"] for name, field in available["20240201.1"].items()}
    assert shown == {"variant": "steamdeck", "branch": "stable", "version": "3.7.0", "estimated_size": 123}
    assert later["20240301.1"]["requires"]["data"] == "20240201.1"
    assert list(device.read("UpdatesAvailable")) == ["20240201.1"]
    assert list(device.read("UpdatesAvailableLater")) == ["20240301.1"]


def test_a_check_that_finds_nothing_says_so(device: DaemonDevice) -> None:
    device.offer(NEXT)
    device.check()
    device.server.files.update(static_files(NO_UPDATE))
    assert device.check() == [{}, {}]
    assert device.read("UpdatesAvailable") == {}


def test_the_penultimate_image_is_asked_for(device: DaemonDevice) -> None:
    device.server.files["meta/holo/steamos/amd64/steamdeck/stable.second_last.json"] = static_files(
        update_to(NEXT)
    ).popitem()[1]
    available, _later = device.check("1", "penultimate", "b", "true")
    assert list(available) == ["20240201.1"]


def test_an_update_is_installed_and_waits_for_the_restart(device: DaemonDevice) -> None:
    device.offer(NEXT)
    device.check()
    device.call("StartUpdate", "s", "20240201.1")
    device.await_status(3)
    assert device.device.slot_b.read_bytes()[: len(NEW)] == NEW
    assert device.device.told_the_boot_loader()[-1] == "set-primary B"
    names = ("ProgressPercentage", "EstimatedCompletionTime", "UpdateBuildID", "UpdateVersion", "FailureMessage")
    assert [device.read(name) for name in names] == [100, 0, "20240201.1", "3.7.0", ""]
    marker = device.root / "run/steamos-atomupd/reboot_for_update"
    assert marker.read_text() == "20240201.1-3.7.0\n"
    assert device.check() == [{}, {}]

    device.stop()
    device.start()
    assert [device.read(name) for name in ("UpdateStatus", "UpdateBuildID")] == [3, "20240201.1"]


def test_a_user_interface_hears_of_every_step(device: DaemonDevice) -> None:
    device.offer(NEXT)
    device.check()
    monitor = subprocess.Popen(
        [need("gdbus"), "monitor", "--address", device.device.address, "--dest", NAME],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert monitor.stdout is not None
        assert "Monitoring" in monitor.stdout.readline()
        assert "is owned by" in monitor.stdout.readline()
        device.call("StartUpdate", "s", "20240201.1")
        heard = []
        for line in monitor.stdout:
            heard.append(line)
            if "'UpdateStatus': <uint32 3>" in line:
                break
        assert any("'UpdateStatus': <uint32 1>" in line for line in heard)
        assert any("'UpdateBuildID': <'20240201.1'>" in line for line in heard)
        assert any("'ProgressPercentage': <95.0>" in line for line in heard)
    finally:
        monitor.terminate()
        monitor.communicate()


def held_back(device: DaemonDevice) -> threading.Event:
    """Let the server answer nothing of the bundle until the event is set; wait until RAUC asks."""
    go_on, asked = threading.Event(), threading.Event()

    def hold(path: str) -> None:
        if path == "chunked.raucb":
            asked.set()
            while not (go_on.wait(0.02) or device.server.closing.is_set()):
                pass

    device.server.on_request = hold
    device.offer(NEXT)
    device.check()
    device.call("StartUpdate", "s", "20240201.1")
    assert asked.wait(timeout=_PATIENCE_S)
    return go_on


def state_of(pid: int) -> str:
    """Return the letter that the kernel has for what a process does; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_an_update_is_paused_and_goes_on(device: DaemonDevice) -> None:
    go_on = held_back(device)
    client = int((device.root / "run/atomupd-daemon/client.pid").read_text())
    rauc = device.device.pid
    device.call("PauseUpdate")
    assert device.read("UpdateStatus") == 2
    until(lambda: [state_of(client), state_of(rauc)] == ["T", "T"])
    assert "could be paused" in device.refused("PauseUpdate")
    assert "under way" in device.refused("CheckForUpdates", "a{sv}", "0")
    device.call("ResumeUpdate")
    assert device.read("UpdateStatus") == 1
    go_on.set()
    device.await_status(3)
    assert device.device.slot_b.read_bytes()[: len(NEW)] == NEW


@pytest.mark.parametrize("is_paused", [False, True])
def test_an_update_is_cancelled_and_nothing_of_it_runs_on(device: DaemonDevice, is_paused: bool) -> None:
    held_back(device)
    client = int((device.root / "run/atomupd-daemon/client.pid").read_text())
    if is_paused:
        device.call("PauseUpdate")
    device.call("CancelUpdate")
    assert device.read("UpdateStatus") == 5
    assert not Path(f"/proc/{client}").exists()
    until(lambda: device.device.has_ended)
    assert "could be cancelled" in device.refused("CancelUpdate")
    assert "set-primary B" not in device.device.told_the_boot_loader()


def test_a_failed_update_says_why(device: DaemonDevice) -> None:
    device.offer(NEXT, stem="absent")
    device.check()
    device.call("StartUpdate", "s", "20240201.1")
    device.await_status(4)
    assert "HTTP returned >=400" in device.read("FailureMessage")
    assert device.read("FailureCode") == f"{NAME}.Error.Failed"


def test_a_killed_client_is_a_failed_update_that_can_be_started_again(device: DaemonDevice) -> None:
    go_on = held_back(device)
    os.kill(int((device.root / "run/atomupd-daemon/client.pid").read_text()), signal.SIGKILL)
    device.await_status(4)
    device.device.restart()
    go_on.set()
    device.call("StartUpdate", "s", "20240201.1")
    device.await_status(3)


def test_a_daemon_that_was_killed_leaves_nothing_running_behind(device: DaemonDevice) -> None:
    held_back(device)
    client = int((device.root / "run/atomupd-daemon/client.pid").read_text())
    assert device.process is not None
    device.process.kill()
    device.process.wait()
    assert Path(f"/proc/{client}").exists()
    device.start()
    until(lambda: state_of(client) in {"", "Z"})
    assert device.read("UpdateStatus") == 0


def test_a_custom_bundle_is_installed(device: DaemonDevice) -> None:
    device.call("StartCustomUpdate", "a{sv}", "1", "update_path", "s", "chunked.raucb")
    device.await_status(3)
    assert device.device.slot_b.read_bytes()[: len(NEW)] == NEW


@pytest.mark.parametrize("options", [["0"], ["2", "url", "s", "https://a/b.raucb", "update_path", "s", "c.raucb"]])
def test_a_custom_bundle_has_one_address(device: DaemonDevice, options: list[str]) -> None:
    assert "either url or update_path" in device.refused("StartCustomUpdate", "a{sv}", *options)


def test_only_what_was_offered_is_started(device: DaemonDevice) -> None:
    device.offer(NEXT, LATER)
    device.check()
    for build_id in ("20240301.1", "20990101.1", ""):
        assert "is not offered as the next update" in device.refused("StartUpdate", "s", build_id)
    assert device.read("UpdateStatus") == 0


def test_another_branch_is_followed_from_then_on(device: DaemonDevice) -> None:
    device.offer(NEXT)
    device.check()
    device.call("SwitchToBranch", "s", "beta")
    assert device.read("UpdatesAvailable") == {}
    device.server.files |= static_files(update_to(LATER), branch="beta")
    available, _later = device.check()
    assert list(available) == ["20240301.1"]
    device.stop()
    device.start()
    assert device.read("Branch") == "beta"
    assert "There is no branch 'nightly'" in device.refused("SwitchToBranch", "s", "nightly")
    assert "There is no variant '../x'" in device.refused("SwitchToVariant", "s", "../x")


def test_what_is_followed_and_gone_is_given_up_for_the_default(device: DaemonDevice) -> None:
    device.call("SwitchToBranch", "s", "beta")
    assert "follows steamdeck stable again" in device.refused("CheckForUpdates", "a{sv}", "0")
    assert device.read("Branch") == "stable"
    assert device.check() == [{}, {}]


def test_a_variant_that_ended_is_replaced_for_good(device: DaemonDevice) -> None:
    device.offer(image(variant="vanilla", version="3.7.0", buildid="20240201.1"), replacement="vanilla")
    device.check()
    assert device.read("Variant") == "vanilla"
    assert "Variant=vanilla" in (device.root / "etc/steamos-atomupd/preferences.conf").read_text()


def test_trouble_of_the_server_may_be_tried_again(device: DaemonDevice) -> None:
    [path] = static_files(NO_UPDATE)
    device.server.behave(path, statuses=[503])
    done = subprocess.run(
        [
            *(need("gdbus"), "call", "--address", device.device.address, "--dest", NAME, "--object-path", PATH),
            *("--method", f"{NAME}.CheckForUpdates", "{}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{NAME}.Error.MaybeRetryError" in done.stderr
    assert "503" in done.stderr
    assert device.check() == [{}, {}]


def test_what_can_be_followed_comes_from_the_server(stopped: DaemonDevice) -> None:
    path = "meta/holo/steamos/amd64/steamdeck/remote-info.conf"
    stopped.server.files[path] = b"[Server]\nVariants = steamdeck;handheld;../x\nBranches = stable;rc\n\n"
    stopped.start()
    until(lambda: stopped.read("KnownVariants") == ["steamdeck", "handheld"])
    assert stopped.read("KnownBranches") == ["stable", "rc"]
    del stopped.server.files[path]
    stopped.stop()
    stopped.start()
    assert stopped.read("KnownBranches") == ["stable", "rc"]


def test_the_branch_of_a_client_of_the_past_is_taken_over_once(stopped: DaemonDevice) -> None:
    legacy = stopped.root / "var/lib/steamos-branch"
    legacy.parent.mkdir(parents=True)
    legacy.write_text("beta\n")
    stopped.start()
    assert stopped.read("Branch") == "beta"
    assert not legacy.exists()


def test_the_proxy_is_used_and_kept(device: DaemonDevice) -> None:
    address, port = device.server.url.removeprefix("http://").split(":")
    device.call("EnableHttpProxy", "sia{sv}", address, port, "0")
    assert device.read("HttpProxy") == [address, int(port)]
    device.offer(NEXT)
    device.check()
    device.call("DisableHttpProxy")
    assert device.read("HttpProxy") == ["", 0]
    assert "are no proxy" in device.refused("EnableHttpProxy", "sia{sv}", "a b", "1", "0")


def test_a_reload_takes_a_new_configuration(device: DaemonDevice) -> None:
    configuration = device.root / "etc/steamos-atomupd/client.conf"
    configuration.with_name("client-dev.conf").write_text(
        configuration.read_text().replace("stable;beta", "stable;main\nBranchesDev = tmp-1")
    )
    device.call("ReloadConfiguration", "a{sv}", "0")
    assert device.read("KnownBranches") == ["stable", "main"]
    assert device.read("KnownDevBranches") == ["tmp-1"]


def test_the_list_of_builds_is_fetched(device: DaemonDevice) -> None:
    device.server.files["meta/holo/steamos/amd64/vanilla/builds.json"] = b"[]"
    path = Path(*device.call("GetBuilds", "a{sv}", "1", "variant", "s", "vanilla"))
    assert (path.name, path.read_bytes()) == ("builds-vanilla.json", b"[]")
    assert "There is no variant" in device.refused("GetBuilds", "a{sv}", "1", "variant", "s", "../../x")


def test_what_is_not_supported_says_so(device: DaemonDevice) -> None:
    for member in ("EnableDevKeys", "DisableDevKeys", "SimulateUpdate"):
        assert "is not supported" in device.refused(member, "a{sv}", "0")


def test_only_root_may_change_anything_where_there_is_no_polkit(device: DaemonDevice) -> None:
    # uid 65534 is nobody.
    command = [need("setpriv"), "--reuid=65534", "--clear-groups", need("gdbus"), "call"]
    to = ["--address", device.device.address, "--dest", NAME, "--object-path", PATH]
    done = subprocess.run(
        [*command, *to, "--method", f"{NAME}.SwitchToBranch", "beta"], capture_output=True, text=True, check=False
    )
    assert "Not authorized for com.steampowered.atomupd1.switch-variant-or-branch" in done.stderr
    assert device.read("Branch") == "stable"


def test_a_second_daemon_steps_aside(device: DaemonDevice) -> None:
    program = Path(sys.executable).with_name("atomupd-daemon")
    done = subprocess.run(
        [program, "--root", device.root], env=device.device.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "another program has the name" in done.stderr
