"""Metadata under change: each role as it was read, and as it will be signed.

Nothing that was published is believed without its signatures, see `_loading`.
"""

from dataclasses import dataclass, field
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot

from overhaul.trust import roles
from overhaul.trust._loading import (
    AnyMetadata,
    MissingMetadataError,
    ReadKey,
    check_signed,
    parse,
    read_listed,
    read_root_chain,
)
from overhaul.trust.layout import TIMESTAMP_KEY
from overhaul.trust.refusals import BadSignatureError


@dataclass(kw_only=True)
class Draft:
    """A role's metadata as read, or as it will be signed when `dirty`."""

    metadata: AnyMetadata
    published_version: int
    dirty: bool = False


@dataclass(kw_only=True)
class Drafts:
    """The top-level roles, and those delegated ones that were asked for."""

    root: Draft
    targets: Draft
    snapshot: Draft
    timestamp: Draft
    #: The root whose keys must sign the next one too.
    previous_root: Root | None
    delegated: dict[str, Draft] = field(default_factory=dict)


def read_drafts(read: ReadKey) -> Drafts:
    """Return the published state, as far as every change needs it.

    Raises:
        MissingMetadataError: There is none, or a part of it is gone.
        BadSignatureError: Something was not signed as it must be.
    """
    chain = read_root_chain(read)
    # Older keys count for reading only: after a crash between a new root and its timestamp the other
    # top-level roles still carry the signatures of the keys before.
    keepers = [metadata.signed for metadata in reversed(chain[-2:])]
    data = read(TIMESTAMP_KEY)
    if data is None:
        raise MissingMetadataError(key=TIMESTAMP_KEY)
    timestamp = _believed(roles.TIMESTAMP, parse(roles.TIMESTAMP, data), keepers)
    _data, metadata = read_listed(read, roles.SNAPSHOT, timestamp.metadata.signed.snapshot_meta)
    snapshot = _believed(roles.SNAPSHOT, metadata, keepers)
    _data, metadata = read_listed(read, roles.TARGETS, listed_in(snapshot.metadata.signed, roles.TARGETS))
    targets = _believed(roles.TARGETS, metadata, keepers)
    # A second parse, since the draft of the next root is edited in place.
    current = Metadata[Root].from_bytes(chain[-1].to_bytes())
    return Drafts(
        root=draft_of(current),
        targets=targets,
        snapshot=snapshot,
        timestamp=timestamp,
        previous_root=chain[-1].signed,
    )


def new_draft(signed: Any) -> Draft:
    """Return the draft of a role that was never published."""
    return Draft(metadata=Metadata(signed), published_version=0, dirty=True)


def draft_of(metadata: AnyMetadata) -> Draft:
    """Return the draft of a role as it is published."""
    return Draft(metadata=metadata, published_version=metadata.signed.version)


def _believed(role: str, metadata: AnyMetadata, keepers: list[Root]) -> Draft:
    """Return the draft of `metadata`, to be signed again when only the keys of the root before signed it."""
    try:
        check_signed(role, metadata, keepers[0])
    except BadSignatureError:
        if len(keepers) == 1:
            raise
        check_signed(role, metadata, keepers[1])
        return Draft(metadata=metadata, published_version=metadata.signed.version, dirty=True)
    return draft_of(metadata)


def listed_in(snapshot: Snapshot, role: str) -> MetaFile:
    """Return what `snapshot` says of a role; raise `MissingMetadataError` when it says nothing."""
    listed = snapshot.meta.get(f"{role}.json")
    if listed is None:
        raise MissingMetadataError(key=f"metadata/N.{role}.json")
    return listed
