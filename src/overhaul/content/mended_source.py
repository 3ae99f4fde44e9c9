"""A damaged source as it was: what a delta looks at of it, mended before it is used.

A wrong block in the window of a unit may make two megabytes wrong, and one in an old initial file system the whole new
one. So where a segment came out wrong, or damage was found at all before files are packed again, the chunks that are
looked at are compared with the source's own index, and their wrong blocks are mended. The source itself is not written:
it may be the running system.
"""

import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

from overhaul.content.delta.segments import Run
from overhaul.content.index import Index, chunk_id
from overhaul.content.intermediate import FilePart
from overhaul.content.mending import BLOCK_SIZE
from overhaul.content.readback import is_zero_chunk
from overhaul.content.target import ImageReader


class MendedSource:
    """An image with blocks put right; these lie in an unnamed file in `directory`, as far as it has room for them.

    What stays wrong for want of room makes the slot wrong, too, and that is mended there.
    """

    def __init__(self, reader: ImageReader, directory: Path | None) -> None:
        self._reader = reader
        # Not buffered: what finds no room must not be tried again with the next block.
        self._file = TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - closed when the block ends
        #: Where in the file the bytes of a block are.
        self._places: dict[int, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on."""
        data = self._reader.read(offset, size)
        if not self._places:
            return data
        first = offset // BLOCK_SIZE
        mended = [block for block in range(first, -(-(offset + size) // BLOCK_SIZE)) if block in self._places]
        if not mended:
            return data
        result = bytearray(data)
        for block in mended:
            begin = block * BLOCK_SIZE
            low, high = max(begin, offset), min(begin + BLOCK_SIZE, offset + size)
            result[low - offset : high - offset] = self._block(block)[low - begin : high - begin]
        return bytes(result)

    def write(self, offset: int, data: bytes | memoryview, /) -> None:
        """Take in bytes that are known to be right."""
        before = self.read(offset, len(data))
        for block in range(offset // BLOCK_SIZE, -(-(offset + len(data)) // BLOCK_SIZE)):
            begin = block * BLOCK_SIZE
            low, high = max(begin, offset), min(begin + BLOCK_SIZE, offset + len(data))
            if before[low - offset : high - offset] != data[low - offset : high - offset]:
                whole = bytearray(self.read(begin, BLOCK_SIZE))
                whole[low - begin : high - begin] = data[low - offset : high - offset]
                self._keep(block, bytes(whole))

    def parts(self, offset: int, size: int) -> Iterator[FilePart]:
        """Yield where the bytes lie in the image; runs copied are mended where they were copied to."""
        yield FilePart(self._reader, offset, size)

    def _block(self, block: int) -> bytes:
        return os.pread(self._file.fileno(), BLOCK_SIZE, self._places[block])

    def _keep(self, block: int, data: bytes) -> None:
        with self._lock:
            place = self._places.get(block, len(self._places) * BLOCK_SIZE)
            with suppress(OSError):
                if os.pwrite(self._file.fileno(), data, place) == BLOCK_SIZE:
                    self._places[block] = place


def damaged_chunks(source: MendedSource, index: Index, runs: Iterable[Run]) -> list[int]:
    """Return the numbers of the chunks of `source` under `runs` that are not those of its index."""
    ends = [chunk.end for chunk in index.chunks]
    numbers: set[int] = set()
    for run in runs:
        number = bisect_right(ends, run.offset)
        while number < len(ends) and index.chunks[number].offset < run.end:
            numbers.add(number)
            number += 1
    chunks = ((number, index.chunks[number]) for number in sorted(numbers))
    return [
        number
        for number, chunk in chunks
        if not is_zero_chunk(chunk) and chunk_id(source.read(chunk.offset, chunk.size)) != chunk.id
    ]
