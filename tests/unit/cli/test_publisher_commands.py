"""The publisher's commands explain themselves, and their faults are one sentence with the right exit code."""

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from tests.unit.publishing.building import make_repository, publish_image, random_bytes, write_image

from overhaul.cli import cli
from overhaul.errors import InputError, OperatorError, TrustError
from overhaul.publishing.opening import Repository

_COMMANDS = [
    ["init"],
    ["publish"],
    ["release", "list"],
    ["release", "show"],
    ["release", "promote"],
    ["release", "recall"],
    ["release", "drop"],
    ["channel", "list"],
    ["channel", "rollout"],
    ["channel", "floor"],
    ["repository", "verify"],
    ["repository", "refresh"],
    ["repository", "prune"],
    ["repository", "stats"],
    ["keys", "list"],
]


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repo")
    publish_image(repository, write_image(tmp_path / "image", random_bytes(1)))
    return repository


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_help_shows_an_example_and_json(command: list[str]) -> None:
    told = _run(*command, "--help")

    assert "Example" in told
    assert "--json" in told
    assert f"overhaul {' '.join(command)}" in told


@pytest.mark.parametrize(
    "command", [["release", "list"], ["channel", "list"], ["repository", "stats"], ["keys", "list"]]
)
def test_json_is_one_document(repository: Repository, command: list[str]) -> None:
    assert json.loads(_run(*command, "--repository", str(repository.directory), "--json"))


def test_a_directory_without_a_repository_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="overhaul init"):
        _run("release", "list", "--repository", str(tmp_path))


def test_a_repository_is_made_once(repository: Repository) -> None:
    with pytest.raises(InputError, match="already is a repository"):
        _run("init", str(repository.directory), "--product", "kiosk")


def test_keys_inside_the_repository_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lies inside the repository"):
        _run("init", str(tmp_path / "repo"), "--keys", str(tmp_path / "repo" / "keys"))
    assert not (tmp_path / "repo").exists()


def test_verify_lists_each_fault_and_fails(repository: Repository) -> None:
    [pack] = repository.storage.list_objects("public/content/packs/")
    repository.storage.delete(pack.key)
    result = CliRunner().invoke(
        cli, ["repository", "verify", "--repository", str(repository.directory)], standalone_mode=False
    )

    assert isinstance(result.exception, TrustError)
    assert "missing: content/packs/" in result.output


def test_a_fault_is_one_sentence_and_the_exit_code_of_its_family(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "overhaul", "release", "show", "x", "--repository", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == OperatorError.exit_code
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1


def test_delta_from_and_no_delta_exclude_each_other(tmp_path: Path) -> None:
    line = ["--product", "a", "--variant", "b", "--arch", "c", "--channel", "d", "--version", "1", "--build-id", "1"]

    with pytest.raises(click.UsageError, match="exclude"):
        _run("publish", str(tmp_path), *line, "--no-delta", "--delta-from", "1")
