"""`overhaul kit` as a person types it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.fleet import PRODUCT, RealDevice, RealRepository, small_image

from overhaul.cli import cli

SIZE = 1 << 20


@pytest.fixture
def scene(tmp_path: Path) -> tuple[RealRepository, RealDevice]:
    repository = RealRepository(tmp_path / "repository")
    for version in ("1.0", "2.0"):
        repository.publish(small_image(tmp_path / f"{version}.img", version), version)
    device = RealDevice.make(
        tmp_path / "device", url="https://192.0.2.1", root=repository.root, image=tmp_path / "1.0.img",
        version="1.0", slot_size=SIZE,
    )  # fmt: skip
    return repository, device


def said(*words: str | Path) -> str:
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)
    assert done.return_value in {None, 0}
    return done.output


def test_a_kit_goes_out_and_comes_back(scene: tuple[RealRepository, RealDevice], tmp_path: Path) -> None:
    repository, device = scene
    kit, where = tmp_path / "a.kit", ("--repository", repository.directory)
    shown = said("kit", "export", kit, "--product", PRODUCT, "--channel", "stable", "--valid-days", "9", *where)
    assert "2.0 (b2.0)" in shown
    assert "devices refuse it afterwards" in shown
    shown = said("kit", "install", kit, "--config", device.configuration)
    assert "Installed    2.0 (b2.0) into slot B, from 1.0 (b1.0)" in shown
    assert "Receipt" in shown
    assert "1 receipts; 1 new ones imported." in said("kit", "receipts", kit, *where)
    document = json.loads(said("kit", "receipts", kit, "--json", *where))
    assert document["imported"] == 0
    assert [report["outcome"] for report in document["receipts"]] == ["installed"]
    assert document["receipts"][0]["bytes_received"] == 0


def test_the_json_of_an_export_names_what_it_carries(scene: tuple[RealRepository, RealDevice], tmp_path: Path) -> None:
    repository, _device = scene
    (tmp_path / "stick").mkdir()
    words = ("kit", "export", tmp_path / "stick", "--product", PRODUCT, "--channel", "stable", "--json")
    document = json.loads(said(*words, "--repository", repository.directory))
    assert [release["version"] for release in document["manifest"]["releases"]] == ["2.0"]
    again = json.loads(said(*words, "--repository", repository.directory))
    assert again["kept_bytes"] > again["size"] / 2
