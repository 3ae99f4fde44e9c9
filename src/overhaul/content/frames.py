"""The frame table of a pack: where each compressed chunk lies and by which digest it is known.

A pack is nothing but zstd frames behind one another, one frame a chunk, exactly the bytes a casync chunk file
(`.cacnk`) would hold. Its table is a file of its own, so that a device fetches the table once and then only the
ranges it lacks. Layout, little-endian:

    magic 8 bytes "OVHFRM01", then for each frame, in pack order:
    chunk id 32 bytes, SHA-256 of the frame 32 bytes, size of the frame u32, size of the chunk u32

A frame's digest is checked before a byte of it is decoded, and the decoder is bounded by the chunk's size.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from overhaul.content.index import CHUNK_SIZE_MAX
from overhaul.errors import TrustError

_MAGIC = b"OVHFRM01"
_ENTRY = struct.Struct("<32s32sII")


class Frame(NamedTuple):
    """One compressed chunk inside a pack."""

    chunk_id: bytes
    sha256: bytes
    #: Where the frame begins in the pack.
    offset: int
    size: int
    chunk_size: int

    @property
    def end(self) -> int:
        """The offset in the pack of the first byte behind the frame."""
        return self.offset + self.size


class MalformedFrameTableError(TrustError):
    """The bytes are not a frame table."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The frame table cannot be used: {reason}. Publish the release again.")


def write_frames(frames: Iterable[Frame]) -> bytes:
    """Return the bytes of a frame table; frames lie behind one another in pack order."""
    return _MAGIC + b"".join(
        _ENTRY.pack(frame.chunk_id, frame.sha256, frame.size, frame.chunk_size) for frame in frames
    )


def read_frames(data: bytes) -> list[Frame]:
    """Return the frames of a table, in pack order.

    Raises:
        MalformedFrameTableError: The bytes are truncated or state impossible sizes.
    """
    if data[: len(_MAGIC)] != _MAGIC or (len(data) - len(_MAGIC)) % _ENTRY.size:
        raise MalformedFrameTableError("its length or first bytes are not those of a frame table")
    frames: list[Frame] = []
    offset = 0
    for chunk_id, sha256, size, chunk_size in _ENTRY.iter_unpack(data[len(_MAGIC) :]):
        if not 0 < chunk_size <= CHUNK_SIZE_MAX or size == 0:
            raise MalformedFrameTableError(f"frame {len(frames)} states the sizes {size} and {chunk_size}")
        frames.append(Frame(chunk_id, sha256, offset, size, chunk_size))
        offset += size
    return frames
