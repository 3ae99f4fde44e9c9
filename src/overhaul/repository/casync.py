"""Which files a release has in the casync chunk store beside it."""

import hashlib
from collections.abc import Container, Mapping

from overhaul.content.castr import chunk_file_name
from overhaul.content.index import Chunk, read_index
from overhaul.release.record import Release
from overhaul.repository.layout import castr_index_path, castr_store_path, public_key
from overhaul.repository.packs import WrongContentError
from overhaul.repository.storage import Storage


def casync_index(release: Release, stored: Container[str]) -> str | None:
    """Return the path of the release's index beside the chunk store, or None when none was written."""
    path = castr_index_path(release)
    return path if path in stored else None


def casync_chunks(storage: Storage, release: Release) -> Mapping[str, Chunk]:
    """Return the chunk of each file that the release's index beside the store needs, by path.

    Raises:
        WrongContentError: It is not the release's index.
    """
    path = castr_index_path(release)
    data = storage.read(public_key(path))
    if hashlib.sha256(data).hexdigest() != release.image.index.sha256:
        raise WrongContentError(path=path, reason=f"it is not the index of {release.id}")
    store = castr_store_path(release.id.product)
    return {f"{store}/{chunk_file_name(chunk.id)}": chunk for chunk in read_index(data)}
