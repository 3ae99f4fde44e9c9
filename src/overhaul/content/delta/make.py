"""Making the delta between two ext4 images when a release is published.

The same images give the same file, whatever the number of workers. Before a segment is kept it is applied once,
and copies come from bytes that were compared, so a delta that was made is a delta that works.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from mmap import ACCESS_READ, mmap
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from overhaul.content.delta.bytesource import ImageBytes
from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.delta.format import MAX_RUNS, CopyRun, DeltaHeader, read_header, write_header
from overhaul.content.delta.packing import PackedSegment, batches, pack, tell
from overhaul.content.delta.pairing import Pair, pair_files
from overhaul.content.delta.pieces import Claims, Piece, copies_of_file, divide_file, divide_rest, join_copies
from overhaul.content.ext4 import Ext4Files, ImageFile, read_ext4
from overhaul.content.workers import run_ahead
from overhaul.host.files import replacing
from overhaul.progress import Progress

_SAMPLE_SIZE = 4096
_COMPARED_SIZE = 256 * 1024
#: Bytes of pieces that are matched, and of segments that are packed, at a time for each worker.
_UNDER_WAY = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileReport:
    """How one changed file travels."""

    path: bytes
    #: The old file it is told from.
    reference: bytes | None
    #: The unit coders used, joined by `+`; `copy` when every block was found.
    method: str
    size: int
    #: Its share of the delta, about.
    delta_size: int


@dataclass(frozen=True, slots=True)
class MadeDelta:
    """What a release record has to say about a delta, and a report for people."""

    size: int
    sha256: str
    header_size: int
    header_sha256: str
    coders: tuple[str, ...]
    copied_size: int
    #: Bytes of the delta that make what belongs to no file: directories, inodes, bitmaps.
    metadata_size: int
    #: Changed files, by path.
    files: tuple[FileReport, ...]


class _Job(NamedTuple):
    """A piece in the order of the file: kinds that resemble one another lie together."""

    kind: int
    path: bytes
    piece: Piece

    @property
    def weight(self) -> int:
        return sum(run.size for runs in (self.piece.output, self.piece.window) for run in runs)


def make_delta(old: Path, new: Path, out: Path, *, workers: int, progress: Progress) -> MadeDelta:
    """Write to `out` the delta that turns the image `old` into the image `new`.

    Raises:
        UnsuitableImageError: One of them is no ext4 image whose files can be found.
    """
    with ImageBytes(old) as old_bytes, ImageBytes(new) as new_bytes:
        copies, jobs = _divide(old_bytes, new_bytes, progress)
        packed = list(_pack_all(jobs, old_bytes, new_bytes, workers=workers, progress=progress))
        header = _header(copies, packed, old_bytes, new_bytes)
    head = write_header(header)
    read_header(head)
    digest = hashlib.sha256()
    with replacing(out) as stream:
        for data in (head, *(segment.payload for segment in packed)):
            stream.write(data)
            digest.update(data)
    shares = _shares(packed)
    return MadeDelta(
        size=len(head) + sum(len(segment.payload) for segment in packed),
        sha256=digest.hexdigest(),
        header_size=len(head),
        header_sha256=hashlib.sha256(head).hexdigest(),
        coders=header.coders,
        copied_size=sum(copy.size for copy in copies),
        metadata_size=round(shares[None].size),
        files=_reports([job.piece.pair for job in jobs], shares),
    )


def _header(
    copies: Sequence[CopyRun], packed: Sequence[PackedSegment], old: ImageBytes, new: ImageBytes
) -> DeltaHeader:
    runs = 2 * len(copies) + sum(len(unit.output) + len(unit.window) for item in packed for unit in item.segment.units)
    if runs > MAX_RUNS:
        raise UnsuitableImageError(image=str(new.path), reason=f"its files lie in too many pieces ({runs} runs)")
    return DeltaHeader(
        source_size=old.size,
        target_size=new.size,
        copies=copies,
        segments=[item.segment for item in packed],
    )


def _divide(old: ImageBytes, new: ImageBytes, progress: Progress) -> tuple[list[CopyRun], list[_Job]]:
    """Return all copies, and all other work in the order of the file."""
    progress.begin("Comparing the files of both images", None)
    old_files, new_files = _read_files(old), _read_files(new)
    block_size = min(old_files.block_size, new_files.block_size)
    claims = Claims(new.size, block_size)
    copies: list[CopyRun] = []
    jobs: list[_Job] = []
    for pair in pair_files(
        old_files.files,
        new_files.files,
        same_content=partial(_same_content, old, new),
        old_sample=partial(_sample, old),
        new_sample=partial(_sample, new),
    ):
        if not claims.take(pair.new.extents):
            continue
        progress.advance(pair.new.stored_size)
        if pair.is_same and pair.old:
            copies.extend(copies_of_file(pair.old.extents, pair.new.extents))
            continue
        found, pieces = divide_file(pair, old, new, block_size)
        copies.extend(found)
        kind = _kind(pair.new.path, _sample(new, pair.new))
        jobs.extend(_Job(kind, pair.new.path, piece) for piece in pieces)
        if not pieces:
            jobs.append(_Job(kind, pair.new.path, Piece(pair, (), ())))
    found, pieces = divide_rest(claims, old, new)
    copies.extend(found)
    jobs.extend(_Job(_METADATA, b"", piece) for piece in pieces)
    jobs.sort(key=attrgetter("kind", "path"))
    progress.end()
    return join_copies(copies), jobs


def _read_files(image: ImageBytes) -> Ext4Files:
    if not image.size:
        raise UnsuitableImageError(image=str(image.path), reason="it is empty")
    with closing(mmap(image.descriptor, 0, access=ACCESS_READ)) as data:
        return read_ext4(data, image=str(image.path))


def _same_content(old: ImageBytes, new: ImageBytes, ours: ImageFile, theirs: ImageFile) -> bool:
    if ours.stored_size != theirs.stored_size:
        return False
    return all(
        old.read(copy.source + done, size) == new.read(copy.target + done, size)
        for copy in copies_of_file(ours.extents, theirs.extents)
        for done in range(0, copy.size, _COMPARED_SIZE)
        if (size := min(_COMPARED_SIZE, copy.size - done))
    )


def _sample(image: ImageBytes, file: ImageFile) -> bytes:
    return image.read(file.extents[0].offset, min(_SAMPLE_SIZE, file.extents[0].size))


#: Kinds by how their units look once told; the order is the order in the file.
_METADATA = 0
_KIND_OF_SUFFIX = {b".ko": 1, b".a": 2}
_KIND_OF_MAGIC = ((b"\x7fELF", 3), (b"\x1f\x8b", 4), (b"\x28\xb5\x2f\xfd", 4), (b"\xfd7zXZ", 4), (b"BZh", 4))
_OTHER_KIND = 5


def _kind(path: bytes, head: bytes) -> int:
    for suffix, kind in _KIND_OF_SUFFIX.items():
        if path.endswith(suffix):
            return kind
    for magic, kind in _KIND_OF_MAGIC:
        if head.startswith(magic):
            return kind
    return _OTHER_KIND


def _pack_all(
    jobs: Sequence[_Job], old: ImageBytes, new: ImageBytes, *, workers: int, progress: Progress
) -> Iterator[PackedSegment]:
    progress.begin("Telling new bytes from old ones", sum(run.size for job in jobs for run in job.piece.output))
    told = run_ahead(
        [job for job in jobs if job.piece.output],
        pull=lambda _job: None,
        work=lambda job, _nothing: tell(
            job.piece, job.kind, new.gather(job.piece.output), old.gather(job.piece.window)
        ),
        weight=lambda job: job.weight,
        budget=_UNDER_WAY * workers,
        threads=workers,
    )
    offset = 0
    for batch, packed in run_ahead(
        batches(unit for _job, unit in told),
        pull=lambda _batch: None,
        work=lambda batch, _nothing: pack(batch, old),
        weight=lambda batch: sum(unit.size for unit in batch),
        budget=_UNDER_WAY * workers,
        threads=workers,
    ):
        progress.advance(sum(len(unit.output) for unit in batch))
        yield packed._replace(segment=replace(packed.segment, offset=offset))
        offset += packed.segment.size
    progress.end()


@dataclass
class _Share:
    """What one file takes of the delta."""

    size: float = 0.0
    coders: frozenset[str] = frozenset()


def _shares(packed: Sequence[PackedSegment]) -> dict[int | None, _Share]:
    """Return by inode, or None for what belongs to no file, the share of each in the delta."""
    shares: dict[int | None, _Share] = defaultdict(_Share)
    for segment, _payload, pieces in packed:
        rates = [stream.size / max(1, stream.decoded_size) for stream in segment.streams]
        for piece, unit in zip(pieces, segment.units, strict=True):
            share = shares[piece.pair.new.inode if piece.pair else None]
            share.size += sum(part * rate for part, rate in zip(unit.parts, rates, strict=True))
            share.coders |= {unit.coder}
    return shares


def _reports(pairs: Sequence[Pair | None], shares: dict[int | None, _Share]) -> tuple[FileReport, ...]:
    changed = {pair.new.inode: pair for pair in pairs if pair}
    return tuple(
        FileReport(
            path=pair.new.path,
            reference=pair.old.path if pair.old else None,
            method="+".join(sorted(shares[inode].coders)) or "copy",
            size=pair.new.size,
            delta_size=round(shares[inode].size),
        )
        for inode, pair in sorted(changed.items(), key=lambda item: item[1].new.path)
    )
