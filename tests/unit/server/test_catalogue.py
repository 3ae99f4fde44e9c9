"""The catalogue against repositories that were really published, whole and damaged."""

from pathlib import Path

import pytest
from tests.published import PublishedRepository

from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.publishing.policies import recall, set_rollout
from overhaul.server.caching import POINTER_PATH
from overhaul.server.catalogue import Catalogue, UnreadableMetadataError, read_catalogue
from overhaul.server.tree import LocalTree
from overhaul.server.views import EntryState, channel_views, release_views


@pytest.fixture
def published(tmp_path: Path) -> PublishedRepository:
    return PublishedRepository(tmp_path / "repository", products=("alpha", "beta"))


def _read(published: PublishedRepository, before: Catalogue | None = None) -> Catalogue:
    tree = LocalTree(published.directory / "store")
    return read_catalogue(tree, pointer=published.file(POINTER_PATH), pointer_etag="now", before=before)


def test_an_empty_repository_has_roles_and_nothing_else(published: PublishedRepository) -> None:
    catalogue = _read(published)

    assert (catalogue.releases, catalogue.policies, catalogue.damaged) == ((), (), ())
    assert {"root", "targets", "snapshot", "timestamp", "alpha", "alpha-policy"} <= {
        role.name for role in catalogue.roles
    }
    assert catalogue.expires_at == published.now + 2 * 86400
    assert catalogue.published_at is None


def test_releases_come_newest_first_with_the_channels_that_list_them(published: PublishedRepository) -> None:
    published.publish("1.9", "b1")
    published.publish("1.10", "b2", channel="beta")
    published.publish("0.1", "b3", product="beta")

    views = release_views(_read(published))

    assert [(view.product, view.version, view.channels) for view in views] == [
        ("alpha", "1.10", ("beta",)),
        ("alpha", "1.9", ("stable",)),
        ("beta", "0.1", ("stable",)),
    ]


def test_a_rollout_stands_where_its_steps_say_at_the_time_asked_about(published: PublishedRepository) -> None:
    release = published.publish("1.0", "b1", rollout_percent=0)
    now = int(published.now)

    def entry_at(time: int) -> tuple[EntryState, float, int]:
        (view,) = channel_views(_read(published), now=time)
        return view.entries[0].state, view.entries[0].percent, len(view.entries[0].steps)

    assert entry_at(now) == (EntryState.PAUSED, 0, 0)
    steps = (RolloutStep(since=now + 60, percent=40), RolloutStep(since=now + 120, percent=100))
    set_rollout(published.repository, release.id, channel="stable", rollout=Rollout(percent=5, steps=steps))
    assert entry_at(now) == (EntryState.ROLLING_OUT, 5, 2)
    assert entry_at(now + 60) == (EntryState.ROLLING_OUT, 40, 1)
    assert entry_at(now + 120) == (EntryState.OPEN, 100, 0)


def test_a_recalled_release_is_open_to_nobody_and_says_why(published: PublishedRepository) -> None:
    release = published.publish("1.0", "b1")
    recall(published.repository, release.id, channel="stable", reason="It does not start.", allow_lower=True)

    catalogue = _read(published)
    (channel,) = channel_views(catalogue, now=int(published.now))
    (entry,) = channel.entries

    assert (entry.state, entry.percent) == (EntryState.RECALLED, 0)
    assert entry.recall is not None
    assert entry.recall.reason == "It does not start."
    assert release_views(catalogue)[0].recalled_in == ("stable",)


def test_a_damaged_record_is_named_and_the_rest_still_shown(published: PublishedRepository) -> None:
    published.publish("1.0", "b1")
    published.publish("1.1", "b2")
    broken = next((published.public / "targets/alpha/releases").rglob("*.b1.json"))
    broken.write_bytes(broken.read_bytes().replace(b'"1.0"', b'"1.6"'))

    catalogue = _read(published)

    assert [release.id.version for release in catalogue.releases] == ["1.1"]
    (sentence,) = catalogue.damaged
    assert "alpha/releases/desk/amd64/1.0/b1.json" in sentence
    assert "overhaul repository verify" in sentence


@pytest.mark.parametrize("name", ["1.snapshot.json", "1.targets.json", "1.alpha.json"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_broken_chain_of_metadata_is_refused_by_the_name_of_the_file(
    published: PublishedRepository, name: str, damage: str
) -> None:
    file = published.public / "metadata" / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes() + b" ")

    with pytest.raises(UnreadableMetadataError, match=name):
        _read(published)


@pytest.mark.parametrize("pointer", [b"", b"[]", b"{}", b'{"signed":{"version":1,"expires":"2030-01-01T00:00:00Z"}}'])
def test_a_pointer_that_points_nowhere_is_refused(published: PublishedRepository, pointer: bytes) -> None:
    with pytest.raises(UnreadableMetadataError, match=r"timestamp\.json"):
        read_catalogue(LocalTree(published.directory / "store"), pointer=pointer, pointer_etag="x")


def test_records_known_from_before_are_not_read_again(published: PublishedRepository) -> None:
    published.publish("1.0", "b1")
    before = _read(published)
    published.publish("1.1", "b2")
    next((published.public / "targets/alpha/releases").rglob("*.b1.json")).unlink()

    after = _read(published, before)

    assert [release.id.version for release in after.releases] == ["1.1", "1.0"]
    assert after.damaged == ()
