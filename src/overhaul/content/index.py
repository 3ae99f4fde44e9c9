"""The index of an image: the ordered chunks it is made of, in casync's `.caibx` format.

The index is signed (by digest, through the release record), so it is the truth about an image: every chunk id
is the SHA-512/256 of the chunk's bytes. The layout, all integers little-endian, 64 bit:

    offset  0  header  size=48, magic 96824d9c7b129ff9, feature flags, minimum, average, maximum chunk size
           48  table   size=2^64-1, magic e75b9e112f17417d
           64  items   (end offset in the image, 32 byte id) for each chunk
            n  tail    0, 0, 48, size of the table from its header to the end of the tail, magic 4b4f050e5549ecd1

Source: casync 2, `src/caformat.h`, and files written by the real program.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from overhaul.errors import TrustError

CHUNK_SIZE_MIN = 16 * 1024
CHUNK_SIZE_AVERAGE = 64 * 1024
CHUNK_SIZE_MAX = 256 * 1024

_HEADER = struct.Struct("<QQQQQQ")
_TABLE = struct.Struct("<QQ")
_ITEM = struct.Struct("<Q32s")
_TAIL = struct.Struct("<QQQQQ")
_INDEX_MAGIC = 0x96824D9C7B129FF9
_TABLE_MAGIC = 0xE75B9E112F17417D
_TAIL_MAGIC = 0x4B4F050E5549ECD1
_UNBOUNDED = (1 << 64) - 1
_FLAG_SHA512_256 = 0x2000000000000000
#: What casync 2 writes for block images: SHA-512/256 ids and its defaults on excluded files.
_BLOB_FLAGS = 0xB000000000000000
#: casync makes and takes no larger chunks, whatever sizes it is told.
_CHUNK_SIZE_LIMIT = 128 * 1024 * 1024
#: No index of an image up to 1 TiB is bigger than this at the minimum chunk size; a bound, not a goal.
MAX_CHUNKS = 1 << 26


class Chunk(NamedTuple):
    """One content-defined piece of an image."""

    offset: int
    size: int
    #: SHA-512/256 of the bytes, 32 bytes.
    id: bytes

    @property
    def end(self) -> int:
        """The offset in the image of the first byte behind the chunk."""
        return self.offset + self.size


class MalformedIndexError(TrustError):
    """The bytes are not an index, or one that contradicts itself."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The chunk index cannot be used: {reason}. Publish the release again.")


@dataclass(frozen=True)
class Index:
    """The chunks of one image, in order, without gaps, from offset 0."""

    chunks: Sequence[Chunk]

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self.chunks[-1].end if self.chunks else 0

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self.chunks)

    def __len__(self) -> int:
        return len(self.chunks)


def chunk_id(data: bytes | bytearray | memoryview) -> bytes:
    """Return the id of a chunk: the SHA-512/256 of its bytes."""
    return hashlib.new("sha512_256", data, usedforsecurity=True).digest()


def write_index(index: Index) -> bytes:
    """Return the `.caibx` bytes of `index`."""
    table_size = _TABLE.size + _ITEM.size * len(index) + _TAIL.size
    parts = [
        _HEADER.pack(_HEADER.size, _INDEX_MAGIC, _BLOB_FLAGS, CHUNK_SIZE_MIN, CHUNK_SIZE_AVERAGE, CHUNK_SIZE_MAX),
        _TABLE.pack(_UNBOUNDED, _TABLE_MAGIC),
    ]
    parts.extend(_ITEM.pack(chunk.end, chunk.id) for chunk in index)
    parts.append(_TAIL.pack(0, 0, _HEADER.size, table_size, _TAIL_MAGIC))
    return b"".join(parts)


def longest_index(image_bytes: int) -> int:
    """Return the most bytes that an index takes of an image of up to `image_bytes`."""
    chunks = image_bytes // CHUNK_SIZE_MIN + 1
    return _HEADER.size + _TABLE.size + chunks * _ITEM.size + _TAIL.size


def read_index(data: bytes) -> Index:
    """Return the index held in `.caibx` bytes.

    Raises:
        MalformedIndexError: The bytes are truncated, are no blob index, or their offsets do not ascend.
    """
    fixed = _HEADER.size + _TABLE.size + _TAIL.size
    if len(data) < fixed or (len(data) - fixed) % _ITEM.size:
        raise MalformedIndexError(f"{len(data)} bytes is not the length of an index")
    size, magic, flags, minimum, average, maximum = _HEADER.unpack_from(data, 0)
    if (size, magic) != (_HEADER.size, _INDEX_MAGIC):
        raise MalformedIndexError("it does not begin with casync's index header")
    if not flags & _FLAG_SHA512_256:
        raise MalformedIndexError("its chunk ids are not SHA-512/256")
    if not 0 < minimum <= average <= maximum <= _CHUNK_SIZE_LIMIT:
        raise MalformedIndexError(f"it states the chunk sizes {minimum}, {average} and {maximum}")
    if _TABLE.unpack_from(data, _HEADER.size) != (_UNBOUNDED, _TABLE_MAGIC):
        raise MalformedIndexError("its table header is damaged")
    items_end = len(data) - _TAIL.size
    table_size = len(data) - _HEADER.size
    if _TAIL.unpack_from(data, items_end) != (0, 0, _HEADER.size, table_size, _TAIL_MAGIC):
        raise MalformedIndexError("its tail is damaged")
    chunks: list[Chunk] = []
    begin = 0
    for end, identity in _ITEM.iter_unpack(data[_HEADER.size + _TABLE.size : items_end]):
        if not 0 < end - begin <= maximum:
            raise MalformedIndexError(f"chunk {len(chunks)} ends at {end}, behind a begin of {begin}")
        chunks.append(Chunk(begin, end - begin, identity))
        begin = end
    return Index(chunks)
