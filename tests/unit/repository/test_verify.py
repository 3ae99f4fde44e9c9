"""Verify finds any flipped byte, and says what is missing."""

import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tools import need
from tests.unit.publishing.building import make_repository, publish_image, random_bytes, write_image

from overhaul.progress import Silence
from overhaul.publishing.opening import Repository
from overhaul.publishing.upkeep import refresh_repository, verify
from overhaul.repository.layout import files_of, public_key
from overhaul.repository.verify import Kind, verify_repository


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """Return a repository with three releases, a casync store and no file that nothing names but old metadata."""
    directory = tmp_path_factory.mktemp("verify")
    repository = make_repository(directory / "repo")
    first = write_image(directory / "a", random_bytes(1, 200_000), bytes(600_000))
    second = write_image(directory / "b", first.read_bytes(), random_bytes(2, 100_000))
    publish_image(repository, first, "1.0", castr=True)
    publish_image(repository, second, "1.1")
    publish_image(repository, _file_system(directory), "1.2")
    refresh_repository(repository)
    return repository


def _file_system(directory: Path) -> Path:
    """Return an image with files in /etc, which are published beside it too."""
    etc = directory / "tree" / "etc"
    etc.mkdir(parents=True)
    (etc / "hostname").write_text("kiosk\n")
    image = directory / "c"
    command = [need("mkfs.ext4"), "-q", "-b", "4096", "-O", "^has_journal", "-N", "16", "-d", str(directory / "tree")]
    subprocess.run([*command, image, "512K"], check=True, capture_output=True)
    return image


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = make_repository(tmp_path / "repo")
    publish_image(repository, write_image(tmp_path / "a", random_bytes(1)))
    return repository


def _public_files(repository: Repository) -> Iterator[str]:
    report = verify(repository, progress=Silence())
    unreferenced = {one.key for one in report.unreferenced}
    for one in repository.storage.list_objects("public/"):
        if one.key not in unreferenced:
            yield one.key


def test_a_sound_repository_has_no_finding(published: Repository) -> None:
    report = verify(published, progress=Silence())

    assert report.findings == ()
    assert report.is_sound
    assert report.releases == 3
    assert all(one.key.startswith(("public/metadata/", "public/targets/kiosk/policy/")) for one in report.unreferenced)


@settings(max_examples=5)
@given(data=st.data())
def test_a_flipped_byte_in_any_file_is_found(published: Repository, data: st.DataObject) -> None:
    for key in _public_files(published):
        sound = published.storage.read(key)
        place = data.draw(st.integers(0, len(sound) - 1), label=key)
        damaged = bytearray(sound)
        damaged[place] ^= data.draw(st.integers(1, 255), label="flip")
        published.storage.put(key, bytes(damaged))
        try:
            report = verify(published, progress=Silence())
        finally:
            published.storage.put(key, sound)

        assert not report.is_sound, f"byte {place} of {key}"


@pytest.mark.parametrize("key", ["public/metadata/timestamp.json", "public/metadata/1.root.json"])
@pytest.mark.parametrize("flipped", [b".", b"e"])
def test_a_number_that_became_a_fraction_is_found(published: Repository, key: str, flipped: bytes) -> None:
    sound = published.storage.read(key)
    signed_at = str(int(published.now().timestamp())).encode()
    assert signed_at in sound
    published.storage.put(key, sound.replace(signed_at, signed_at[:3] + flipped + signed_at[4:]))
    try:
        report = verify(published, progress=Silence())
    finally:
        published.storage.put(key, sound)

    assert key.removeprefix("public/") in {finding.path for finding in report.findings}


def test_a_missing_file_is_named(published: Repository) -> None:
    for key in _public_files(published):
        if "/castr/" in key and key.endswith(".caibx"):
            # Nothing signed says that a release has one; without it, its chunk files are listed as unreferenced.
            continue
        sound = published.storage.read(key)
        published.storage.delete(key)
        try:
            report = verify(published, progress=Silence(), quick=True)
        finally:
            published.storage.put(key, sound)

        assert Kind.MISSING in {finding.kind for finding in report.findings}, key
        assert key.removeprefix("public/") in {finding.path for finding in report.findings}


def test_a_truncated_file_is_found_by_the_quick_check(published: Repository) -> None:
    for key in _public_files(published):
        sound = published.storage.read(key)
        published.storage.put(key, sound[:-1])
        try:
            report = verify(published, progress=Silence(), quick=True)
        finally:
            published.storage.put(key, sound)

        assert not report.is_sound or "/castr/" in key, key


def test_a_longer_file_is_found(published: Repository) -> None:
    for key in _public_files(published):
        sound = published.storage.read(key)
        published.storage.put(key, sound + b"\n")
        try:
            report = verify(published, progress=Silence())
        finally:
            published.storage.put(key, sound)

        assert not report.is_sound, key


def test_two_packs_exchanged_are_found(published: Repository) -> None:
    first, second, *_ = [one.key for one in published.storage.list_objects("public/content/packs/")]
    contents = published.storage.read(first), published.storage.read(second)
    published.storage.put(first, contents[1])
    published.storage.put(second, contents[0])
    try:
        report = verify(published, progress=Silence())
    finally:
        published.storage.put(first, contents[0])
        published.storage.put(second, contents[1])

    assert {finding.kind for finding in report.findings} >= {Kind.DAMAGED, Kind.INCOMPLETE}


def test_an_old_timestamp_put_back_is_found_as_a_mix(repository: Repository, tmp_path: Path) -> None:
    old = repository.storage.read("public/metadata/timestamp.json")
    publish_image(repository, write_image(tmp_path / "b", random_bytes(2)), "1.1", delta_from=())
    for one in list(repository.storage.list_objects("public/metadata/2.")):
        repository.storage.delete(one.key)
    repository.storage.put("public/metadata/timestamp.json", old)

    assert not verify(repository, progress=Silence()).is_sound


def test_expired_signatures_are_said_to_be_expired(repository: Repository) -> None:
    report = verify_repository(
        repository.storage, now=repository.now() + timedelta(days=3), progress=Silence(), quick=True
    )

    assert {finding.kind for finding in report.findings} == {Kind.EXPIRED}
    assert [finding.path for finding in report.findings] == ["metadata/timestamp.json"]


def test_a_file_nobody_names_is_listed_and_no_fault(repository: Repository) -> None:
    repository.storage.put("public/content/packs/ab/stray.pack", b"x")
    report = verify(repository, progress=Silence())

    assert report.is_sound
    assert "public/content/packs/ab/stray.pack" in {one.key for one in report.unreferenced}


def test_a_foreign_root_is_not_trusted(repository: Repository, tmp_path: Path) -> None:
    other = make_repository(tmp_path / "other")
    report = verify(
        repository, progress=Silence(), anchor=other.storage.read("public/metadata/1.root.json"), quick=True
    )

    assert not report.is_sound


def test_a_pack_is_counted_once_however_many_releases_name_it(published: Repository) -> None:
    sizes = {ref.path: ref.size for release in published.published().releases.values() for ref in files_of(release)}
    castr = sum(one.size for one in published.storage.list_objects(public_key("castr/")) if "cacnk" in one.key)

    assert verify(published, progress=Silence()).bytes_checked == sum(sizes.values()) + castr
