"""Signed metadata read back by those who hold the whole tree: the editor and the offline check; and signed.

A repository host may be broken into, so even the publisher believes nothing there without its signatures:
otherwise it would sign whatever was slipped in between two publishes. Devices do not use this module; they
follow the full client workflow.
"""

from collections.abc import Callable
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.exceptions import LengthOrHashMismatchError, RepositoryError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Targets
from tuf.api.serialization import SerializationError

from overhaul.errors import OperatorError, OverhaulError
from overhaul.trust import roles
from overhaul.trust.layout import metadata_key
from overhaul.trust.refusals import BadSignatureError, MalformedMetadataError, MixAndMatchError

#: Returns the bytes under a key relative to the public root, or None when there are none.
ReadKey = Callable[[str], bytes | None]
Delegator = Root | Targets
AnyMetadata = Metadata[Any]


class MissingMetadataError(OperatorError):
    """A metadata file that the tree must have."""

    def __init__(self, *, key: str) -> None:
        self.key = key
        super().__init__(
            f"{key} is missing from the repository; restore it from a copy, or make a new repository with "
            "`overhaul init` when there is none."
        )


def parse(role: str, data: bytes) -> AnyMetadata:
    """Return the metadata of `role` held in `data`, unverified; raise `MalformedMetadataError` for anything else."""
    try:
        metadata: AnyMetadata = Metadata.from_bytes(data)
    except RepositoryError as error:
        raise MalformedMetadataError(role=role, reason=str(error.__cause__ or error)) from error
    kind = role if role in roles.TOP_LEVEL else roles.TARGETS
    if metadata.signed.type != kind:
        raise MalformedMetadataError(role=role, reason=f"it calls itself {metadata.signed.type}")
    return metadata


def check_signed(role: str, metadata: AnyMetadata, delegator: Delegator) -> None:
    """Check that enough of the keys that `delegator` names for `role` signed `metadata`.

    Raises:
        BadSignatureError: They did not.
        MalformedMetadataError: It holds what nobody can sign, such as a number with a fraction.
    """
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except SerializationError as error:
        raise MalformedMetadataError(role=role, reason=str(error.__cause__ or error)) from error
    except (UnsignedMetadataError, ValueError) as error:
        raise BadSignatureError(role=role, reason=str(error)) from error


def sign(metadata: AnyMetadata, signer: Signer) -> None:
    """Add the signature of `signer`; what it refuses for a reason of ours is raised as that."""
    try:
        metadata.sign(signer, append=True)
    except UnsignedMetadataError as error:
        if isinstance(error.__cause__, OverhaulError):
            raise error.__cause__ from error
        raise


def read_listed(read: ReadKey, role: str, listed: MetaFile) -> tuple[bytes, AnyMetadata]:
    """Return the file and the unverified metadata of `role` as its signed list names it.

    Raises:
        MissingMetadataError: There is no such file.
        MixAndMatchError: It is another one.
    """
    key = metadata_key(role, listed.version)
    data = read(key)
    if data is None:
        raise MissingMetadataError(key=key)
    try:
        listed.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise MixAndMatchError(role=role, reason=str(error)) from error
    metadata = parse(role, data)
    if metadata.signed.version != listed.version:
        reason = f"version {metadata.signed.version} where {listed.version} is listed"
        raise MixAndMatchError(role=role, reason=reason)
    return data, metadata


def read_root_chain(read: ReadKey, *, anchor: bytes | None = None) -> list[Metadata[Root]]:
    """Return every root from the first (or `anchor`) on, each signed by its predecessor and by itself.

    Raises:
        MissingMetadataError: There is no first root.
        BadSignatureError: A root is not signed by enough keys of the one before it or of its own.
        MixAndMatchError: A root has another version than its name says.
    """
    first = anchor if anchor is not None else read(metadata_key(roles.ROOT, 1))
    if first is None:
        raise MissingMetadataError(key=metadata_key(roles.ROOT, 1))
    root: Metadata[Root] = parse(roles.ROOT, first)
    check_signed(roles.ROOT, root, root.signed)
    chain = [root]
    while (data := read(metadata_key(roles.ROOT, root.signed.version + 1))) is not None:
        successor: Metadata[Root] = parse(roles.ROOT, data)
        if successor.signed.version != root.signed.version + 1:
            reason = f"version {successor.signed.version} where {root.signed.version + 1} is due"
            raise MixAndMatchError(role=roles.ROOT, reason=reason)
        check_signed(roles.ROOT, successor, root.signed)
        check_signed(roles.ROOT, successor, successor.signed)
        root = successor
        chain.append(root)
    return chain
