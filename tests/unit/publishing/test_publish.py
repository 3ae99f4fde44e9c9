"""Publishing an image makes a release that devices can fetch, once."""

import errno
from pathlib import Path

import msgspec
import pytest
from tests.unit.publishing.building import make_repository, publish_image, random_bytes, release_id, write_image

from overhaul.content.frames import read_frames
from overhaul.content.index import read_index
from overhaul.errors import InputError
from overhaul.policy.document import PolicyEntry, encode_policy, policy_target_path
from overhaul.progress import Silence
from overhaul.publishing.content import MAX_PACKS
from overhaul.publishing.opening import Repository
from overhaul.publishing.publish import LateCheckpointError, ReleaseExistsError
from overhaul.publishing.settings import ProductNotConfiguredError
from overhaul.publishing.upkeep import verify
from overhaul.release.channels import UnknownChannelError
from overhaul.release.versions import release_order_key
from overhaul.repository.journal import JournalEntry
from overhaul.repository.layout import files_of, public_key
from overhaul.repository.packs import places_in, restore_image
from overhaul.repository.storage import StorageFailedError
from overhaul.trust.keyring import MissingKeyError


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return make_repository(tmp_path / "repo")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "image", random_bytes(1), bytes(1 << 20), random_bytes(2))


def _assert_sound(repository: Repository) -> None:
    report = verify(repository, progress=Silence())
    assert report.findings == ()


def test_a_published_image_can_be_put_together_again(repository: Repository, image: Path, tmp_path: Path) -> None:
    done = publish_image(repository, image)
    restore_image(repository.storage, done.release.image, tmp_path / "restored", progress=Silence())

    assert (tmp_path / "restored").read_bytes() == image.read_bytes()
    _assert_sound(repository)


def test_a_release_is_in_its_channel_with_what_was_asked(repository: Repository, image: Path) -> None:
    done = publish_image(repository, image, checkpoint=True, rollout_percent=10)
    published = repository.published()
    entry = published.policies["kiosk/policy/stable.json"].entry(release_id())

    assert published.release(release_id()) == done.release
    assert done.release.checkpoint
    assert entry is not None
    assert entry.checkpoint
    assert entry.rollout is not None
    assert entry.rollout.percent == 10
    assert entry.index_sha256 == done.release.image.index.sha256


def test_publishing_again_lists_the_image_where_an_earlier_overhaul_did_not(
    repository: Repository, image: Path
) -> None:
    release = publish_image(repository, image, rollout_percent=10).release
    path = policy_target_path("kiosk", "stable")

    def entries() -> tuple[PolicyEntry, ...]:
        return repository.published().policies[path].entries

    listed = entries()
    with repository.locked("test") as lock:
        change = repository.change(lock)
        policy = change.policy(product="kiosk", channel="stable")
        assert policy is not None
        unlisted = msgspec.structs.replace(listed[0], index_sha256=None)
        change.editor.put_target(path, encode_policy(msgspec.structs.replace(policy, entries=(unlisted,))))
        change.commit()
    assert entries() == (unlisted,)

    assert publish_image(repository, image).release == release
    assert entries() == listed


def test_publishing_the_same_again_changes_nothing(repository: Repository, image: Path) -> None:
    publish_image(repository, image)
    before = {one.key: repository.storage.read(one.key) for one in repository.storage.list_objects("public/")}
    again = publish_image(repository, image)

    assert again.was_published
    assert not again.changed
    assert {one.key: repository.storage.read(one.key) for one in repository.storage.list_objects("public/")} == before


def test_other_bytes_under_a_published_name_are_refused(repository: Repository, image: Path, tmp_path: Path) -> None:
    publish_image(repository, image)
    other = write_image(tmp_path / "other", random_bytes(3))

    with pytest.raises(ReleaseExistsError, match=r"kiosk/shop/x86_64 1.0 \(1\)"):
        publish_image(repository, other)
    _assert_sound(repository)


def test_a_published_release_can_join_another_channel(repository: Repository, image: Path) -> None:
    publish_image(repository, image, channel="beta")
    again = publish_image(repository, image, channel="stable")

    assert again.was_published
    assert again.changed
    assert repository.published().channels_of(release_id()) == ("beta", "stable")


def test_a_release_does_not_become_a_checkpoint_later(repository: Repository, image: Path) -> None:
    publish_image(repository, image)

    with pytest.raises(LateCheckpointError, match="not as a checkpoint"):
        publish_image(repository, image, checkpoint=True)
    done = publish_image(repository, image, channel="beta", checkpoint=True)
    assert done.release.checkpoint
    assert not publish_image(repository, image, channel="beta", checkpoint=True).changed


def test_a_full_disk_is_one_sentence(repository: Repository, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("overhaul.publishing.content.ingest_image", full)
    with pytest.raises(StorageFailedError, match="No space left"):
        publish_image(repository, image)


def test_only_new_chunks_are_packed(repository: Repository, image: Path, tmp_path: Path) -> None:
    first = publish_image(repository, image)
    larger = write_image(tmp_path / "larger", image.read_bytes(), random_bytes(9, 100_000))
    second = publish_image(repository, larger, "1.1")

    assert second.new_pack_size < 250_000
    assert second.release.image.packs[1:] == first.release.image.packs
    _assert_sound(repository)


def test_an_image_without_new_chunks_gets_no_pack(repository: Repository, image: Path) -> None:
    first = publish_image(repository, image)
    second = publish_image(repository, image, "1.1")

    assert second.new_pack_size == 0
    assert second.release.image.packs == first.release.image.packs
    _assert_sound(repository)


def test_a_release_never_leans_on_more_packs_than_allowed(repository: Repository, tmp_path: Path) -> None:
    content = b""
    for number in range(MAX_PACKS + 4):
        content += random_bytes(number, 70_000)
        done = publish_image(repository, write_image(tmp_path / "growing", content), f"1.{number}", delta_from=())
        packs = done.release.image.packs
        wanted = {chunk.id for chunk in read_index(repository.storage.read(public_key(done.release.image.index.path)))}

        assert len(packs) <= MAX_PACKS
        assert wanted <= places_in(repository.storage, packs).keys()
    _assert_sound(repository)


def test_every_listed_pack_is_needed(repository: Repository, tmp_path: Path) -> None:
    publish_image(repository, write_image(tmp_path / "a", random_bytes(1)), "1.0", delta_from=())
    done = publish_image(repository, write_image(tmp_path / "b", random_bytes(2)), "1.1", delta_from=())

    assert len(done.release.image.packs) == 1


def test_an_image_no_delta_can_be_made_of_is_published_without(repository: Repository, tmp_path: Path) -> None:
    publish_image(repository, write_image(tmp_path / "a", random_bytes(1)), "1.0")
    done = publish_image(repository, write_image(tmp_path / "b", random_bytes(2)), "1.1")

    assert done.deltas == ()
    assert [skipped.source for skipped in done.skipped_deltas] == [release_id("1.0")]
    assert "ext4" in done.skipped_deltas[0].reason


def test_a_delta_source_that_is_not_published_is_refused_before_any_work(repository: Repository, image: Path) -> None:
    before = [one.key for one in repository.storage.list_objects("public/")]

    with pytest.raises(InputError, match=r"'0.9/4'"):
        publish_image(repository, image, delta_from=("0.9/4",))
    assert [one.key for one in repository.storage.list_objects("public/")] == before


def test_an_unknown_product_or_channel_is_refused_by_name(repository: Repository, image: Path) -> None:
    with pytest.raises(UnknownChannelError, match="nightly"):
        publish_image(repository, image, channel="nightly")
    (repository.directory / "overhaul.toml").read_text()
    del repository.settings.products["kiosk"]
    with pytest.raises(ProductNotConfiguredError, match="kiosk"):
        publish_image(repository, image)


def test_missing_keys_are_told_before_any_work(repository: Repository, image: Path) -> None:
    (repository.keys_directory / "kiosk-1.pem").unlink()

    with pytest.raises(MissingKeyError, match="Signing as kiosk"):
        publish_image(repository, image)
    assert list(repository.storage.list_objects("public/content/")) == []


@pytest.mark.parametrize("folder", ["packs", "frames", "indexes"])
@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_publishing_again_mends_damaged_content(repository: Repository, image: Path, folder: str, damage: str) -> None:
    done = publish_image(repository, image)
    [ref] = [ref for ref in files_of(done.release) if f"/{folder}/" in ref.path]
    key = public_key(ref.path)
    if damage == "remove":
        repository.storage.delete(key)
    else:
        data = bytearray(repository.storage.read(key))
        data[len(data) // 2] ^= 1
        repository.storage.put(key, bytes(data))
    assert not verify(repository, progress=Silence()).is_sound
    publish_image(repository, image)

    _assert_sound(repository)


def test_a_damaged_old_release_does_not_stop_a_new_one(repository: Repository, image: Path, tmp_path: Path) -> None:
    first = publish_image(repository, image)
    repository.storage.delete(public_key(first.release.image.packs[0].pack.path))
    larger = write_image(tmp_path / "larger", image.read_bytes(), random_bytes(9))
    done = publish_image(repository, larger, "1.1")

    assert done.skipped_deltas
    places = places_in(repository.storage, done.release.image.packs)
    assert {chunk.id for chunk in read_index(repository.storage.read(public_key(done.release.image.index.path)))} <= (
        places.keys()
    )
    assert first.release.image.packs[0] not in done.release.image.packs


def test_a_release_of_chunks_that_are_all_there_has_no_pack_of_its_own(repository: Repository, image: Path) -> None:
    first = publish_image(repository, image).release
    second = publish_image(repository, image, "1.1").release
    again = publish_image(repository, image).release

    assert second.image.packs == first.image.packs
    assert (first.image.own_packs, second.image.own_packs, again.image.own_packs) == (1, 0, 1)
    assert second.image.own_pack_bytes == 0


def test_the_journal_is_empty_after_a_publish(repository: Repository, image: Path) -> None:
    publish_image(repository, image)

    assert repository.journal.entries() == []


def test_a_rerun_takes_up_what_the_journal_says_is_stored(repository: Repository, image: Path, tmp_path: Path) -> None:
    done = publish_image(repository, image)
    record = done.release
    fresh = make_repository(tmp_path / "second")
    for ref in files_of(record):
        fresh.storage.put(public_key(ref.path), repository.storage.read(public_key(ref.path)))
    entry = JournalEntry(
        release=record.id, channel="stable", started_at=1, index=record.image.index, packs=record.image.packs
    )
    fresh.journal.write(entry)
    again = publish_image(fresh, image)

    assert again.new_chunks == 0
    assert again.release.image == record.image
    assert fresh.journal.entries() == []


def test_a_journal_of_another_image_is_not_believed(repository: Repository, image: Path, tmp_path: Path) -> None:
    done = publish_image(repository, image)
    other = write_image(tmp_path / "other", random_bytes(5))
    left = JournalEntry(
        release=release_id("2.0"),
        channel="stable",
        started_at=1,
        index=done.release.image.index,
        packs=done.release.image.packs,
    )
    repository.journal.write(left)
    again = publish_image(repository, other, "2.0")

    assert again.release.image.index != done.release.image.index
    _assert_sound(repository)


def test_the_casync_store_holds_every_chunk_once(repository: Repository, image: Path) -> None:
    done = publish_image(repository, image, castr=True)
    chunks = [one for one in repository.storage.list_objects("public/castr/") if one.key.endswith(".cacnk")]
    frames = [
        frame
        for pack in done.release.image.packs
        for frame in read_frames(repository.storage.read(public_key(pack.frames.path)))
    ]

    assert done.castr_files == len(chunks) == len(frames)
    assert publish_image(repository, image, castr=True).castr_files == 0
    _assert_sound(repository)


def test_variants_do_not_share_packs_or_order(repository: Repository, image: Path, tmp_path: Path) -> None:
    publish_image(repository, image, "1.0", variant="shop")
    other = publish_image(repository, image, "0.5", variant="desk")

    assert other.new_chunks > 0
    assert other.skipped_deltas == ()
    assert release_order_key("0.5", "1") < release_order_key("1.0", "1")
    _assert_sound(repository)
