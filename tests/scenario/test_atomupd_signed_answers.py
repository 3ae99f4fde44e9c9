"""A device with a root of trust takes what the repository signed, whatever else the server may say."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.atomupd_answers import write_manifest
from tests.atomupd_devices import make_signer, write_configuration
from tests.loopback import LoopbackServer, serving
from tests.tools import need

from overhaul.dialects.atomupd.device.cli import main
from overhaul.policy.rollout import Rollout
from overhaul.progress import Silence
from overhaul.publishing.create import create_repository
from overhaul.publishing.opening import Repository, open_repository
from overhaul.publishing.policies import recall, set_rollout
from overhaul.publishing.publish import PublishRequest, publish
from overhaul.publishing.upkeep import refresh_repository
from overhaul.release.record import ReleaseId

_ANSWER = "atomupd/weather/meta/holo/weather/amd64/lite/stable/3.7.0/20260101.1.json"
_TABLE = """
[products.weather.atomupd]
release = "holo"
compatible = "weather"
key = "{key}"
certificate = "{certificate}"
bundle = "plain"
"""


@dataclass
class World:
    """A repository, the server before it, and a device on the first release."""

    directory: Path
    repository: Repository
    server: LoopbackServer

    @property
    def public(self) -> Path:
        return self.directory / "repository/store/public"

    def publish(self, version: str, build_id: str, *, percent: float | None = None) -> ReleaseId:
        source = self.directory / f"{version}.img"
        source.write_bytes(bytes(range(256)) * 1000 + version.encode())
        release = ReleaseId(product="weather", variant="lite", arch="amd64", version=version, build_id=build_id)
        request = PublishRequest(source=source, release=release, channel="stable", rollout_percent=percent)
        publish(self.repository, request, workers=1, progress=Silence())
        return release

    def configure(self, *, trusted: bool = True) -> Path:
        client = {"AllowHttp": "yes"}
        if trusted:
            client |= {"Root": str(self.directory / "root.json"), "TrustDirectory": str(self.directory / "trust")}
        return write_configuration(
            self.directory / "client.conf",
            {
                "Server": {
                    "MetaUrl": f"{self.server.url}/atomupd/weather/meta",
                    "ImagesUrl": f"{self.server.url}/atomupd/weather/images",
                },
                "Host": {
                    "Manifest": str(self.directory / "manifest.json"),
                    "RuntimeDir": str(self.directory / "run"),
                },
                "Client": client,
            },
        )

    def ask(self, *options: str, trusted: bool = True) -> int:
        return main(["--config", str(self.configure(trusted=trusted)), "--query-only", *options])

    def forge(self, path: str) -> None:
        """Let the server lie about the answer for this device."""
        document = json.loads((self.public / path).read_text())
        document["minor"]["candidates"][0]["update_path"] = "evil.raucb"
        (self.public / path).write_text(json.dumps(document))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for program in ("rauc", "mksquashfs", "openssl"):
        need(program)
    signer = make_signer(tmp_path)
    create_repository(tmp_path / "repository", products=("weather",), demo_keys=True)
    settings = tmp_path / "repository/overhaul.toml"
    table = _TABLE.format(key=signer.key, certificate=signer.certificate)
    settings.write_text(settings.read_text() + table)
    shutil.copy(tmp_path / "repository/root.json", tmp_path / "root.json")
    write_manifest(tmp_path / "manifest.json", product="weather", variant="lite", version="3.7", buildid="20260101.1")
    repository = open_repository(tmp_path / "repository")
    with serving(tmp_path / "repository/store/public") as server:
        world = World(tmp_path, repository, server)
        world.publish("3.7", "20260101.1")
        yield world


def _offered(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = capsys.readouterr().out
    return [one["update_path"].split("/")[3] for one in json.loads(text)["minor"]["candidates"]] if text else []


def test_signed_answers_are_the_static_tree(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert world.ask() == 0
    assert _offered(capsys) == []
    world.publish("3.8", "20260201.1")

    assert world.ask() == 0
    assert _offered(capsys) == ["3.8"]
    assert world.ask(trusted=False) == 0
    assert _offered(capsys) == ["3.8"]


def test_a_forged_answer_deceives_only_a_client_without_a_root(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.publish("3.8", "20260201.1")
    world.forge(_ANSWER)

    assert world.ask(trusted=False) == 0
    assert "evil" in capsys.readouterr().out
    assert world.ask() == 0
    assert _offered(capsys) == ["3.8"]


def test_forged_signed_answers_are_refused(
    world: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    world.publish("3.8", "20260201.1")
    for path in (world.public / "targets/weather/answers").iterdir():
        path.write_bytes(path.read_bytes().replace(b"image.raucb", b"evil_.raucb"))

    assert world.ask() == 1
    assert capsys.readouterr().out == ""
    assert "answers/atomupd.json" in caplog.text


def test_a_repository_set_back_to_the_day_before_is_refused(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(world.public, world.directory / "before")
    world.publish("3.8", "20260201.1")
    assert world.ask() == 0
    assert _offered(capsys) == ["3.8"]
    shutil.rmtree(world.public)
    (world.directory / "before").rename(world.public)

    assert world.ask() == 1
    assert capsys.readouterr().out == ""


def test_the_signed_answers_follow_rollouts_and_recalls(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    release = world.publish("3.8", "20260201.1", percent=50)
    assert world.ask() == 0
    assert _offered(capsys) == []

    set_rollout(world.repository, release, channel="stable", rollout=Rollout(percent=100))
    assert world.ask() == 0
    assert _offered(capsys) == ["3.8"]

    recall(world.repository, release, channel="stable", reason="it burns")
    refresh_repository(world.repository)
    assert world.ask() == 0
    assert _offered(capsys) == []


def test_a_branch_the_repository_does_not_sign_ends_with_2(world: World) -> None:
    assert world.ask("--branch", "nowhere") == 2


def test_the_root_must_be_readable_and_the_address_ours(world: World, caplog: pytest.LogCaptureFixture) -> None:
    (world.directory / "root.json").unlink()
    assert world.ask() == 1
    assert "root.json" in caplog.text

    configuration = world.configure()
    text = configuration.read_text()
    configuration.write_text(text.replace("/atomupd/weather/meta", "/elsewhere"))
    assert main(["--config", str(configuration), "--query-only"]) == 1
    assert "REPOSITORY/atomupd/PRODUCT/meta" in caplog.text
    configuration.write_text(text.replace("[Server]", f"[Server]\nQueryUrl = {world.server.url}/updates"))
    assert main(["--config", str(configuration), "--query-only"]) == 1
    assert "QueryUrl" in caplog.text
