"""The updater's command line: its exit codes and what it prints, in processes of their own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.loopback import serving
from tests.ostree_scene import OstreeDevice, Publisher, quiet_directory

_PROGRAM = "from overhaul.dialects.ostree.device.cli import main; main()"


class Desk:
    """A device that does not run, as it stands on a desk, and its updater's command line."""

    def __init__(self, place: Path, url: str) -> None:
        self.device = OstreeDevice.make(place / "device", url)
        self.config = place / "update.toml"
        self.settings = f'state_directory = "{place}/state"\n[hooks]\ndirectory = "{self.device.directory}/hooks"\n'
        self.config.write_text(self.settings + "[network]\nallow_http = true\n")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        options = [f"--sysroot={self.device.sysroot}", f"--config={self.config}", *arguments]
        return subprocess.run([sys.executable, "-c", _PROGRAM, *options], capture_output=True, text=True, check=False)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with quiet_directory() as place:
        yield Publisher(place / "publisher")


@pytest.fixture
def desk(publisher: Publisher) -> Iterator[Desk]:
    with serving(publisher.repository) as server:
        publisher.publish("1")
        made = Desk(publisher.directory.parent, server.url)
        made.device.install()
        made.device.booted = ""
        yield made


def test_a_script_learns_what_happened_from_the_exit_code(publisher: Publisher, desk: Desk) -> None:
    assert desk.run("--one-shot").returncode == 0
    assert desk.run("--one-shot", "--detailed-exit-code").returncode == 20
    second = publisher.publish("2")
    assert desk.run("-F", "-O", "--detailed-exit-code").returncode == 0
    desk.device.write_hook("post-apply", "00-bad", "exit 1")
    failed = desk.run("-O")
    assert (failed.returncode, "00-bad" in failed.stderr) == (9, True)
    assert desk.run("-O", "-P", "").returncode == 0
    assert desk.device.deployed()[0] == second
    told = json.loads(desk.run("--status", "--json").stdout)
    assert told["state"]["phase"] == "idle"
    assert [entry["number"] for entry in told["entries"]] == [0, 1]
    # Going back needs the hooks, too; what it could not finish it finishes, and goes no further back.
    assert desk.run("--rollback").returncode == 9
    assert desk.run("--rollback", "-P", "").returncode == 0
    assert desk.device.deployed()[1] == second
    assert desk.run("-O", "--detailed-exit-code").returncode == 21
    third = publisher.publish("0", timestamp=5)
    refused = desk.run("-O", "--json")
    assert (refused.returncode, json.loads(refused.stderr)["error"]) == (4, "OlderCommitError")
    assert third not in desk.device.deployed()
    desk.config.write_text(desk.settings)
    assert desk.run("-O").returncode == 4
    desk.config.write_text("nonsense = 1\n")
    assert desk.run("-O").returncode == 3
    assert desk.run("--no-such-option").returncode == 2


def test_conflicts_are_shown_before_anything_is_deployed(publisher: Publisher, desk: Desk) -> None:
    (desk.device.etc() / "motd").write_text("mine\n")
    publisher.publish("2", {"usr/etc/motd": "welcome to 2\n"})
    shown = desk.run("--preview")
    assert shown.stderr == "warning: /etc/motd: modified here, modified by the update: yours is kept\n"
    assert len(desk.device.deployed()) == 1


def test_an_owner_whose_conflicts_stop_the_update_is_told_so(publisher: Publisher, desk: Desk) -> None:
    (desk.device.etc() / "motd").write_text("mine\n")
    publisher.publish("2", {"usr/etc/motd": "welcome to 2\n"})
    desk.config.write_text(desk.config.read_text() + '[deploy]\nconflicts = "stop"\n')
    done = desk.run("--one-shot")
    assert done.returncode == 6
    assert done.stderr == (
        "warning: /etc/motd: modified here, modified by the update: stops the update\n"
        'error: Both this device and the new default changed /etc/motd, and conflicts = "stop" is set; take the change '
        'here back, or write conflicts = "keep-local", then run again.\n'
    )


def test_a_preview_tells_that_nothing_was_changed_here(publisher: Publisher, desk: Desk) -> None:
    publisher.publish("2")
    assert desk.run("--preview").stdout == "/etc: nothing was changed here, all of it will be the update's\nfetched 2\n"


def test_the_last_mode_wins_with_a_warning(desk: Desk) -> None:
    done = desk.run("-F", "-b")
    assert "warning: --boot-entries overrides --fetch-only" in done.stderr
    assert "boot entry 0 (latest):" in done.stdout
