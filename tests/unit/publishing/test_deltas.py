"""Which releases a new one gets deltas from."""

from pathlib import Path

import pytest
from tests.unit.publishing.building import make_repository, publish_image, release_id, write_image

from overhaul.publishing.deltas import latest_sources
from overhaul.publishing.opening import Repository
from overhaul.publishing.policies import recall


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = make_repository(tmp_path / "repo")
    image = write_image(tmp_path / "image", bytes(1 << 16))
    for version in ("1.0", "1.1", "1.2", "1.3"):
        publish_image(made, image, version)
    return made


def _sources(repository: Repository, *, count: int) -> list[str]:
    published = repository.published()
    policy = published.policies["kiosk/policy/stable.json"]
    return [
        one.id.version for one in latest_sources(published.releases.values(), release_id("2.0"), policy, count=count)
    ]


def test_the_newest_get_one(repository: Repository) -> None:
    assert _sources(repository, count=2) == ["1.3", "1.2"]
    assert _sources(repository, count=0) == []


def test_recalled_ones_take_no_place_of_what_devices_go_back_to(repository: Repository) -> None:
    for version in ("1.2", "1.3"):
        recall(repository, release_id(version), channel="stable", reason="it does not start")

    assert _sources(repository, count=2) == ["1.3", "1.2", "1.1", "1.0"]
    assert _sources(repository, count=1) == ["1.3", "1.1"]
