"""Packing units into segments, and proving that each segment gives back exactly what it was made of.

Units that resemble one another share a segment, their parts lie together in streams, and each stream is compressed
as a whole: that was measured to save up to a tenth. The order of the units is the order in the file, so a device
reads it from front to back.
"""

import hashlib
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from overhaul.content.delta.apply import BlockReader, apply_segment
from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.matching import is_incompressible, tell_by_covers, tell_by_prefix
from overhaul.content.delta.pieces import Gatherer, Piece
from overhaul.content.delta.segments import LZMA2_DICTIONARY, MAX_SEGMENT_DECODED, Segment, Stream, Unit
from overhaul.content.workers import run_ahead
from overhaul.progress import Progress

#: Bytes of pieces that are matched, and of segments that are packed, at a time for each worker.
_UNDER_WAY = 8 * 1024 * 1024
#: New bytes of a segment; what an interruption can cost is in proportion to it.
_SEGMENT_OUTPUT_MAX = 16 * 1024 * 1024
#: A binary tree costs two thirds more time than a hash chain and saves 2.5 % of a delta; preset 9's longer matches
#: would cost a third more again for 0.4 %.
_LZMA2 = {
    "id": lzma.FILTER_LZMA2,
    "preset": 6,
    "dict_size": LZMA2_DICTIONARY,
    "mf": lzma.MF_BT4,
    "nice_len": 64,
}
#: By stream: nothing in control and difference is aligned to anything, and in control no byte tells of the next.
_FILTERS = ({**_LZMA2, "pb": 0, "lc": 0}, {**_LZMA2, "pb": 0}, _LZMA2, _LZMA2)


class Windows(Gatherer, BlockReader, Protocol):
    """The bytes that units are told from, by their place and by their runs."""


class Job(NamedTuple):
    """A piece to be told, in the order of the file: kinds that resemble one another lie together."""

    kind: int
    path: bytes
    piece: Piece
    #: The bytes it must make, where they lie in no image.
    made: bytes | None = None

    @property
    def weight(self) -> int:
        """Bytes it keeps in memory while it is told."""
        return sum(run.size for runs in (self.piece.output, self.piece.window) for run in runs)


class ToldUnit(NamedTuple):
    """A piece told by a coder, not compressed yet."""

    #: Units of different kinds share no segment.
    kind: int
    piece: Piece
    coder: str
    parts: tuple[bytes, ...]
    #: The new bytes it makes.
    output: bytes

    @property
    def size(self) -> int:
        """Bytes it adds to a segment before compression."""
        return sum(map(len, self.parts))


class PackedSegment(NamedTuple):
    """A segment as it goes into the file; its offset is not known yet."""

    segment: Segment
    payload: bytes
    pieces: tuple[Piece, ...]


class UnfaithfulSegmentError(MalformedDeltaError):
    """A segment just made does not give back the new bytes: a bug of ours or of a library, not of the images."""

    def __init__(self) -> None:
        super().__init__("a segment does not give back what it was made of")


def tell(piece: Piece, kind: int, new: bytes, window: bytes) -> ToldUnit:
    """Return `piece`, whose bytes are `new`, told from `window` by the coder that suits it."""
    frame = tell_by_prefix(new, window)
    if frame is not None and len(frame) < MAX_SEGMENT_DECODED:
        return ToldUnit(kind, piece, "zstd-prefix", (b"", b"", b"", frame), new)
    return ToldUnit(kind, piece, "covers", (*tell_by_covers(new, window), b""), new)


def pack_all(
    jobs: Sequence[Job], old: Windows, new: Gatherer, *, workers: int, progress: Progress
) -> Iterator[PackedSegment]:
    """Yield the segments that carry `jobs`; `old` gives the bytes of their windows."""
    told = run_ahead(
        [job for job in jobs if job.piece.output],
        pull=lambda _job: None,
        work=lambda job, _nothing: tell(
            job.piece,
            job.kind,
            new.gather(job.piece.output) if job.made is None else job.made,
            old.gather(job.piece.window),
        ),
        weight=lambda job: job.weight,
        budget=_UNDER_WAY * workers,
        threads=workers,
    )
    for batch, packed in run_ahead(
        batches(unit for _job, unit in told),
        pull=lambda _batch: None,
        work=lambda batch, _nothing: pack(batch, old),
        weight=lambda batch: sum(unit.size for unit in batch),
        budget=_UNDER_WAY * workers,
        threads=workers,
    ):
        progress.advance(sum(len(unit.output) for unit in batch))
        yield packed


def batches(units: Iterable[ToldUnit]) -> Iterator[list[ToldUnit]]:
    """Group units that follow one another into what makes one segment each."""
    batch: list[ToldUnit] = []
    decoded = written = 0
    for unit in units:
        is_full = decoded + unit.size > MAX_SEGMENT_DECODED or written + len(unit.output) > _SEGMENT_OUTPUT_MAX
        if batch and (is_full or unit.kind != batch[-1].kind):
            yield batch
            batch, decoded, written = [], 0, 0
        batch.append(unit)
        decoded += unit.size
        written += len(unit.output)
    if batch:
        yield batch


def pack(batch: Sequence[ToldUnit], source: BlockReader) -> PackedSegment:
    """Return the segment that holds `batch`, after having applied it once.

    Raises:
        UnfaithfulSegmentError: Applying it did not give back the new bytes.
    """
    streams: list[Stream] = []
    payload = bytearray()
    for parts, settings in zip(zip(*(unit.parts for unit in batch), strict=True), _FILTERS, strict=True):
        data = b"".join(parts)
        coder, packed = _compress(data, settings)
        streams.append(Stream(coder, len(packed), len(data)))
        payload += packed
    digest = hashlib.sha256()
    for unit in batch:
        digest.update(unit.output)
    segment = Segment(
        offset=0,
        size=len(payload),
        sha256=hashlib.sha256(payload).digest(),
        output_sha256=digest.digest(),
        streams=tuple(streams),
        units=tuple(
            Unit(unit.coder, unit.piece.output, unit.piece.window, tuple(map(len, unit.parts))) for unit in batch
        ),
    )
    packed_segment = PackedSegment(segment, bytes(payload), tuple(unit.piece for unit in batch))
    if not apply_segment(segment, packed_segment.payload, source, Nowhere()):
        raise UnfaithfulSegmentError
    return packed_segment


class Nowhere:
    """Takes what is written and forgets it; the digest of it is what counts."""

    def write(self, offset: int, data: bytes, /) -> None:
        """Do nothing."""


def _compress(data: bytes, settings: Mapping[str, int]) -> tuple[str, bytes]:
    if not is_incompressible(data):
        packed = lzma.compress(data, lzma.FORMAT_RAW, filters=(settings,))
        if len(packed) < len(data):
            return "lzma2", packed
    return "stored", data
