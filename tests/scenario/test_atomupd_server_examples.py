"""The documented way from nothing to a served fleet, with the examples as they are."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.asgi import running

from overhaul.cli.atomupd import command
from overhaul.dialects.atomupd.serve import query_app_of

_EXAMPLES = Path(__file__).parents[2] / "examples" / "atomupd"


def _hierarchy(directory: Path, configuration: str) -> Path:
    subprocess.run(
        [sys.executable, _EXAMPLES / "make-image-hierarchy.py", directory / "images"], check=True, capture_output=True
    )
    return Path(shutil.copy(_EXAMPLES / configuration, directory))


def test_the_example_pool_is_served_and_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configuration = _hierarchy(tmp_path, "server-versions.conf")
    checked = CliRunner().invoke(command, ["check", str(configuration), "--json"])
    with running(query_app_of(configuration)) as site:
        question = "product=steamos&release=clockwerk&variant=steamdeck&arch=amd64&version=3.0&buildid=20190201"
        answer = site.ask(f"/?{question}&branch=stable")
        listed = site.ask("/list")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/images").symlink_to(tmp_path / "images")
    written = CliRunner().invoke(command, ["static", str(configuration), "--into", str(tmp_path / "tree")])

    assert json.loads(checked.stdout)["problems"] == []
    versions = [one["image"]["version"] for one in json.loads(answer.body)["minor"]["candidates"]]
    assert versions == ["3.1.0", "3.2.0"]
    assert len(json.loads(listed.body)["images"]) == 6
    assert written.exit_code == 0
    text = (tmp_path / "tree/clockwerk/steamos/amd64/steamdeck/stable/3.0.0/20190201.0.json").read_text()
    assert [one["image"]["version"] for one in json.loads(text)["minor"]["candidates"]] == versions


def test_the_example_snapshots_are_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with running(query_app_of(_hierarchy(tmp_path, "server-snapshots.conf"))) as site:
        question = "product=steamos&release=clockwerk&variant=devel&arch=amd64&version=snapshot&buildid=20190201.1"
        document = json.loads(site.ask(f"/?{question}").body)

    assert [one["image"]["buildid"] for one in document["minor"]["candidates"]] == ["20190201.9", "20190201.10"]
    assert document["major"]["release"] == "doom"


def test_a_check_names_what_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configuration = _hierarchy(tmp_path, "server-versions.conf")
    (tmp_path / "images" / "broken.manifest.json").write_text("{")
    checked = CliRunner().invoke(command, ["check", str(configuration)])

    assert "left out: broken.manifest.json" in checked.stderr
    assert checked.exit_code != 0
