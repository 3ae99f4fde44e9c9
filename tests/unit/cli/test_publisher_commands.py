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
from overhaul.policy.hardware import Absent, HardwareRules, OneOf, UnusableHardwareRuleError
from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.publishing.opening import Repository

_RELEASE = "kiosk/shop/x86_64/1.0/1"
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
    ["channel", "hardware"],
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--product", "nope"], "nope"),
        (["--channel", "nope"], "no channel 'nope'"),
        (["--product", "kiosk", "--channel", "nope"], "no channel 'nope'"),
    ],
)
def test_a_list_of_what_nobody_knows_is_refused(repository: Repository, words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        _run("release", "list", "--repository", str(repository.directory), *words)


def test_a_channel_without_releases_is_told_as_such(repository: Repository) -> None:
    told = _run("release", "list", "--repository", str(repository.directory), "--channel", "beta")
    assert told == "No release is published.\n"


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


def test_an_operator_sets_the_steps_of_a_rollout(repository: Repository) -> None:
    where = ["--channel", "stable", "--repository", str(repository.directory)]
    told = _run("channel", "rollout", _RELEASE, "1", "--step", "2026-05-02=10", "--step", "4102444800=all", *where)

    entry = repository.published().policies["kiosk/policy/stable.json"].entries[0]
    assert entry.rollout == Rollout(
        percent=1,
        steps=(RolloutStep(since=1_777_680_000, percent=10), RolloutStep(since=4_102_444_800, percent=100)),
    )
    # The first step lies in the past.
    assert "is open to 10 % of the devices" in told
    assert "from 2026-05-02 00:00:00 UTC on to 10 %" in told
    assert "10 % from 2026-05-02" in _run("channel", "list", "--repository", str(repository.directory))


@pytest.mark.parametrize("steps", [["2026-05-02"], ["soon=5"], ["2026-05-02=x"], ["2026-05-02=5", "2026-05-01=9"]])
def test_a_step_that_cannot_be_meant_is_refused(repository: Repository, steps: list[str]) -> None:
    options = [word for step in steps for word in ("--step", step)]
    with pytest.raises(InputError):
        _run(
            "channel",
            "rollout",
            _RELEASE,
            "1",
            *options,
            "--channel",
            "beta",
            "--repository",
            str(repository.directory),
        )


def test_an_operator_sets_the_hardware_a_release_is_meant_for(repository: Repository) -> None:
    where = ["--channel", "stable", "--repository", str(repository.directory)]
    allow = '{"is": "one_of", "fact": "board", "values": ["rpi4", "rpi5"]}'
    told = _run(
        "channel", "hardware", _RELEASE, "--allow", allow, "--deny", '[{"is": "absent", "fact": "tpm"}]', *where
    )

    entry = repository.published().policies["kiosk/policy/stable.json"].entries[0]
    assert entry.hardware == HardwareRules(
        allow=(OneOf(fact="board", values=("rpi4", "rpi5")),), deny=(Absent(fact="tpm"),)
    )
    assert "board, tpm" in told
    _run("channel", "hardware", _RELEASE, "--any", *where)
    assert repository.published().policies["kiosk/policy/stable.json"].entries[0].hardware is None


@pytest.mark.parametrize("rule", ["", "{", "5", "[1]", '{"is": "odd"}', '{"is": "number", "fact": "ram"}', "\udce4"])
def test_a_hardware_rule_that_cannot_be_meant_is_refused(repository: Repository, rule: str) -> None:
    with pytest.raises(UnusableHardwareRuleError):
        _run(
            "channel",
            "hardware",
            _RELEASE,
            "--allow",
            rule,
            "--channel",
            "beta",
            "--repository",
            str(repository.directory),
        )


@pytest.mark.parametrize("days", ["nan", "1e300", "inf", "-1"])
def test_a_grace_period_beyond_any_calendar_is_wrong_usage(repository: Repository, days: str) -> None:
    with pytest.raises(click.UsageError):
        _run("repository", "prune", "--dry-run", "--grace-days", days, "--repository", str(repository.directory))
