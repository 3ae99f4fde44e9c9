"""The signed files that no other signed file names by digest: roots and the timestamp.

A signature covers what such a file says, not how it is written, and a threshold is met although one of several
signatures is broken. So a flipped byte can leave it valid. Here such a file is right only when it is exactly what
our editor writes and every one of its signatures verifies.
"""

from collections.abc import Callable, Iterator

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Timestamp
from tuf.api.serialization import SerializationError

from overhaul.trust import roles
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key


def inexact_files(read: Callable[[str], bytes | None]) -> Iterator[tuple[str, str]]:
    """Yield path and sentence of every root or timestamp that is not exactly as it was signed."""
    keys: dict[str, Key] = {}
    version = 1
    while (data := read(metadata_key(roles.ROOT, version))) is not None:
        try:
            root = Metadata[Root].from_bytes(data)
        except (RepositoryError, ValueError) as error:
            yield metadata_key(roles.ROOT, version), f"The root cannot be read ({error})."
            return
        keys |= root.signed.keys
        yield from _faults(metadata_key(roles.ROOT, version), data, root, keys)
        version += 1
    data = read(TIMESTAMP_KEY)
    if data is not None:
        try:
            timestamp = Metadata[Timestamp].from_bytes(data)
        except (RepositoryError, ValueError) as error:
            yield TIMESTAMP_KEY, f"The timestamp cannot be read ({error})."
            return
        yield from _faults(TIMESTAMP_KEY, data, timestamp, keys)


def _faults(
    path: str, data: bytes, metadata: Metadata[Root] | Metadata[Timestamp], keys: dict[str, Key]
) -> Iterator[tuple[str, str]]:
    try:
        as_written, signed = metadata.to_bytes(), metadata.signed_bytes
    except SerializationError:
        # A digit that became a point makes a fraction, which has no form that could be signed.
        yield path, "The file holds what nobody can have signed; restore it from a copy."
        return
    if as_written != data:
        yield path, "The file is not written as it was signed; restore it from a copy."
    for keyid, signature in metadata.signatures.items():
        try:
            keys[keyid].verify_signature(signature, signed)
        except (KeyError, UnverifiedSignatureError, VerificationError):
            yield path, f"The signature by key {keyid[:12]} is broken; restore the file from a copy."
