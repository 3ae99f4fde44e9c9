"""Where an image is cut into chunks: casync's content-defined chunker.

A hash rolls over the last 48 bytes; where it hits one value in about fifty thousand, a chunk ends, but never
before the minimum and at the latest at the maximum size. The same bytes therefore make the same chunks wherever
they lie, and exactly those that casync makes, so that indexes and stores can be exchanged with it.

`cut_python` defines the behaviour. A compiled twin (`_kernel.pyx`) does the same more than a hundred times as fast
and takes its place when it was built; `KERNEL_NAME` tells which of them works here.

Source: casync 2, `src/cachunker.c`.
"""

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from overhaul.content.buzhash_table import TABLE
from overhaul.content.index import CHUNK_SIZE_AVERAGE, CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, Chunk, Index, chunk_id
from overhaul.errors import InputError

#: The hash sees so many bytes.
WINDOW_SIZE = 48
#: Bytes read from an image at once. Boundaries do not depend on it.
SEGMENT_SIZE = 4 * 1024 * 1024

_WORD = 0xFFFFFFFF
#: A chunk of maximum size with nothing in it, the commonest chunk of any sparse image.
ZERO_CHUNK = bytes(CHUNK_SIZE_MAX)


class EmptyImageError(InputError):
    """There is nothing to cut."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"The image {path} is empty; check the build that wrote it.")


class ImageChangedError(InputError):
    """Somebody wrote to the image while it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"The image {path} changed while it was read; publish it again when its build has ended.")


@dataclass(frozen=True)
class ChunkSizes:
    """The bounds between which a hash may end a chunk."""

    minimum: int = CHUNK_SIZE_MIN
    average: int = CHUNK_SIZE_AVERAGE
    maximum: int = CHUNK_SIZE_MAX

    def __post_init__(self) -> None:
        if not WINDOW_SIZE <= self.minimum <= self.average <= self.maximum <= 1 << 30:
            raise ValueError(f"chunk sizes must ascend from {WINDOW_SIZE} on, not {self}")

    @property
    def discriminator(self) -> int:
        """The hash ends a chunk when it leaves the remainder `discriminator - 1`.

        The formula is casync's: it corrects for the bytes below the minimum, which the hash cannot choose.
        """
        return int(self.average / (-1.42888852e-7 * self.average + 1.33237515))


STANDARD_SIZES = ChunkSizes()


def cut_python(data: bytes | bytearray | memoryview, start: int, minimum: int, discriminator: int, maximum: int) -> int:
    """Return the offset in `data` at which the chunk that begins at `start` ends.

    That is the end of `data` when no boundary comes before it, so `data` must hold the maximum size from `start`
    on, or end where the image ends. No byte outside the chunk has any influence.
    """
    limit = min(len(data), start + maximum)
    end = start + minimum
    if end >= limit:
        return limit
    rolling = 0
    for byte in data[end - WINDOW_SIZE : end]:
        rolling = (rolling << 1 & _WORD) ^ (rolling >> 31) ^ TABLE[byte]
    wanted = discriminator - 1
    while end < limit and rolling % discriminator != wanted:
        # 48 rotations of a 32-bit word are 16.
        leaving = TABLE[data[end - WINDOW_SIZE]]
        leaving = (leaving << 16 & _WORD) | (leaving >> 16)
        rolling = (rolling << 1 & _WORD) ^ (rolling >> 31) ^ leaving ^ TABLE[data[end]]
        end += 1
    return end


try:
    from overhaul.content._kernel import cut as _cut
except ImportError:
    _cut = cut_python

#: `compiled` or `python`: which of the twins works here.
KERNEL_NAME = "python" if _cut is cut_python else "compiled"


def cut(data: bytes | bytearray | memoryview, start: int = 0, *, sizes: ChunkSizes = STANDARD_SIZES) -> int:
    """Return where the chunk that begins at `start` ends; see `cut_python` for what `data` must hold."""
    return _cut(data, start, sizes.minimum, sizes.discriminator, sizes.maximum)


class Piece(NamedTuple):
    """A chunk of an image together with its bytes."""

    offset: int
    #: `ZERO_CHUNK` itself, and no equal copy of it, when all bytes of a chunk of maximum size are zero.
    data: bytes | memoryview


def cut_image(path: Path, *, segment_size: int = SEGMENT_SIZE) -> Iterator[Piece]:
    """Yield the chunks of the image at `path` in order, reading it once and never all at once.

    Holes are not read. A piece keeps the segment it was cut from alive, so pieces must not be collected.

    Raises:
        EmptyImageError: The image has no byte.
        ImageChangedError: It was written to while it was read.
    """
    segment_size = max(segment_size, CHUNK_SIZE_MAX)
    with path.open("rb", buffering=0) as image:
        descriptor = image.fileno()
        before = os.fstat(descriptor)
        # Unlike st_size this is right for block devices, too.
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size == 0:
            raise EmptyImageError(path)
        offset = 0
        while offset < size:
            # A run of zeros never hits the boundary value, so it is cut at the maximum size.
            while size - offset >= CHUNK_SIZE_MAX and _next_data(descriptor, offset, size) - offset >= CHUNK_SIZE_MAX:
                yield Piece(offset, ZERO_CHUNK)
                offset += CHUNK_SIZE_MAX
            segment = _read(descriptor, min(segment_size, size - offset), offset)
            if len(segment) != min(segment_size, size - offset):
                raise ImageChangedError(path)
            for piece in _cut_segment(segment, offset, final=offset + len(segment) == size):
                yield piece
                offset += len(piece.data)
        after = os.fstat(descriptor)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ImageChangedError(path)


def chunk_file(path: Path) -> Index:
    """Return the index of the image at `path`."""
    zero_id = chunk_id(ZERO_CHUNK)
    return Index(
        [
            Chunk(offset, len(data), zero_id if data is ZERO_CHUNK else chunk_id(data))
            for offset, data in cut_image(path)
        ]
    )


def _cut_segment(segment: bytes, offset: int, *, final: bool) -> Iterator[Piece]:
    """Yield the pieces that certainly end in `segment`, which lies at `offset` in the image."""
    discriminator = STANDARD_SIZES.discriminator
    view = memoryview(segment)
    start = 0
    # What follows the last certain boundary is read again with the next segment: at most one chunk of many.
    last = len(segment) if final else len(segment) - CHUNK_SIZE_MAX + 1
    while start < last:
        if segment.startswith(ZERO_CHUNK, start):
            yield Piece(offset + start, ZERO_CHUNK)
            start += CHUNK_SIZE_MAX
            continue
        end = _cut(segment, start, CHUNK_SIZE_MIN, discriminator, CHUNK_SIZE_MAX)
        yield Piece(offset + start, view[start:end])
        start = end


def _next_data(descriptor: int, offset: int, size: int) -> int:
    """Return the offset of the first byte from `offset` on that does not lie in a hole."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        # ENXIO: nothing but a hole up to the end. All else: this file system knows no holes.
        return size if error.errno == errno.ENXIO else offset


def _read(descriptor: int, size: int, offset: int) -> bytes:
    """Return `size` bytes at `offset`, fewer only when the file ends before."""
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
