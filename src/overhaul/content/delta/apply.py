"""Carrying a delta out on a device: copies first, then segment by segment, in bounded memory.

Nothing here decides what is fetched or when; the caller fetches the header and the segments, zeroes what the
header leaves out, and checks the whole image against its index in the end. A damaged old image is no error of the
delta: it only shows in `apply_segment`'s answer, and the caller mends the bytes from packs.
"""

import hashlib
from typing import Protocol

from overhaul.content.delta.coders import KNOWN_CODERS, compute_unit, decode_streams
from overhaul.content.delta.errors import MalformedDeltaError, UnknownCoderError
from overhaul.content.delta.format import CopyRun, DeltaHeader
from overhaul.content.delta.segments import Segment
from overhaul.progress import Progress

__all__ = ["KNOWN_CODERS", "BlockReader", "BlockWriter", "apply_copies", "apply_segment", "segment_is_done"]

_PIECE_SIZE = 1024 * 1024


class BlockReader(Protocol):
    """Random access to the bytes of an image."""

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on."""


class BlockWriter(Protocol):
    """Random write access to an image."""

    def write(self, offset: int, data: bytes, /) -> None:
        """Put `data` at `offset`."""


def apply_copies(header: DeltaHeader, source: BlockReader, target: BlockWriter, progress: Progress) -> None:
    """Write every run of the new image that is also in the old one."""
    progress.begin("Copying what is unchanged", sum(copy.size for copy in header.copies))
    for copy in header.copies:
        _copy(copy, source, target, progress)
    progress.end()


def _copy(copy: CopyRun, source: BlockReader, target: BlockWriter, progress: Progress) -> None:
    for done in range(0, copy.size, _PIECE_SIZE):
        size = min(_PIECE_SIZE, copy.size - done)
        target.write(copy.target + done, source.read(copy.source + done, size))
        progress.advance(size)


def segment_is_done(segment: Segment, target: BlockReader) -> bool:
    """Tell whether the target already holds what the segment would write."""
    digest = hashlib.sha256()
    for run in segment.output_runs:
        digest.update(target.read(run.offset, run.size))
    return digest.digest() == segment.output_sha256


def apply_segment(segment: Segment, payload: bytes, source: BlockReader, target: BlockWriter) -> bool:
    """Write what the segment's units compute from `payload`, the segment's bytes in the file.

    Returns whether the bytes written are those the publisher saw; they are not when the old image is damaged.

    Raises:
        MalformedDeltaError: The payload has the wrong digest (nothing is written then) or contradicts itself.
    """
    unknown = segment.coders - KNOWN_CODERS
    if unknown:
        raise UnknownCoderError(min(unknown))
    if len(payload) != segment.size or hashlib.sha256(payload).digest() != segment.sha256:
        raise MalformedDeltaError(f"the {segment.size} bytes at {segment.offset} do not have their signed digest")
    streams = decode_streams(segment.streams, payload)
    positions = [0] * len(streams)
    digest = hashlib.sha256()
    for unit in segment.units:
        parts = []
        for number, size in enumerate(unit.parts):
            parts.append(streams[number][positions[number] : positions[number] + size])
            positions[number] += size
        window = b"".join([source.read(run.offset, run.size) for run in unit.window])
        data = memoryview(compute_unit(unit, window, parts))
        digest.update(data)
        begin = 0
        for run in unit.output:
            target.write(run.offset, bytes(data[begin : begin + run.size]))
            begin += run.size
    return digest.digest() == segment.output_sha256
