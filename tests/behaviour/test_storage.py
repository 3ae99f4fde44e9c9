"""What every storage promises, asked of every storage there is."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.buckets import BUCKET, bucket_service

from overhaul.repository.local import LocalStorage
from overhaul.repository.memory import MemoryStorage
from overhaul.repository.opening import StorageAddress, open_storage
from overhaul.repository.storage import (
    MissingObjectError,
    ObjectChangedError,
    ObjectExistsError,
    Storage,
    StorageFailedError,
    UnusableKeyError,
)


@pytest.fixture(scope="session", name="endpoint")
def _endpoint() -> Iterator[str]:
    with bucket_service() as endpoint:
        yield endpoint


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "store"))
    if request.param == "memory":
        return MemoryStorage()
    endpoint: str = request.getfixturevalue("endpoint")
    return open_storage(
        StorageAddress(url=f"s3://{BUCKET}/{tmp_path.name}-{os.getpid()}", endpoint=endpoint, allow_http=True)
    )


def _keys(storage: Storage, prefix: str = "") -> list[str]:
    return [found.key for found in storage.list_objects(prefix)]


def test_what_was_put_is_read_back(storage: Storage) -> None:
    storage.put("public/a/b.json", b"hello")

    assert storage.read("public/a/b.json") == b"hello"


def test_putting_again_replaces(storage: Storage) -> None:
    storage.put("a", b"a longer first content")
    storage.put("a", b"second")

    assert storage.read("a") == b"second"


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, 3, b"abc"), (2, None, b"cdef"), (4, 100, b"ef"), (6, None, b""), (6, 9, b""), (100, 110, b""), (3, 3, b"")],
)
def test_a_range_ends_where_the_object_ends(storage: Storage, start: int, end: int | None, expected: bytes) -> None:
    storage.put("six", b"abcdef")

    assert storage.read("six", start=start, end=end) == expected


def test_an_empty_object_is_an_object(storage: Storage) -> None:
    storage.put("empty", b"")

    found = storage.stat("empty")
    assert storage.read("empty") == b""
    assert found is not None
    assert found.size == 0


def test_reading_what_is_not_there_names_the_key(storage: Storage) -> None:
    with pytest.raises(MissingObjectError, match="no/such"):
        storage.read("no/such")
    with pytest.raises(MissingObjectError, match="no/such"):
        storage.read("no/such", start=1, end=2)


def test_a_folder_is_not_an_object(storage: Storage) -> None:
    storage.put("folder/inside", b"x")

    assert storage.stat("folder") is None
    with pytest.raises(MissingObjectError):
        storage.read("folder")
    assert storage.stat("folder/inside/deeper") is None


def test_a_file_is_stored_whole(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "source").write_bytes(content)
    storage.put_file("packs/one.pack", tmp_path / "source")

    assert storage.read("packs/one.pack") == content
    assert storage.read("packs/one.pack", start=65_000, end=65_010) == content[65_000:65_010]


def test_a_file_bigger_than_a_part_is_stored_whole(storage: Storage, tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 33
    (tmp_path / "source").write_bytes(content)
    storage.put_file("big", tmp_path / "source")

    found = storage.stat("big")
    assert found is not None
    assert found.size == len(content)
    assert storage.read("big") == content


def test_a_key_is_created_once(storage: Storage) -> None:
    storage.create("new", b"first")
    with pytest.raises(ObjectExistsError, match="new"):
        storage.create("new", b"second")

    assert storage.read("new") == b"first"


def test_one_of_many_racing_creators_wins(storage: Storage) -> None:
    winners: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        try:
            storage.create("lease", str(number).encode())
        except ObjectExistsError:
            return
        winners.append(number)

    _run_all([threading.Thread(target=race, args=(number,)) for number in range(8)])

    assert len(winners) == 1
    assert storage.read("lease") == str(winners[0]).encode()


def test_a_swap_replaces_the_expected_content_only(storage: Storage) -> None:
    storage.put("pointer", b"1")
    storage.swap("pointer", b"2", expected=b"1")
    with pytest.raises(ObjectChangedError, match="pointer"):
        storage.swap("pointer", b"3", expected=b"1")
    with pytest.raises(ObjectChangedError):
        storage.swap("nothing", b"3", expected=b"")

    assert storage.read("pointer") == b"2"
    assert storage.stat("nothing") is None


def test_one_of_many_racing_swappers_wins(storage: Storage) -> None:
    storage.put("pointer", b"old")
    winners: list[int] = []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        try:
            storage.swap("pointer", str(number).encode(), expected=b"old")
        except ObjectChangedError:
            return
        winners.append(number)

    _run_all([threading.Thread(target=race, args=(number,)) for number in range(8)])

    assert len(winners) == 1
    assert storage.read("pointer") == str(winners[0]).encode()


def _run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_listing_is_in_key_order_and_keeps_to_its_prefix(storage: Storage) -> None:
    for key in ("b/2", "b/1", "a", "b.json", "b-x/y", "bb/z", "b/deep/er/3"):
        storage.put(key, key.encode())

    assert _keys(storage) == ["a", "b-x/y", "b.json", "b/1", "b/2", "b/deep/er/3", "bb/z"]
    assert _keys(storage, "b/") == ["b/1", "b/2", "b/deep/er/3"]
    assert _keys(storage, "b") == ["b-x/y", "b.json", "b/1", "b/2", "b/deep/er/3", "bb/z"]
    assert _keys(storage, "b/d") == ["b/deep/er/3"]
    assert _keys(storage, "nothing/") == []


def test_a_listing_tells_sizes_and_times(storage: Storage) -> None:
    storage.put("a", b"12345")
    (found,) = storage.list_objects()

    assert found.size == 5
    assert found == storage.stat("a")
    assert found.modified_at > 1_600_000_000


def test_names_with_every_allowed_sign_survive(storage: Storage) -> None:
    key = "targets/p/releases/v/a/1.0~rc1+git_2-3/B.json"
    storage.put(key, b"x")

    assert _keys(storage, "targets/") == [key]
    assert storage.read(key) == b"x"


def test_what_is_deleted_is_gone_and_deleting_twice_is_no_error(storage: Storage) -> None:
    storage.put("a/b", b"x")
    storage.delete("a/b")
    storage.delete("a/b")

    assert storage.stat("a/b") is None
    assert _keys(storage) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", "a/", ".hidden", "a/.hidden", "a/\0"])
def test_a_key_never_leaves_the_storage(storage: Storage, key: str) -> None:
    with pytest.raises(UnusableKeyError):
        storage.put(key, b"x")
    with pytest.raises(UnusableKeyError):
        storage.read(key)


def test_a_bucket_that_does_not_answer_is_a_storage_failure(endpoint: str) -> None:
    storage = open_storage(StorageAddress(url="s3://no-such-bucket/x", endpoint=endpoint, allow_http=True))

    with pytest.raises(StorageFailedError, match=r"s3://no-such-bucket/x"):
        storage.put("a", b"x")


def test_a_directory_that_cannot_be_written_is_a_storage_failure(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file, not a directory")
    storage = LocalStorage(tmp_path / "store")

    with pytest.raises((StorageFailedError, MissingObjectError)):
        storage.put("a", b"x")
