"""From the address in the configuration to the storage it names."""

from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from overhaul.errors import InputError
from overhaul.release.names import Text
from overhaul.repository.local import LocalStorage
from overhaul.repository.storage import Storage


class StorageAddress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a repository's objects live."""

    #: A directory path, `file:///path` or `s3://bucket/prefix`.
    url: Text
    #: Address of an S3-compatible service other than Amazon's.
    endpoint: str | None = None
    region: str | None = None
    #: Speak plain http to that endpoint.
    allow_http: bool = False


class UnusableAddressError(InputError):
    """A storage address of a kind that is not known."""

    def __init__(self, *, url: str) -> None:
        self.url = url
        super().__init__(
            f"The storage address {url!r} is not usable: give a directory, file:///directory or s3://bucket/prefix."
        )


def open_storage(address: StorageAddress | str, *, base: Path | None = None) -> Storage:
    """Return the storage at `address`; a relative directory is taken from `base`."""
    if isinstance(address, str):
        address = StorageAddress(url=address)
    if "://" not in address.url:
        return LocalStorage((base or Path()) / address.url)
    try:
        parts = urlsplit(address.url)
    except ValueError as error:
        raise UnusableAddressError(url=address.url) from error
    if parts.scheme == "file" and parts.netloc == "" and parts.path:
        return LocalStorage(Path(parts.path))
    if parts.scheme == "s3" and parts.netloc:
        from overhaul.repository.s3 import S3Storage

        return S3Storage(
            bucket=parts.netloc,
            prefix=parts.path.strip("/"),
            endpoint=address.endpoint,
            region=address.region,
            allow_http=address.allow_http,
        )
    raise UnusableAddressError(url=address.url)
