"""The cache of descriptions."""

import hashlib
from pathlib import Path

import pytest

from overhaul.content.cache import ContentCache


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_was_put_is_there_and_a_damaged_file_is_not(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "cache")
    cache.put(_digest(b"one"), b"one")
    assert _digest(b"one") in cache
    assert cache.get(_digest(b"one")) == b"one"
    (tmp_path / "cache" / _digest(b"one")).write_bytes(b"onE")
    assert cache.get(_digest(b"one")) is None
    assert _digest(b"one") not in cache


def test_only_what_is_wanted_is_kept(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    for data in (b"one", b"two"):
        cache.put(_digest(data), data)
    cache.keep_only({_digest(b"two")})
    assert (cache.get(_digest(b"one")), cache.get(_digest(b"two"))) == (None, b"two")


def test_without_a_directory_nothing_is_kept() -> None:
    cache = ContentCache(None)
    cache.put(_digest(b"one"), b"one")
    assert cache.get(_digest(b"one")) is None
    cache.put_if_room(_digest(b"one"), b"one")
    assert _digest(b"one") not in cache
    assert cache.size_of(_digest(b"one")) is None
    cache.keep_only(())


def test_what_only_others_need_is_kept_while_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ContentCache(tmp_path)
    monkeypatch.setattr("overhaul.content.cache.MAX_KEPT_BYTES", 8)
    for data in (b"12345", b"67890", b"678"):
        cache.put_if_room(_digest(data), data)
    assert [_digest(data) in cache for data in (b"12345", b"67890", b"678")] == [True, False, True]
    assert cache.size_of(_digest(b"12345")) == 5
    assert cache.size_of(_digest(b"67890")) is None

    monkeypatch.setattr("overhaul.content.cache.MAX_KEPT_BYTES", 1000)
    monkeypatch.setattr("overhaul.content.cache.KEPT_FREE_BYTES", 1 << 62)
    cache.put_if_room(_digest(b"more"), b"more")
    assert _digest(b"more") not in cache


def test_a_full_disk_is_no_reason_to_fail(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    cache.put(_digest(b"one"), b"one")
    cache.put_if_room(_digest(b"one"), b"one")
    assert cache.get(_digest(b"one")) is None
