"""Changes of what channels offer are signed with the policy key alone."""

from pathlib import Path

import pytest
from tests.unit.publishing.building import (
    DAY,
    Clock,
    make_repository,
    publish_image,
    random_bytes,
    release_id,
    write_image,
)

from overhaul.policy.document import Floor
from overhaul.policy.edit import UnknownReleaseError
from overhaul.policy.rollout import Rollout
from overhaul.progress import Silence
from overhaul.publishing.opening import Repository
from overhaul.publishing.policies import PolicyMovedError, drop, promote, recall, set_floor, set_rollout
from overhaul.publishing.upkeep import refresh_repository, verify
from overhaul.release.channels import UnknownChannelError, WrongDirectionError
from overhaul.trust.keyring import MissingKeyError


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repository(tmp_path: Path, clock: Clock) -> Repository:
    """Return a repository with one release in beta, and without the keys that should be offline."""
    repository = make_repository(tmp_path / "repo", clock=clock)
    publish_image(repository, write_image(tmp_path / "image", random_bytes(1)), channel="beta")
    for role in ("root", "targets"):
        for path in repository.keys_directory.glob(f"{role}-*.pem"):
            path.unlink()
    (repository.keys_directory / "kiosk-1.pem").unlink()
    return repository


def test_promote_rollout_recall_and_drop_need_only_the_policy_key(repository: Repository) -> None:
    assert promote(repository, release_id(), source="beta", target="stable", rollout=Rollout(percent=5)).changed
    assert set_rollout(repository, release_id(), channel="stable", rollout=Rollout(percent=50)).changed
    entry = repository.published().policies["kiosk/policy/stable.json"].entry(release_id())
    assert entry is not None
    assert entry.rollout == Rollout(percent=50)
    assert recall(repository, release_id(), channel="stable", reason="it is bad").changed
    assert drop(repository, release_id(), channel="beta").changed

    assert repository.published().channels_of(release_id()) == ("stable",)
    assert verify(repository, progress=Silence()).findings == ()


def test_a_change_that_changes_nothing_signs_nothing(repository: Repository) -> None:
    before = repository.storage.read("public/metadata/timestamp.json")

    assert not set_rollout(repository, release_id(), channel="beta", rollout=None).changed
    assert repository.storage.read("public/metadata/timestamp.json") == before


def test_floors_are_set_one_by_one(repository: Repository) -> None:
    line = {"variant": "shop", "arch": "x86_64"}
    set_floor(repository, Floor(support="1.0", **line), product="kiosk", channel="beta")
    changed = set_floor(repository, Floor(minimum="0.5", **line), product="kiosk", channel="beta")

    assert changed.policy.floors == (Floor(support="1.0", minimum="0.5", **line),)


def test_a_promotion_away_from_stability_is_refused(repository: Repository) -> None:
    with pytest.raises(WrongDirectionError):
        promote(repository, release_id(), source="beta", target="dev")
    with pytest.raises(UnknownChannelError):
        promote(repository, release_id(), source="nightly", target="stable")
    with pytest.raises(UnknownReleaseError):
        promote(repository, release_id(), source="dev", target="beta")


def test_without_the_policy_key_nothing_changes(repository: Repository) -> None:
    (repository.keys_directory / "kiosk-policy-1.pem").unlink()

    with pytest.raises(MissingKeyError, match="kiosk-policy"):
        recall(repository, release_id(), channel="beta", reason="it is bad")


def test_a_refresh_with_the_online_keys_keeps_the_timestamp_fresh(repository: Repository, clock: Clock) -> None:
    (repository.keys_directory / "kiosk-policy-1.pem").unlink()
    clock.now += 3 * DAY
    assert not verify(repository, progress=Silence(), quick=True).is_sound
    report = refresh_repository(repository)

    assert "timestamp" in report.renewed
    assert report.expiring == ()
    assert verify(repository, progress=Silence(), quick=True).is_sound


def test_a_refresh_tells_of_roles_it_cannot_renew(repository: Repository, clock: Clock) -> None:
    clock.now += 300 * DAY
    report = refresh_repository(repository)

    assert {status.role for status in report.expiring} >= {"root", "targets", "kiosk"}
    assert set(report.renewed) >= {"timestamp", "snapshot", "kiosk-policy"}


def test_a_policy_that_moved_since_it_was_looked_at_is_left_alone(repository: Repository) -> None:
    set_rollout(repository, release_id(), channel="beta", rollout=Rollout(percent=5), expected_revision=2)

    with pytest.raises(PolicyMovedError, match="revision 3, and revision 2 was looked at"):
        set_rollout(repository, release_id(), channel="beta", rollout=Rollout(percent=50), expected_revision=2)
    with pytest.raises(PolicyMovedError, match="revision 3, and revision 1 was looked at"):
        recall(repository, release_id(), channel="beta", reason="it is bad", expected_revision=1)
    with pytest.raises(PolicyMovedError, match="revision 0, and revision 7 was looked at"):
        promote(repository, release_id(), source="beta", target="stable", expected_revision=7)

    held = repository.published().policies
    assert held["kiosk/policy/beta.json"].revision == 3
    assert "kiosk/policy/stable.json" not in held
    assert promote(repository, release_id(), source="beta", target="stable", expected_revision=0).changed
