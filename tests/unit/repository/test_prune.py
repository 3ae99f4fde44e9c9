"""Prune keeps what anybody may still need and removes the rest, after a while."""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.unit.publishing.building import (
    DAY,
    MADE_AT,
    Clock,
    make_repository,
    publish_image,
    random_bytes,
    release_id,
    write_image,
)

from overhaul.errors import TrustError
from overhaul.policy.document import Floor, Policy, PolicyEntry
from overhaul.progress import Silence
from overhaul.publishing.opening import Repository
from overhaul.publishing.policies import drop, set_floor
from overhaul.publishing.upkeep import prune_repository, verify
from overhaul.release.record import FileRef, ImageRecord, Release
from overhaul.repository.journal import JournalEntry
from overhaul.repository.layout import files_of, public_key
from overhaul.repository.lock import RepositoryBusyError
from overhaul.repository.prune import Need, need_of
from overhaul.repository.storage import MissingObjectError


def _record(version: str, *, checkpoint: bool = False) -> Release:
    index = FileRef(path="content/indexes/00/x.caibx", size=1, sha256="0" * 64)
    image = ImageRecord(size=1, filesystem="raw", index=index, packs=())
    return Release(format=1, id=release_id(version), published_at=1, image=image, checkpoint=checkpoint)


def _policy(channel: str, *listed: str, support: str | None = None) -> Policy:
    entries = tuple(PolicyEntry(variant="shop", arch="x86_64", version=one, build_id="1") for one in listed)
    floors = () if support is None else (Floor(variant="shop", arch="x86_64", support=support),)
    return Policy(product="kiosk", channel=channel, revision=1, signed_at=1, entries=entries, floors=floors)


@pytest.mark.parametrize(
    ("record", "policies", "need"),
    [
        (_record("1.0"), [_policy("stable", "1.0", support="2.0")], Need.LISTED),
        (_record("1.0", checkpoint=True), [_policy("stable", "2.0", support="2.0")], Need.CHECKPOINT),
        (_record("2.0"), [_policy("stable", "3.0", support="2.0")], Need.SUPPORTED),
        (_record("1.0"), [_policy("stable", "2.0", support="2.0"), _policy("beta", "3.0")], Need.SUPPORTED),
        (_record("1.0"), [_policy("stable", "2.0", support="2.0"), _policy("beta")], None),
        (_record("1.0"), [], Need.NO_FLOOR),
        (
            _record("1.9"),
            [_policy("stable", "3.0", support="2.0"), _policy("beta", "3.0", support="1.9")],
            Need.SUPPORTED,
        ),
        (_record("1.8"), [_policy("stable", "3.0", support="2.0"), _policy("beta", "3.0", support="1.9")], None),
    ],
)
def test_a_release_is_kept_for_a_reason(record: Release, policies: list[Policy], need: Need | None) -> None:
    found = need_of(record, policies)

    assert (None if found is None else found.need) == need


def test_policies_of_other_products_count_for_nothing() -> None:
    other = msgspec.structs.replace(_policy("stable", "1.0"), product="phone")

    found = need_of(_record("1.0"), [other, _policy("stable", "2.0", support="2.0")])
    assert found is None


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def repository(tmp_path: Path, clock: Clock) -> Repository:
    """Return a repository whose release 1.0 nobody needs any more, and whose 1.1 leans on no pack of it."""
    repository = make_repository(tmp_path / "repo", clock=clock)
    publish_image(repository, write_image(tmp_path / "a", random_bytes(1)), "1.0", castr=True)
    publish_image(repository, write_image(tmp_path / "b", random_bytes(2)), "1.1")
    drop(repository, release_id("1.0"), channel="stable")
    set_floor(repository, Floor(variant="shop", arch="x86_64", support="1.1"), product="kiosk", channel="stable")
    return repository


def test_a_release_nobody_needs_leaves_the_record_at_once_and_its_files_later(
    repository: Repository, clock: Clock
) -> None:
    old = repository.published().releases[release_id("1.0").target_path]
    report = prune_repository(repository)

    assert report.dropped == (release_id("1.0"),)
    assert [kept.release for kept in report.kept] == [release_id("1.1")]
    assert report.removed == ()
    assert repository.published().release(release_id("1.0")) is None
    assert all(repository.storage.stat(public_key(ref.path)) for ref in files_of(old))

    clock.now += 13 * DAY
    assert prune_repository(repository).removed == ()
    clock.now += 2 * DAY
    report = prune_repository(repository)
    assert not any(repository.storage.stat(public_key(ref.path)) for ref in files_of(old))
    assert list(repository.storage.list_objects("public/castr/")) == []
    assert report.freed_bytes > 600_000
    assert [found.kind for found in verify(repository, progress=Silence()).findings] == ["expired", "expired"]


def test_a_dry_run_changes_nothing(repository: Repository, clock: Clock) -> None:
    before = {one.key: repository.storage.read(one.key) for one in repository.storage.list_objects("p")}
    before.pop("private/lock")
    report = prune_repository(repository, dry_run=True)
    clock.now += 100 * DAY
    prune_repository(repository, dry_run=True)
    after = {one.key: repository.storage.read(one.key) for one in repository.storage.list_objects("p")}
    after.pop("private/lock")

    assert report.dropped == (release_id("1.0"),)
    assert after == before


def test_a_file_that_is_named_again_is_kept(repository: Repository, clock: Clock, tmp_path: Path) -> None:
    prune_repository(repository)
    clock.now += 13 * DAY
    publish_image(repository, write_image(tmp_path / "a", random_bytes(1)), "1.2")
    clock.now += 13 * DAY
    prune_repository(repository)

    report = verify(repository, progress=Silence())
    assert {finding.kind for finding in report.findings} <= {"expired"}


def test_files_of_an_unfinished_publish_wait_until_it_is_old(repository: Repository, clock: Clock) -> None:
    ref = FileRef(path="content/packs/ab/dead.pack", size=4, sha256="0" * 64)
    repository.storage.put(public_key(ref.path), b"dead")
    repository.journal.write(
        JournalEntry(release=release_id("3.0"), channel="stable", started_at=int(MADE_AT), index=ref)
    )
    prune_repository(repository)
    clock.now += 13 * DAY
    report = prune_repository(repository)
    assert ref.path not in {one.path for one in report.waiting}

    clock.now += 2 * DAY
    report = prune_repository(repository)
    assert report.forgotten == (release_id("3.0"),)
    assert ref.path in {one.path for one in report.waiting}
    clock.now += 15 * DAY
    prune_repository(repository)
    assert repository.storage.stat(public_key(ref.path)) is None


def test_a_release_whose_keys_are_elsewhere_is_only_told_of(repository: Repository) -> None:
    (repository.keys_directory / "kiosk-1.pem").unlink()
    report = prune_repository(repository)

    assert report.dropped == ()
    assert report.unsigned == (release_id("1.0"),)
    assert repository.published().release(release_id("1.0")) is not None


def test_nothing_is_removed_while_a_signed_file_is_missing(repository: Repository, clock: Clock) -> None:
    prune_repository(repository)
    clock.now += 15 * DAY
    [record] = repository.storage.list_objects("public/targets/kiosk/releases/shop/x86_64/1.1/")
    repository.storage.delete(record.key)
    before = [one.key for one in repository.storage.list_objects("public/")]

    with pytest.raises((TrustError, MissingObjectError)):
        prune_repository(repository)
    assert [one.key for one in repository.storage.list_objects("public/")] == before


def test_prune_never_runs_beside_a_publish(repository: Repository) -> None:
    with repository.locked("publish"), pytest.raises(RepositoryBusyError, match="overhaul publish"):
        prune_repository(repository)


def test_pruning_twice_is_pruning_once(repository: Repository, clock: Clock) -> None:
    prune_repository(repository)
    clock.now += 15 * DAY
    prune_repository(repository)
    again = prune_repository(replace(repository))

    assert again.removed == ()
    assert again.dropped == ()
