"""Rollouts that are looked after: signed on while devices are well, closed when they are not."""

from pathlib import Path

import pytest
from tests.published import PublishedRepository

from overhaul.errors import OperatorError
from overhaul.policy.document import PolicyEntry
from overhaul.policy.health import Evidence
from overhaul.policy.rollout import Rollout
from overhaul.publishing.policies import set_rollout
from overhaul.publishing.rollouts import Looked, Question, evaluate_rollouts, steer_rollouts
from overhaul.release.record import Release

DAY_S = 24 * 3600
NOTHING = Evidence()
GOOD = Evidence(confirmed=900, confirmed_and_settled=900, lost=1)
BAD = Evidence(confirmed=80, confirmed_and_settled=80, lost=6)


class _Fleet:
    """Answers every question with the evidence it holds, and remembers the last question."""

    def __init__(self) -> None:
        self.evidence = NOTHING
        self.asked: Question | None = None

    def ask(self, question: Question) -> Evidence:
        self.asked = question
        return self.evidence


class _Rollout:
    """A release at 0.1 % of a real repository whose product has a plan."""

    def __init__(self, directory: Path, *, plan: str = "") -> None:
        self.published = PublishedRepository(directory / "repository")
        with (self.published.directory / "overhaul.toml").open("a") as file:
            file.write(f"\n[products.alpha.rollout]\n{plan}\n")
        self.published.publish("1.0", "b1")
        self.release: Release = self.published.publish("1.1", "b2", rollout_percent=0.1)
        self.fleet = _Fleet()

    def look(self, *, hours: float = 0) -> Looked:
        """Let the time pass, and make one pass."""
        self.published.now += hours * 3600
        (looked,) = steer_rollouts(self.published.repository, self.fleet.ask)
        return looked

    @property
    def entry(self) -> PolicyEntry:
        """The release's entry as it is signed."""
        (policy,) = self.published.repository.published().policies.values()
        found = policy.entry(self.release.id)
        assert found is not None
        return found

    @property
    def percent(self) -> float:
        """The percentage that is signed now."""
        assert self.entry.rollout is not None
        return self.entry.rollout.percent


def test_a_healthy_release_goes_from_stage_to_stage_to_all_devices(tmp_path: Path) -> None:
    rollout = _Rollout(tmp_path)
    rollout.fleet.evidence = GOOD
    seen = [rollout.percent]

    rollout.look()
    for _day in range(6):
        rollout.look(hours=24)
        seen.append(rollout.percent)

    assert seen == [0.1, 0.5, 0.9, 5, 25, 100, 100]
    assert rollout.fleet.asked is not None
    assert rollout.fleet.asked.restart_grace_s == 24 * 3600


def test_a_pass_that_changes_nothing_signs_nothing(tmp_path: Path) -> None:
    rollout = _Rollout(tmp_path)
    rollout.look()
    before = rollout.published.file("metadata/timestamp.json")

    assert not rollout.look(hours=1).signed

    assert rollout.published.file("metadata/timestamp.json") == before


def test_harm_closes_the_rollout_for_devices_and_says_why(tmp_path: Path) -> None:
    rollout = _Rollout(tmp_path)
    rollout.look()
    rollout.fleet.evidence = BAD

    looked = rollout.look(hours=1)

    assert looked.is_halted
    assert looked.signed
    assert rollout.percent == 0
    assert rollout.entry.rollout is not None
    assert "6 of 86 updates failed" in rollout.entry.rollout.halted
    assert rollout.look(hours=99).is_halted


def test_an_operator_opens_a_halted_release_again_and_only_new_updates_count(tmp_path: Path) -> None:
    rollout = _Rollout(tmp_path)
    rollout.look()
    rollout.fleet.evidence = BAD
    rollout.look(hours=1)
    set_rollout(rollout.published.repository, rollout.release.id, channel="stable", rollout=Rollout(percent=0.5))
    opened_at = rollout.published.now
    rollout.fleet.evidence = NOTHING

    rollout.look(hours=1)

    assert rollout.percent == 0.5
    assert rollout.fleet.asked is not None
    assert rollout.fleet.asked.since == opened_at


def test_a_plan_can_recall_what_harms(tmp_path: Path) -> None:
    rollout = _Rollout(tmp_path, plan='when_harmful = "recall"')
    rollout.look()
    rollout.fleet.evidence = BAD

    rollout.look(hours=1)

    assert rollout.entry.recall is not None
    assert "6 of 86 updates failed" in rollout.entry.recall.reason
    assert steer_rollouts(rollout.published.repository, rollout.fleet.ask) == ()


def test_evaluating_needs_no_key_and_changes_nothing(tmp_path: Path) -> None:
    rollout = _Rollout(tmp_path)
    rollout.look()
    rollout.fleet.evidence = BAD
    keys = rollout.published.repository.keys_directory
    keys.rename(keys.with_name("elsewhere"))

    (looked,) = evaluate_rollouts(rollout.published.repository, rollout.fleet.ask)

    assert looked.is_halted
    assert not looked.signed
    assert rollout.percent == 0.1


def test_without_the_policy_key_a_pass_that_would_change_something_fails_and_changes_nothing(tmp_path: Path) -> None:
    rollout = _Rollout(tmp_path)
    rollout.look()
    rollout.fleet.evidence = BAD
    for key in rollout.published.repository.keys_directory.rglob("*policy*"):
        key.unlink()

    with pytest.raises(OperatorError, match="key"):
        rollout.look(hours=1)

    assert rollout.percent == 0.1


def test_products_without_a_plan_are_left_alone(tmp_path: Path) -> None:
    published = PublishedRepository(tmp_path / "repository")
    published.publish("1.1", "b2", rollout_percent=1)

    assert steer_rollouts(published.repository, _Fleet().ask) == ()
