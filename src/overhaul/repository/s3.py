"""A storage in an S3-compatible bucket, through obstore.

Credentials come from the environment or the instance (`AWS_ACCESS_KEY_ID` and its kin), never from our files.
Big files go up in parts; the object appears when the last part is in. `create` and `swap` use the bucket's
conditional writes (`If-None-Match`, `If-Match`), so the bucket decides races, not we. Parts of an upload that
died are invisible; a life-cycle rule of the bucket should remove them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from overhaul.repository.storage import (
    MissingObjectError,
    ObjectChangedError,
    ObjectExistsError,
    StorageFailedError,
    StoredObject,
    check_key,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

_PART_BYTES = 16 << 20


class S3Storage:
    """Objects in the bucket named by `s3://bucket/prefix`."""

    def __init__(
        self,
        *,
        bucket: str,
        prefix: str = "",
        endpoint: str | None = None,
        region: str | None = None,
        allow_http: bool = False,
    ) -> None:
        from obstore.store import S3Store

        self.place = f"s3://{bucket}/{prefix}".rstrip("/")
        config: S3Config = {}
        if endpoint is not None:
            config["endpoint"] = endpoint
        if region is not None:
            config["region"] = region
        client: ClientConfig = {"allow_http": allow_http}
        self._store = S3Store(bucket, prefix=prefix.strip("/") or None, config=config, client_options=client)

    def read(self, key: str, *, start: int = 0, end: int | None = None) -> bytes:
        """Return the bytes of `key` from `start` up to `end`; raise `MissingObjectError` when there are none."""
        import obstore

        with self._explained(key):
            if start == 0 and end is None:
                return bytes(obstore.get(self._store, check_key(key)).bytes())
            size = obstore.head(self._store, check_key(key))["size"]
            stop = size if end is None else min(end, size)
            # A bucket answers an empty range with an error.
            return bytes(obstore.get_range(self._store, key, start=start, end=stop)) if start < stop else b""

    def put(self, key: str, data: bytes) -> None:
        """Store `data` under `key`, replacing what was there."""
        import obstore

        with self._explained(key, writing=True):
            obstore.put(self._store, check_key(key), data, use_multipart=False)

    def put_file(self, key: str, source: Path) -> None:
        """Store the content of the file `source` under `key`."""
        import obstore

        with self._explained(key, writing=True):
            obstore.put(self._store, check_key(key), source, chunk_size=_PART_BYTES)

    def create(self, key: str, data: bytes) -> None:
        """Store `data` under a new `key`; raise `ObjectExistsError` when it exists."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._explained(key, writing=True):
            try:
                obstore.put(self._store, check_key(key), data, mode="create")
            except AlreadyExistsError as error:
                raise ObjectExistsError(key=key) from error

    def swap(self, key: str, data: bytes, *, expected: bytes) -> None:
        """Store `data` under `key` only while it holds `expected`; raise `ObjectChangedError` when it does not."""
        import obstore
        from obstore.exceptions import PreconditionError

        with self._explained(key):
            try:
                found = obstore.get(self._store, check_key(key))
                etag = found.meta["e_tag"]
                if bytes(found.bytes()) != expected:
                    raise ObjectChangedError(key=key)
                obstore.put(self._store, key, data, mode={"e_tag": etag})
            except (FileNotFoundError, PreconditionError) as error:
                raise ObjectChangedError(key=key) from error

    def stat(self, key: str) -> StoredObject | None:
        """Return what is known of `key`, or None when it does not exist."""
        import obstore

        with self._explained(key):
            try:
                found = obstore.head(self._store, check_key(key))
            except FileNotFoundError:
                return None
        return StoredObject(key=key, size=found["size"], modified_at=found["last_modified"].timestamp())

    def list_objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key begins with `prefix`, in key order."""
        import obstore

        # The library lists whole folders; what is behind the last slash of our prefix is compared here.
        folder = prefix.rpartition("/")[0]
        with self._explained(prefix):
            found = [
                StoredObject(key=meta["path"], size=meta["size"], modified_at=meta["last_modified"].timestamp())
                for batch in obstore.list(self._store, folder or None)
                for meta in batch
                if meta["path"].startswith(prefix)
            ]
        yield from sorted(found, key=lambda one: one.key)

    def delete(self, key: str) -> None:
        """Remove `key`; removing what is not there is no error."""
        import obstore

        with self._explained(key):
            try:
                obstore.delete(self._store, check_key(key))
            except FileNotFoundError:
                return

    @contextmanager
    def _explained(self, key: str, *, writing: bool = False) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as error:
            if writing:
                raise StorageFailedError(place=self.place, reason="the bucket does not exist") from error
            raise MissingObjectError(key=key) from error
        except BaseError as error:
            # The library's message goes on with a dump of its internals behind an empty line.
            reason = " ".join(str(error).split("\n\n", 1)[0].split())
            raise StorageFailedError(place=self.place, reason=f"{key}: {reason}") from error
