"""The life of a device by the commands a person types: real publisher, real ext4 images, real HTTP, real agent.

Only the restart is simulated, by the file boot backend. The health check reads the running slot's own file system.
"""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.loopback import LoopbackServer, serving
from tests.tools import need

from overhaul.install.fileboot import FileBoot

IMAGE_SIZE = 12 << 20
#: Runs its last word's presence in the image as a check: "inside" the slot without starting it.
ENTER = """#!/bin/sh
image=$1
shift
debugfs -R "cat $1" "$image" 2>/dev/null | grep -q .
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def overhaul(*words: str | Path) -> Done:
    """Run the product as a person does."""
    done = subprocess.run(
        [sys.executable, "-m", "overhaul", *map(str, words)], capture_output=True, text=True, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


def ext4(directory: Path, version: str, *, station: bool = True) -> Path:
    """Make a root file system whose versions share most of their bytes."""
    tree = directory / f"tree-{version}"
    (tree / "usr/share").mkdir(parents=True)
    (tree / "opt").mkdir()
    chance = random.Random("shared")
    for number in range(24):
        (tree / f"usr/share/file-{number}").write_bytes(chance.randbytes(300_000))
    (tree / "usr/share/changed").write_bytes(random.Random(version).randbytes(200_000))
    (tree / "etc").mkdir()
    (tree / "etc/os-release").write_text(f"VERSION_ID={version}\n")
    if station:
        (tree / "opt/station").write_text(f"the weather station of {version}\n")
    image = directory / f"{version}.ext4"
    with image.open("wb") as stream:
        stream.truncate(IMAGE_SIZE)
    subprocess.run(
        [need("mkfs.ext4"), "-q", "-d", str(tree), "-U", "f7e8d9c0-0000-4000-8000-000000000001",
         "-E", "hash_seed=f7e8d9c0-0000-4000-8000-000000000002", "-b", "4096", str(image)],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return image


@dataclass
class World:
    """A repository behind a web server, and a device."""

    directory: Path
    server: LoopbackServer
    images: dict[str, Path] = field(default_factory=dict)

    @property
    def repository(self) -> Path:
        return self.directory / "repository"

    @property
    def config(self) -> Path:
        return self.directory / "device/device.toml"

    @property
    def boot(self) -> FileBoot:
        return FileBoot(self.directory / "device/boot.json", ("A", "B"))

    def slot(self, name: str) -> Path:
        return self.directory / f"device/slot-{name}.img"

    def publish(self, version: str, *, station: bool = True) -> None:
        self.images[version] = ext4(self.directory, version, station=station)
        done = overhaul(
            "publish", self.images[version], "--repository", self.repository, "--product", "weather", "--variant",
            "lite", "--arch", "amd64", "--channel", "stable", "--version", version, "--build-id", f"b{version}",
        )  # fmt: skip
        assert done.code == 0, done.err

    def device(self, *words: str) -> Done:
        return overhaul("device", *words, "--config", self.config)

    def runs(self, version: str) -> bool:
        """Whether the running slot holds the image of a version, byte for byte."""
        running = self.slot(self.boot.booted()).read_bytes()
        return running == self.images[version].read_bytes()


def init_device(world: World, *words: str) -> Done:
    return world.device(
        "init", "--product", "weather", "--variant", "lite", "--arch", "amd64", "--channel", "stable",
        "--version", "1.0", "--build-id", "b1.0", "--url", world.server.url, "--slot", "A=slot-A.img",
        "--slot", "B=slot-B.img", "--boot", "file", "--state-directory", "state", *words,
    )  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    need("debugfs")
    done = overhaul("init", tmp_path / "repository", "--product", "weather", "--demo-keys")
    assert done.code == 0, done.err
    with serving(tmp_path / "repository/store/public") as server:
        made = World(tmp_path, server)
        made.publish("1.0")
        (tmp_path / "device").mkdir()
        shutil.copy(made.images["1.0"], made.slot("A"))
        with made.slot("B").open("wb") as stream:
            stream.truncate(IMAGE_SIZE)
        shutil.copy(tmp_path / "repository/root.json", tmp_path / "device/root.json")
        done = init_device(made, "--allow-http")
        assert done.code == 0, done.err
        enter = tmp_path / "enter"
        enter.write_text(ENTER)
        text = made.config.read_text().replace("commands = []", 'commands = [["/opt/station"]]')
        made.config.write_text(text.replace("[reboot]", f'enter = ["/bin/sh", "{enter}", "{{path}}"]\n[reboot]'))
        made.boot.simulate_boot()
        yield made


def test_a_device_is_updated_confirmed_saved_from_a_bad_release_and_will_not_take_it_again(world: World) -> None:
    nothing = world.device("check")
    assert nothing.code == 20, nothing.err
    assert "nothing newer" in nothing.out

    world.publish("2.0")
    offer = world.device("check", "--json")
    assert offer.code == 0, offer.err
    assert offer.json["decision"]["decision"] == "offer"
    assert world.slot("B").read_bytes() == bytes(IMAGE_SIZE)

    updated = world.device("update", "--json")
    assert updated.code == 0, updated.err
    told = updated.json
    assert told["slot"] == "B"
    assert told["bytes_received"] < IMAGE_SIZE / 10
    assert told["requests"] <= 64
    assert told["peak_memory_bytes"] <= 128 << 20
    assert told["restart"]["restart"] == "left-to-owner"

    ready = world.device("update")
    assert ready.code == 0, ready.err
    assert "already" in ready.out

    assert world.boot.simulate_boot() == "B"
    assert world.runs("2.0")
    early = world.device("update")
    assert early.code == 6
    assert "overhaul device confirm" in early.err
    confirmed = world.device("confirm")
    assert confirmed.code == 0, confirmed.err
    assert "ok" in confirmed.out
    assert world.device("confirm").code == 20
    assert world.device("check").code == 20

    world.publish("3.0", station=False)
    shown = world.device("update")
    assert shown.code == 0, shown.err
    assert {line.split()[0] for line in shown.out.splitlines()} >= {"Installed", "Downloaded", "Signatures", "Peak"}
    assert world.boot.simulate_boot() == "A"
    assert world.runs("3.0")
    sick = world.device("confirm", "--json")
    assert sick.code == 6
    assert json.loads(sick.err)["error"] == "UnhealthyError"
    assert world.boot.simulate_boot() == "B"
    assert world.runs("2.0")
    held = world.device("update", "--json")
    assert held.code == 21
    assert "rolled back" in held.json["decision"]["reasons"][0]["text"]

    world.publish("4.0")
    assert world.device("update").code == 0
    assert world.boot.simulate_boot() == "A"
    assert world.device("confirm").code == 0
    assert world.runs("4.0")

    back = world.device("rollback")
    assert back.code == 0, back.err
    assert world.boot.simulate_boot() == "B"
    assert world.device("confirm").code == 0
    assert world.runs("2.0")
    status = world.device("status", "--json").json
    assert (status["running"]["version"], status["phase"]) == ("2.0", "idle")
    assert [refused["version"] for refused in status["refused"]] == ["3.0", "4.0"]
    assert world.device("status").code == 0
    kinds = [event["kind"] for event in world.device("history", "--json").json]
    assert kinds == [
        "started", "installed", "confirmed",
        "started", "installed", "unhealthy", "rolled-back",
        "started", "installed", "confirmed",
        "started", "confirmed",
    ]  # fmt: skip
    assert "unhealthy" in world.device("history").out


def test_an_unchanged_poll_is_one_conditional_request_with_an_empty_answer(world: World) -> None:
    assert world.device("check").code == 20
    before, body_before = len(world.server.requests), world.server.body_bytes
    assert world.device("check").code == 20
    (seen,) = world.server.requests[before:]
    assert seen.path == "metadata/timestamp.json"
    assert "if-none-match" in seen.headers
    assert world.server.body_bytes == body_before


def test_an_update_from_a_broken_repository_fails_without_harm_and_goes_on_when_it_is_whole(world: World) -> None:
    world.publish("2.0")
    public = world.repository / "store/public/content"
    hidden = [path for path in public.rglob("*") if path.suffix in {".delta", ".pack"}]
    for path in hidden:
        path.rename(path.with_name(path.name + ".away"))
    failed = world.device("update")
    assert failed.code == 5, failed.err
    assert world.device("status", "--json").json["phase"] in {"idle", "installing"}
    assert world.boot.simulate_boot() == "A"
    assert world.runs("1.0")
    for path in hidden:
        path.with_name(path.name + ".away").rename(path)
    assert world.device("update").code == 0
    assert world.boot.simulate_boot() == "B"
    assert world.runs("2.0")


def test_plain_http_is_refused_unless_the_configuration_says_otherwise(world: World) -> None:
    world.config.write_text(world.config.read_text().replace("allow_http = true", "allow_http = false"))
    refused = world.device("check")
    assert refused.code == 4
    assert "allow_http" in refused.err
    assert world.server.requests == []


def test_a_device_that_trusts_another_root_takes_nothing(world: World) -> None:
    other = overhaul("init", world.directory / "other", "--product", "weather", "--demo-keys")
    assert other.code == 0, other.err
    shutil.copy(world.directory / "other/root.json", world.directory / "device/root.json")
    world.publish("2.0")
    refused = world.device("update")
    assert refused.code == 4, refused.err
    assert world.device("status", "--json").json["phase"] == "idle"
    assert world.slot("B").read_bytes() == bytes(IMAGE_SIZE)


def test_a_damaged_running_slot_costs_bytes_and_not_the_update(world: World) -> None:
    with world.slot("A").open("r+b") as stream:
        stream.seek(3 << 20)
        stream.write(b"damage" * 1000)
    world.publish("2.0")
    assert world.device("update").code == 0
    world.boot.simulate_boot()
    assert world.runs("2.0")


def test_a_configuration_is_not_overwritten_and_a_wrong_one_is_refused_by_name(world: World) -> None:
    again = init_device(world)
    assert again.code == 3
    assert "--force" in again.err
    world.config.write_text(world.config.read_text().replace("attempts = 3", "attempt = 3"))
    wrong = world.device("status")
    assert wrong.code == 3
    assert "attempt" in wrong.err


def test_the_agent_loads_nothing_of_the_server_or_the_publisher(world: World) -> None:
    world.publish("2.0")
    program = (
        "import sys\n"
        "from overhaul.cli import cli\n"
        f"cli.main(['device', 'update', '--config', {str(world.config)!r}], standalone_mode=False)\n"
        "heavy = {'fastapi', 'pydantic', 'sqlalchemy', 'obstore', 'hdiffpatch', 'overhaul.publishing', "
        "'overhaul.repository', 'overhaul.server'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
