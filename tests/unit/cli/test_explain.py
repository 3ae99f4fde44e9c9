"""`overhaul explain`: the decision and its reasons, for people and for scripts."""

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from tests.published import PublishedRepository

from overhaul.cli import explain
from overhaul.policy.document import Policy, PolicyEntry, Recall, encode_policy
from overhaul.policy.facts import DeviceFacts, decode_facts, encode_facts
from overhaul.policy.rollout import Rollout, RolloutStep

OPENS_AT = 1_800_000_000
FACTS = DeviceFacts(
    product="alpha",
    variant="desk",
    arch="amd64",
    channel="stable",
    version="1.0",
    build_id="1",
    rollout_id="device-1",
)


def _entry(version: str, **changes: object) -> PolicyEntry:
    return msgspec.structs.replace(PolicyEntry(variant="desk", arch="amd64", version=version, build_id="1"), **changes)


POLICY = Policy(
    product="alpha",
    channel="stable",
    revision=7,
    signed_at=1_700_000_000,
    entries=(
        _entry("1.0"),
        _entry("1.1"),
        _entry("1.2", recall=Recall(reason="it forgets the time zone", since=1_700_000_000)),
        _entry("2.0", rollout=Rollout(percent=0, steps=(RolloutStep(since=OPENS_AT, percent=100),))),
    ),
)


@pytest.fixture
def facts_file(tmp_path: Path) -> Path:
    path = tmp_path / "facts.json"
    path.write_bytes(encode_facts(FACTS))
    return path


@pytest.fixture
def policy_file(tmp_path: Path) -> Path:
    path = tmp_path / "stable.json"
    path.write_bytes(encode_policy(POLICY))
    return path


def _explain(*arguments: str | Path, environment: dict[str, str] | None = None) -> Result:
    runner = CliRunner()
    return runner.invoke(explain.command, [str(each) for each in arguments], env=environment)


def test_a_person_reads_the_answer_and_every_reason(facts_file: Path, policy_file: Path) -> None:
    result = _explain("--device", facts_file, "--policy", policy_file, "--at", "1790000000")

    closed = (
        "2.0 (1) is open to 0 % of the devices; this one's place is 18.33 %; its turn comes at 2027-01-15 08:00:00 UTC."
    )
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "OFFER: The device may move from 1.0 (1) to 1.1 (1).",
        "",
        "Device:  alpha desk/amd64, channel stable, running 1.0 (1)",
        "Policy:  alpha stable, revision 7, signed 2023-11-14 22:13:20 UTC",
        "Decided: as of 2026-09-21 14:13:20 UTC",
        "",
        "Every release looked at, the newest first:",
        f"  rollout   {closed}",
        "  recalled  1.2 (1) was recalled: it forgets the time zone.",
        "  offered   1.1 (1) is open to this device.",
        "  running   1.0 (1) is what the device runs.",
    ]


@pytest.mark.parametrize("moment", ["1800000000", "2027-01-15T08:00:00Z", "2027-01-15T10:00+02:00", "2027-01-16"])
def test_the_decision_is_made_as_of_the_given_time(facts_file: Path, policy_file: Path, moment: str) -> None:
    result = _explain("--device", facts_file, "--policy", policy_file, "--at", moment)

    assert result.output.startswith("OFFER: The device may move from 1.0 (1) to 2.0 (1).")


@pytest.mark.parametrize("moment", ["yesterday", "9999999999999999", "-5", "2027-13-01", ""])
def test_what_is_no_time_is_refused(facts_file: Path, policy_file: Path, moment: str) -> None:
    result = _explain("--device", facts_file, "--policy", policy_file, "--at", moment)

    assert isinstance(result.exception, explain.UnreadableTimeError)


@pytest.mark.parametrize(
    ("version", "decision", "headline"),
    [("1.0", "offer", "OFFER"), ("1.2", "hold", "HOLD"), ("3.0", "up_to_date", "UP TO DATE")],
)
def test_every_answer_leaves_with_0_and_is_one_document(
    facts_file: Path, policy_file: Path, version: str, decision: str, headline: str
) -> None:
    facts_file.write_bytes(encode_facts(msgspec.structs.replace(FACTS, version=version)))
    arguments = ("--device", facts_file, "--policy", policy_file, "--at", "1790000000")

    told, document = _explain(*arguments), _explain(*arguments, "--json")

    assert (told.exit_code, document.exit_code) == (0, 0)
    assert told.output.startswith(f"{headline}: ")
    answer = msgspec.json.decode(document.output)
    assert answer["decision"]["decision"] == decision
    assert answer["decision"]["reasons"]
    assert (answer["product"], answer["channel"], answer["revision"]) == ("alpha", "stable", 7)
    assert (answer["decided_at"], answer["running"]) == (1_790_000_000, [version, "1"])


def test_the_policy_comes_from_a_repository_by_option_or_environment(tmp_path: Path, facts_file: Path) -> None:
    repository = PublishedRepository(tmp_path / "repository")
    repository.publish("1.1", "20260501.1")

    by_option = _explain("--device", facts_file, "--repository", repository.directory)
    by_environment = _explain("--device", facts_file, environment={"OVERHAUL_REPOSITORY": str(repository.directory)})

    assert by_option.exit_code == by_environment.exit_code == 0, by_option.exception
    assert by_option.output.startswith("OFFER: The device may move from 1.0 (1) to 1.1 (20260501.1).")
    assert by_environment.output.startswith("OFFER")


def test_a_channel_without_a_policy_is_named_with_those_that_have_one(tmp_path: Path, facts_file: Path) -> None:
    repository = PublishedRepository(tmp_path / "repository")
    repository.publish("1.1", "20260501.1", channel="beta")

    result = _explain("--device", facts_file, "--repository", repository.directory)

    assert isinstance(result.exception, explain.NoPolicyError)
    assert str(result.exception) == "The repository has no policy of alpha stable; it has alpha beta."


def test_a_policy_that_is_not_the_signed_one_is_not_explained(tmp_path: Path, facts_file: Path) -> None:
    repository = PublishedRepository(tmp_path / "repository")
    repository.publish("1.1", "20260501.1")
    (policy,) = (repository.public / "targets" / "alpha" / "policy").iterdir()
    policy.write_bytes(policy.read_bytes().replace(b"1.1", b"9.9"))

    result = _explain("--device", facts_file, "--repository", repository.directory)

    assert result.exit_code != 0
    assert "policy" in str(result.exception)


def test_a_policy_file_wins_over_the_environment_and_excludes_the_option(facts_file: Path, policy_file: Path) -> None:
    arguments = ("--device", facts_file, "--policy", policy_file)

    with_environment = _explain(*arguments, environment={"OVERHAUL_REPOSITORY": "/nowhere"})
    with_option = _explain(*arguments, "--repository", "/nowhere")

    assert with_environment.exit_code == 0
    assert with_option.exit_code == 2
    assert "not both" in with_option.output


def test_files_that_cannot_be_read_are_named(tmp_path: Path, facts_file: Path) -> None:
    huge = tmp_path / "huge.json"
    huge.write_bytes(b" " * (2 << 20))

    for facts, policy in [(tmp_path / "no.json", huge), (facts_file, tmp_path / "no.json"), (huge, huge)]:
        result = _explain("--device", facts, "--policy", policy)
        assert isinstance(result.exception, explain.UnreadableFileError)
        assert str(result.exception.path) in str(result.exception)


def test_the_example_in_the_help_is_a_device() -> None:
    text = _explain("--help").output
    example = text[text.index("{\n") : text.index("}\n", text.index("refused")) + 1]

    facts = decode_facts(example.encode())

    assert facts.refused == (("1.4.0", "20260501.1"),)
    assert facts.hardware == {"board": "rpi4", "memory_mb": "2048"}
