"""Comparing what a slot holds with the index: which chunks are right.

The image is read in windows by a few threads, each with one aligned buffer, so memory stays bounded and direct
reads are possible. Holes are not read, and zeros are compared and not hashed: an image is often half zeros, and
hashing is what this costs.
"""

import mmap
from collections.abc import Sequence

from overhaul.content.index import CHUNK_SIZE_MAX, Chunk, chunk_id
from overhaul.content.target import ZEROS, ImageReader
from overhaul.content.workers import run_ahead
from overhaul.progress import Progress

_ALIGNMENT = 4096
_WINDOW_BYTES = 1024 * 1024


_ZERO_ID = chunk_id(memoryview(ZEROS)[:CHUNK_SIZE_MAX])


def is_zero_chunk(chunk: Chunk) -> bool:
    """Tell from its id whether a chunk is one of those that long runs of zeros are cut into.

    Zeros never end a chunk, so these have the maximum size. The end of an image may be a shorter chunk of zeros; it
    is treated as any other.
    """
    return chunk.size == CHUNK_SIZE_MAX and chunk.id == _ZERO_ID


def find_wrong(
    reader: ImageReader, chunks: Sequence[Chunk], numbers: Sequence[int], *, threads: int, progress: Progress
) -> list[int]:
    """Return those of the ascending chunk `numbers` whose bytes in the slot are not the index's."""
    if not numbers:
        return []
    holes = _Holes(reader, chunks[numbers[-1]].end)
    # One buffer for each item that can be under way.
    buffers = [mmap.mmap(-1, _WINDOW_BYTES + 2 * _ALIGNMENT) for _ in range(threads + 1)]

    def check(window: Sequence[int], has_data: bool) -> list[int]:  # noqa: FBT001 - called by run_ahead only
        if not has_data:
            return [number for number in window if chunks[number].end > reader.size or not _is_zero(chunks, number)]
        buffer = buffers.pop()
        try:
            return _wrong_in_window(reader, chunks, window, buffer)
        finally:
            buffers.append(buffer)

    wrong: list[int] = []
    try:
        for window, found in run_ahead(
            _windows(chunks, numbers),
            pull=lambda window: holes.data_between(chunks[window[0]].offset, chunks[window[-1]].end),
            work=check,
            weight=lambda _window: 1,
            budget=threads + 1,
            threads=threads,
        ):
            wrong.extend(found)
            progress.advance(sum(chunks[number].size for number in window))
    finally:
        for buffer in buffers:
            buffer.close()
    return wrong


def _is_zero(chunks: Sequence[Chunk], number: int) -> bool:
    """Tell whether the bytes of a chunk are all zero; only the last one is worth hashing zeros for."""
    chunk = chunks[number]
    if number < len(chunks) - 1:
        return is_zero_chunk(chunk)
    return chunk_id(memoryview(ZEROS)[: chunk.size]) == chunk.id


def _windows(chunks: Sequence[Chunk], numbers: Sequence[int]) -> list[list[int]]:
    windows: list[list[int]] = []
    for number in numbers:
        if (
            windows
            and windows[-1][-1] == number - 1
            and chunks[number].end - chunks[windows[-1][0]].offset <= _WINDOW_BYTES
        ):
            windows[-1].append(number)
        else:
            windows.append([number])
    return windows


def _wrong_in_window(
    reader: ImageReader, chunks: Sequence[Chunk], window: Sequence[int], buffer: mmap.mmap
) -> list[int]:
    begin = chunks[window[0]].offset // _ALIGNMENT * _ALIGNMENT
    end = -(-chunks[window[-1]].end // _ALIGNMENT) * _ALIGNMENT
    with memoryview(buffer) as view:
        try:
            filled = reader.read_into(view[: end - begin], begin)
        except OSError:
            if len(window) == 1:
                return list(window)
            # Some block of it cannot be read; find out which chunks that makes wrong.
            return [found for number in window for found in _wrong_in_window(reader, chunks, [number], buffer)]
        wrong = []
        for number in window:
            chunk = chunks[number]
            data = view[chunk.offset - begin : chunk.end - begin]
            if chunk.end - begin > filled:
                wrong.append(number)
            elif chunk.size == CHUNK_SIZE_MAX and ZEROS.startswith(data):
                if not is_zero_chunk(chunk):
                    wrong.append(number)
            elif chunk_id(data) != chunk.id:
                wrong.append(number)
            data.release()
        return wrong


class _Holes:
    """Where a slot has data, asked of the file system once and in ascending order."""

    def __init__(self, reader: ImageReader, end: int) -> None:
        self._runs = reader.data_runs(0, end)
        self._run: tuple[int, int] | None = next(self._runs, None)

    def data_between(self, begin: int, end: int) -> bool:
        """Tell whether anything between `begin` and `end` is not a hole; ranges come ascending."""
        while self._run is not None and self._run[1] <= begin:
            self._run = next(self._runs, None)
        return self._run is not None and self._run[0] < end
