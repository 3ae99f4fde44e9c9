"""The static tree before a storage that fails, loses objects, or lies elsewhere."""

import http.client
import random

import pytest
from starlette.testclient import TestClient
from tests.asgi import running

from overhaul.repository.memory import MemoryStorage
from overhaul.repository.storage import StorageFailedError
from overhaul.server.pointer import Pointer
from overhaul.server.static import PIECE_BYTES, StaticTree
from overhaul.server.tree import StorageTree

DIGEST = "ab" * 32
PACK = f"content/packs/ab/{DIGEST}.pack"
BYTES = random.Random(1).randbytes(PIECE_BYTES * 3 + 17)


class _FailingStorage(MemoryStorage):
    """Fails to read from the given position on."""

    fails_from: int | None = None

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        if self.fails_from is not None and start >= self.fails_from:
            raise StorageFailedError(place="s3://bucket", reason="it is unplugged")
        return super().read(key, start=start, end=end)


@pytest.fixture
def storage() -> _FailingStorage:
    filled = _FailingStorage()
    filled.put("public/" + PACK, BYTES)
    filled.put("public/metadata/timestamp.json", b"{}")
    filled.put("public/metadata/1.root.json", b"{}")
    return filled


def _static(storage: MemoryStorage, *, redirect_to: str | None = None) -> StaticTree:
    tree = StorageTree(storage)
    return StaticTree(tree, Pointer(tree, ask_every_s=0), redirect_to=redirect_to)


def test_a_large_body_is_put_together_from_pieces_of_the_storage(storage: _FailingStorage) -> None:
    client = TestClient(_static(storage))

    assert client.get(PACK).content == BYTES
    asked = f"bytes={PIECE_BYTES - 1}-{PIECE_BYTES * 2}"
    assert client.get(PACK, headers={"range": asked}).content == BYTES[PIECE_BYTES - 1 : PIECE_BYTES * 2 + 1]


@pytest.mark.parametrize("path", [PACK, "metadata/timestamp.json", "metadata/1.root.json"])
def test_a_storage_that_fails_is_told_to_the_device_as_a_reason_to_wait(storage: _FailingStorage, path: str) -> None:
    storage.fails_from = 0
    answer = TestClient(_static(storage)).get(path, headers={"range": "bytes=0-0"})

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "bucket" not in answer.text


def test_a_storage_that_fails_in_the_middle_cuts_the_connection(storage: _FailingStorage) -> None:
    storage.fails_from = PIECE_BYTES * 2
    with running(_static(storage)) as site, pytest.raises(http.client.IncompleteRead):
        site.ask("/" + PACK)


def test_an_object_that_was_pruned_after_it_was_first_served_is_not_found(storage: _FailingStorage) -> None:
    client = TestClient(_static(storage))
    assert client.get(PACK, headers={"range": "bytes=0-9"}).status_code == 206

    storage.delete("public/" + PACK)

    assert client.get(PACK, headers={"range": "bytes=0-9"}).status_code == 404
    assert client.get(PACK).status_code == 404


def test_big_files_are_redirected_to_the_bucket_and_signed_files_are_not(storage: _FailingStorage) -> None:
    client = TestClient(_static(storage, redirect_to="https://bucket.example/public/"), follow_redirects=False)

    answer = client.get(PACK)
    assert (answer.status_code, answer.headers["location"]) == (307, f"https://bucket.example/public/{PACK}")
    assert client.get("metadata/timestamp.json").status_code == 200
    assert client.get("content/../private/lock").status_code == 404


def test_the_pointer_can_be_asked_for_in_part(storage: _FailingStorage) -> None:
    storage.put("public/metadata/timestamp.json", b"0123456789")
    client = TestClient(_static(storage))

    answer = client.get("metadata/timestamp.json", headers={"range": "bytes=2-4"})
    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["content-range"] == "bytes 2-4/10"
    assert client.get("metadata/timestamp.json", headers={"range": "bytes=10-"}).status_code == 416
    assert client.get("metadata/timestamp.json", headers={"range": "bytes=0-1,4-5"}).content == b"0123456789"
