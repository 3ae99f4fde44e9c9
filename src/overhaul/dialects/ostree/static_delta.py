"""Static deltas as they lie in a repository: what a superblock promises, and what its parts unpack to.

A delta is a `superblock` and parts `0`, `1`, ...; parts may also lie inside the superblock.

    superblock   `(a{sv}tayay COMMIT aya(uayttay)a(yaytt))`: metadata, time (big-endian), source (empty: from
                 nothing), target, the target's commit, nothing, headers of parts, objects to be fetched loose
    part         `(yay)`: `x` and an .xz container, or 0 and plain bytes, of `(a(uuu)aa(ayay)ayay)`:
                 modes (big-endian), sets of extended attributes, data, operations

What the operations do stands in `delta_apply`. What a part unpacks to is bounded by its header.
"""

import hashlib
import lzma
from dataclasses import dataclass
from typing import Any, NamedTuple

from overhaul.dialects.ostree.errors import MalformedOstreeDataError, WrongChecksumError
from overhaul.dialects.ostree.gvariant import Variant, big64, decode, encode
from overhaul.dialects.ostree.layout import delta_directory
from overhaul.dialects.ostree.objects import (
    CHECKSUM_SIZE,
    COMMIT_TYPE,
    Metadata,
    ObjectName,
    ObjectType,
    check_checksum_size,
    check_object,
    unique,
)

SUPERBLOCK_TYPE = f"(a{{sv}}tayay{COMMIT_TYPE}aya(uayttay)a(yaytt))"
PART_TYPE = "(yay)"
PAYLOAD_TYPE = "(a(uuu)aa(ayay)ayay)"
ENDIANNESS_KEY = "ostree.endianness"
#: What a part may unpack to besides its objects: operations, modes, attributes. OSTree's own parts have about 32 MiB.
_OVERHEAD = 16 << 20
#: Parts beyond this are refused: they would have to be held in memory.
MAX_PART_SIZE = 512 << 20
#: What unpacking may take besides its result. OSTree's own parts need 33 MiB, xz's highest preset 65.
_DECODER_MEMORY = 80 << 20
#: A record of an object in a part's header: its kind and its checksum.
_OBJECT_RECORD_SIZE = 1 + CHECKSUM_SIZE


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaPart:
    """What the superblock says of one part."""

    sha256: bytes
    #: Of the part's file.
    size: int
    #: Of its objects, unpacked.
    unpacked_size: int
    objects: tuple[ObjectName, ...]
    #: The part itself, when it lies inside the superblock.
    inline: bytes | None = None


class Fallback(NamedTuple):
    """An object that is to be fetched loose."""

    name: ObjectName
    size: int
    unpacked_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What a delta brings and needs."""

    #: The commit it needs, or None.
    source: bytes | None
    target: bytes
    #: The target's commit object; its bytes, with the checksum `target`.
    commit: bytes
    #: The commit's detached metadata (signatures), when the delta brings them.
    detached: Metadata | None
    timestamp: int
    parts: tuple[DeltaPart, ...]
    fallbacks: tuple[Fallback, ...]


def decode_superblock(data: bytes, *, what: str = "static delta") -> Superblock:
    """Return what the superblock in `data` says; its commit has the target's checksum.

    Raises:
        MalformedOstreeDataError, WrongChecksumError: It is none, or contradicts itself.
    """
    pairs, timestamp, source, target, commit_value, _needs, heads, loose = decode(SUPERBLOCK_TYPE, data, what=what)
    metadata = unique(pairs, what=what)
    for checksum in (target, *((source,) if source else ())):
        check_checksum_size(checksum, what=what)
    commit = encode(COMMIT_TYPE, commit_value)
    check_object(ObjectName(ObjectType.COMMIT, target), commit)
    order = _byte_order(metadata)
    directory = delta_directory(source or None, target)
    detached = metadata.get(f"{directory}/commitmeta")
    parts = tuple(
        _part(head, metadata.get(f"{directory}/{number}"), order, what=what) for number, head in enumerate(heads)
    )
    return Superblock(
        source=source or None,
        target=target,
        commit=commit,
        detached=unique(detached.value, what=what) if detached is not None and detached.type == "a{sv}" else None,
        timestamp=big64(timestamp),
        parts=parts,
        fallbacks=tuple(_fallback(one, order, what=what) for one in loose),
    )


def _byte_order(metadata: Metadata) -> str:
    held = metadata.get(ENDIANNESS_KEY)
    return "big" if held == Variant("y", ord("B")) else "little"


def _ordered(value: int, order: str) -> int:
    return big64(value) if order == "big" else value


def _part(head: Any, inline: Variant | None, order: str, *, what: str) -> DeltaPart:
    version, digest, size, unpacked_size, records = head
    if version or len(digest) != CHECKSUM_SIZE or len(records) % _OBJECT_RECORD_SIZE:
        raise MalformedOstreeDataError(what=what, reason="the header of a part is none")
    unpacked_size = _ordered(unpacked_size, order)
    if unpacked_size > MAX_PART_SIZE or _ordered(size, order) > MAX_PART_SIZE:
        raise MalformedOstreeDataError(what=what, reason=f"a part is bigger than {MAX_PART_SIZE} bytes")
    names = [records[at : at + _OBJECT_RECORD_SIZE] for at in range(0, len(records), _OBJECT_RECORD_SIZE)]
    return DeltaPart(
        sha256=digest,
        size=_ordered(size, order),
        unpacked_size=unpacked_size,
        objects=tuple(_object_name(record[0], record[1:], what=what) for record in names),
        inline=encode(PART_TYPE, inline.value) if inline is not None and inline.type == PART_TYPE else None,
    )


def _fallback(one: Any, order: str, *, what: str) -> Fallback:
    kind, checksum, size, unpacked_size = one
    check_checksum_size(checksum, what=what)
    return Fallback(_object_name(kind, checksum, what=what), _ordered(size, order), _ordered(unpacked_size, order))


def _object_name(kind: int, checksum: bytes, *, what: str) -> ObjectName:
    if not ObjectType.FILE <= kind <= ObjectType.COMMIT:
        raise MalformedOstreeDataError(what=what, reason=f"an object has the unknown kind {kind}")
    return ObjectName(ObjectType(kind), checksum)


def unpack_part(part: DeltaPart, data: bytes, *, what: str) -> bytes:
    """Return the payload of a part's file after checking its digest.

    Raises:
        WrongChecksumError, MalformedOstreeDataError: These are not its bytes, or unpack to more than they may.
    """
    actual = hashlib.sha256(data).digest()
    if actual != part.sha256:
        raise WrongChecksumError(what=what, expected=part.sha256.hex(), actual=actual.hex())
    if not data:
        raise MalformedOstreeDataError(what=what, reason="it is empty")
    # `(yay)`: the last member has no offset, so the rest of the file is the packed payload.
    form, packed = data[0], memoryview(data)[1:]
    limit = part.unpacked_size + _OVERHEAD
    if form == 0:
        return bytes(packed)
    if form != ord("x"):
        raise MalformedOstreeDataError(what=what, reason=f"it is packed in the unknown form {form}")
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_DECODER_MEMORY)
    try:
        payload = unpacker.decompress(packed, limit + 1)
    except lzma.LZMAError as error:
        raise MalformedOstreeDataError(what=what, reason=f"it cannot be unpacked ({error})") from error
    if len(payload) > limit or not unpacker.eof or unpacker.unused_data:
        raise MalformedOstreeDataError(what=what, reason="it unpacks to more or less than it says")
    return payload
