"""`overhaul policy`: evidence out of the server's database, decisions signed, and policies tried beforehand."""

import json
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from tests.published import PublishedRepository

from overhaul.cli import cli
from overhaul.cli.simulating import EmptyFleetError
from overhaul.errors import InputError
from overhaul.policy.document import encode_policy
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.replay import RecordedDevice
from overhaul.server.database.engine import Database
from overhaul.server.database.migrating import upgrade
from overhaul.server.reports import DeviceReport, ReportStore
from overhaul.server.settings import ServerSettings

HOUR_S = 3600
RELEASE = "alpha/desk/amd64/1.1/b2"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PublishedRepository:
    published = PublishedRepository(tmp_path_factory.mktemp("policy") / "repository")
    with (published.directory / "overhaul.toml").open("a") as file:
        file.write("\n[products.alpha.rollout]\nrestart_grace_hours = 3\n")
    published.publish("1.0", "b1")
    published.publish("1.1", "b2", rollout_percent=50)
    return published


@pytest.fixture
def published(made: PublishedRepository, tmp_path: Path) -> PublishedRepository:
    """A copy for each test."""
    import shutil

    shutil.copytree(made.directory.parent, tmp_path, dirs_exist_ok=True)
    copy = object.__new__(PublishedRepository)
    copy.__dict__.update(made.__dict__, directory=tmp_path / "repository")
    return copy


def _run(published: PublishedRepository, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["policy", *arguments, "--repository", str(published.directory)])


def _report(published: PublishedRepository, *reports: dict[str, object], hours_ago: float = 5) -> None:
    database = Database(ServerSettings.of_repository(published.directory).database_url)
    try:
        upgrade(database)
        store = ReportStore(database)
        for number, report in enumerate(reports):
            fields: dict[str, object] = {
                "report_id": f"{hash((number, hours_ago, str(report))) % 16**32:032x}",
                "product": "alpha",
                "variant": "desk",
                "arch": "amd64",
                "channel": "stable",
                "from_version": "1.0",
                "from_build_id": "b1",
            }
            document = DeviceReport.model_validate(fields | report)
            assert store.add(document, now=int(time.time() - hours_ago * HOUR_S))
    finally:
        database.close()


def _update(number: int, outcome: str) -> dict[str, object]:
    return {"to_version": "1.1", "to_build_id": "b2", "outcome": outcome, "update_id": f"{number:032x}"}


def _look_from(published: PublishedRepository, hours_ago: float) -> None:
    """Let the rollout be judged by what was reported since then."""
    from overhaul.policy.rollout import Rollout
    from overhaul.publishing.opening import open_repository
    from overhaul.publishing.policies import set_rollout

    since = int(time.time() - hours_ago * HOUR_S)
    repository = open_repository(published.directory)
    release = next(one.id for one in repository.published().releases.values() if one.id.version == "1.1")
    set_rollout(repository, release, channel="stable", rollout=Rollout(percent=0.9, since=since, judged_from=since))


def test_devices_that_did_not_come_back_halt_a_rollout(published: PublishedRepository) -> None:
    _look_from(published, 30)
    _report(published, *(_update(number, "restarting") for number in range(6)))

    evaluated = _run(published, "evaluate", "--json")
    assert evaluated.exit_code == 22
    (looked,) = json.loads(evaluated.output)["rollouts"]
    assert (looked["evidence"]["lost"], looked["step"]["step"], looked["signed"]) == (6, "halt", False)

    watched = _run(published, "watch", "--once")
    assert watched.exit_code == 22
    assert "signed: 1.1 (b2) is halted: 6 of 6 updates failed (6 devices did not come back" in watched.output
    again = _run(published, "watch", "--once", "--json")
    assert again.exit_code == 22
    (looked,) = json.loads(again.output)["rollouts"]
    assert (looked["step"]["step"], looked["step"]["halted"], looked["percent"]) == ("wait", True, 0)


def test_devices_that_came_back_let_it_go_on(published: PublishedRepository) -> None:
    _look_from(published, 30)
    _report(published, *(_update(number, "restarting") for number in range(400)))
    _report(published, *(_update(number, "confirmed") for number in range(400)), hours_ago=4.9)

    watched = _run(published, "watch", "--once")

    assert watched.exit_code == 0
    assert "healthy: signed: 1.1 (b2) goes on from 0.9 to 5 %" in watched.output


def test_without_a_plan_nothing_is_looked_after(tmp_path: Path) -> None:
    published = PublishedRepository(tmp_path / "repository")
    evaluated = _run(published, "evaluate")

    assert evaluated.exit_code == 0
    assert "No rollout is looked after" in evaluated.output


def _fleet(path: Path, count: int) -> Path:
    start = int(time.time()) - HOUR_S
    with path.open("wb") as file:
        for number in range(count):
            facts = DeviceFacts(
                product="alpha",
                variant="desk",
                arch="amd64",
                channel="stable",
                version="1.0",
                build_id="b1",
                rollout_id=f"device-{number}",
            )
            file.write(msgspec.json.encode(RecordedDevice(facts=facts, first=start + number, every_s=HOUR_S)) + b"\n")
    return path


def test_a_fleet_is_replayed_against_the_published_policy(published: PublishedRepository, tmp_path: Path) -> None:
    fleet = _fleet(tmp_path / "fleet.jsonl", 400)
    told = _run(published, "simulate", str(fleet), "--channel", "alpha/stable", "--days", "1", "--json")

    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    (move,) = found["moves"]
    assert 150 < move["devices"] < 250
    assert move["bytes_each"] > 1000
    assert found["stuck"][0]["cause"] == "rollout"
    assert found["stuck"][0]["devices"] == 400 - move["devices"]


def test_a_rollout_a_plan_and_a_policy_file_are_tried_without_signing(
    published: PublishedRepository, tmp_path: Path
) -> None:
    from overhaul.publishing.opening import open_repository

    fleet = _fleet(tmp_path / "fleet.jsonl", 100)
    before = (published.directory / "store/public/metadata/timestamp.json").read_bytes()
    simulate = ("simulate", str(fleet), "--channel", "alpha/stable")

    assert "100  desk/amd64  1.0 (b1) to 1.1 (b2)" in _run(published, *simulate, "--rollout", f"{RELEASE}=all").output
    assert "100  desk/amd64  1.0 (b1) to 1.1 (b2)" in _run(published, *simulate, "--planned").output
    (policy,) = open_repository(published.directory).published().policies.values()
    closed = tmp_path / "policy.json"
    closed.write_bytes(encode_policy(msgspec.structs.replace(policy, entries=policy.entries[:1])))
    told = _run(published, *simulate, "--policy", str(closed)).output
    assert "100  are up to date at the end" in told
    assert (published.directory / "store/public/metadata/timestamp.json").read_bytes() == before


def test_recorded_check_ins_become_a_fleet_of_as_many_devices(published: PublishedRepository, tmp_path: Path) -> None:
    for hours_ago in range(1, 25):
        _report(
            published,
            *({"outcome": "checked", "seconds": float(HOUR_S), "error": f"E{number}"} for number in range(10)),
            hours_ago=hours_ago - 0.5,
        )
    target = tmp_path / "fleet.jsonl"

    told = _run(published, "export", "alpha/stable", str(target), "--days", "1")

    assert told.exit_code == 0, told.output
    devices = [msgspec.json.decode(line, type=RecordedDevice) for line in target.read_bytes().splitlines()]
    assert len(devices) in {9, 10, 11}
    assert {device.every_s for device in devices} == {HOUR_S}
    assert len({device.facts.rollout_id for device in devices}) == len(devices)
    replayed = _run(published, "simulate", str(target), "--channel", "alpha/stable", "--days", "1", "--json")
    assert json.loads(replayed.output)["devices"] == len(devices)


def test_a_fleet_without_devices_is_neither_written_nor_tried(published: PublishedRepository, tmp_path: Path) -> None:
    target = tmp_path / "fleet.jsonl"
    for channel in ("alpha/stable", "alpha/nothing", "nothing/stable"):
        assert isinstance(_run(published, "export", channel, str(target)).exception, InputError)
        assert not target.exists()
    target.touch()
    assert isinstance(_run(published, "simulate", str(target), "--channel", "alpha/stable").exception, EmptyFleetError)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--channel", "alpha"),
        ("--channel", "alpha/nothing"),
        ("--channel", "alpha/stable", "--rollout", "alpha"),
        ("--channel", "alpha/stable", "--days", "300", "--slice", "0.1"),
        ("--channel", "alpha/stable", "--from", "yesterday"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    published: PublishedRepository, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    fleet = _fleet(tmp_path / "fleet.jsonl", 1)

    assert isinstance(_run(published, "simulate", str(fleet), *arguments).exception, InputError)


@pytest.mark.parametrize("command", ["evaluate", "watch", "simulate", "export"])
def test_help_shows_an_example(command: str) -> None:
    told = CliRunner().invoke(cli, ["policy", command, "--help"]).output

    assert f"overhaul policy {command}" in told
    assert "Example" in told
    assert "--json" in told
