"""Addresses name storages."""

from pathlib import Path

import pytest

from overhaul.repository.local import LocalStorage
from overhaul.repository.opening import StorageAddress, UnusableAddressError, open_storage
from overhaul.repository.s3 import S3Storage


def test_a_relative_directory_is_taken_from_the_base(tmp_path: Path) -> None:
    storage = open_storage("store", base=tmp_path)

    assert isinstance(storage, LocalStorage)
    assert storage.root == tmp_path / "store"


def test_a_file_address_names_a_directory() -> None:
    storage = open_storage("file:///srv/updates")

    assert isinstance(storage, LocalStorage)
    assert storage.root == Path("/srv/updates")


def test_a_bucket_address_names_a_bucket_and_prefix() -> None:
    storage = open_storage(StorageAddress(url="s3://bucket/some/prefix/", region="eu-central-1"))

    assert isinstance(storage, S3Storage)
    assert storage.place == "s3://bucket/some/prefix"


@pytest.mark.parametrize("url", ["http://host/x", "s3://", "ftp://a", "file://host/path"])
def test_another_kind_of_address_is_refused_by_name(url: str) -> None:
    with pytest.raises(UnusableAddressError, match=url):
        open_storage(url)
