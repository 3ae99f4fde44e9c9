"""Making the delta between two ext4 images when a release is published.

The same images give the same file, whatever the number of workers. Before a segment is kept it is applied once,
and copies come from bytes that were compared, so a delta that was made is a delta that works.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from operator import attrgetter
from pathlib import Path

from overhaul.content.delta.bytesource import ImageBytes
from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.delta.format import CopyRun, DeltaHeader, read_header, write_header
from overhaul.content.delta.grouping import GroupPlanner, PackedFile, look_into, may_be_packed, share_groups
from overhaul.content.delta.kinds import METADATA_KIND, kind_of
from overhaul.content.delta.make_groups import MadeGroup, make_groups
from overhaul.content.delta.make_inodes import pack_inode_tables
from overhaul.content.delta.packing import Job, PackedSegment, UnfaithfulSegmentError, pack_all
from overhaul.content.delta.pairing import Pair, pair_files
from overhaul.content.delta.pieces import (
    Claims,
    Piece,
    copies_of_file,
    divide_directories,
    divide_file,
    divide_rest,
    join_copies,
)
from overhaul.content.delta.segments import MAX_RUNS, Segment
from overhaul.content.ext4 import Ext4Files, ImageFile, read_ext4
from overhaul.content.workers import run_ahead
from overhaul.host.files import replacing
from overhaul.progress import Progress
from overhaul.release.record import RebuildRef

#: More files than this are not packed again: each takes a few runs, and these are limited.
_PACKED_FILES_MAX = 4096
_GROUP_RUNS_MAX = MAX_RUNS // 2
_SAMPLE_SIZE = 4096
_COMPARED_SIZE = 256 * 1024


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
    #: Bytes of the new image that segments and groups compute.
    written_size: int
    #: What a device fetches less of when it packs files again, in the order of the file.
    rebuilds: tuple[RebuildRef, ...]
    #: Bytes of the delta that make what belongs to no file: directories, inodes, bitmaps.
    metadata_size: int
    #: Changed files, by path.
    files: tuple[FileReport, ...]


def make_delta(old: Path, new: Path, out: Path, *, workers: int, progress: Progress) -> MadeDelta:
    """Write to `out` the delta that turns the image `old` into the image `new`.

    Raises:
        UnsuitableImageError: One of them is no ext4 image whose files can be found.
    """
    with ImageBytes(old) as old_bytes, ImageBytes(new) as new_bytes:
        divided = _divide(old_bytes, new_bytes, workers=workers, progress=progress)
        work = (run.size for job in divided.jobs for run in job.piece.output)
        progress.begin("Telling new bytes from old ones", sum(work) + sum(file.plain_size for file in divided.packed))
        packed = list(pack_all(divided.jobs, old_bytes, new_bytes, workers=workers, progress=progress))
        groups = list(
            make_groups(
                share_groups(divided.packed),
                GroupPlanner(old_bytes, new_bytes, divided.there, block_size=divided.block_size),
                old_bytes,
                new_bytes,
                directory=out.parent,
                workers=workers,
                progress=progress,
            )
        )
        progress.end()
        header = _header(divided.copies, packed, groups, old_bytes, new_bytes)
    head = write_header(header)
    if read_header(head) != _placed(header, len(head)):
        raise UnfaithfulSegmentError
    payloads = [
        *(segment.payload for segment in packed),
        *(segment.payload for group in groups for segment in group.packed),
        *(segment.payload for group in groups for segment in group.instead),
    ]
    digest = hashlib.sha256()
    with replacing(out) as stream:
        for data in (head, *payloads):
            stream.write(data)
            digest.update(data)
    shares = _shares([*packed, *(segment for group in groups for segment in group.packed)])
    return MadeDelta(
        size=len(head) + sum(map(len, payloads)),
        sha256=digest.hexdigest(),
        header_size=len(head),
        header_sha256=hashlib.sha256(head).hexdigest(),
        coders=header.coders,
        rebuilds=tuple(made.ref for made in groups),
        copied_size=sum(copy.size for copy in divided.copies),
        written_size=header.computed_size,
        metadata_size=round(shares[None].size),
        files=_reports(divided, shares),
    )


def _header(
    copies: Sequence[CopyRun],
    packed: Sequence[PackedSegment],
    groups: Sequence[MadeGroup],
    old: ImageBytes,
    new: ImageBytes,
) -> DeltaHeader:
    runs = 2 * len(copies) + sum(len(unit.output) + len(unit.window) for item in packed for unit in item.segment.units)
    if runs > MAX_RUNS - _GROUP_RUNS_MAX:
        raise UnsuitableImageError(image=str(new.path), reason=f"its files lie in too many pieces ({runs} runs)")
    return DeltaHeader(
        source_size=old.size,
        target_size=new.size,
        copies=copies,
        segments=[item.segment for item in packed],
        groups=[made.group for made in groups],
    )


@dataclass(frozen=True)
class _Divided:
    """The new image, divided."""

    copies: list[CopyRun]
    #: In the order of the file.
    jobs: list[Job]
    #: Files that are packed again.
    packed: list[PackedFile]
    #: All other files.
    there: list[ImageFile]
    block_size: int


def _divide(old: ImageBytes, new: ImageBytes, *, workers: int, progress: Progress) -> _Divided:
    progress.begin("Comparing the files of both images", None)
    old_files, new_files = _read_files(old), _read_files(new)
    block_size = min(old_files.block_size, new_files.block_size)
    claims = Claims(new.size, block_size)
    copies: list[CopyRun] = []
    changed: list[Pair] = []
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
        else:
            changed.append(pair)
    packed = _look_into(changed, old, new, workers=workers)
    jobs: list[Job] = []
    again = {file.pair.new.inode for file in packed}
    for pair in changed:
        if pair.new.inode in again:
            continue
        found, pieces = divide_file(pair, old, new, block_size)
        copies.extend(found)
        kind = kind_of(pair.new.path, _sample(new, pair.new))
        jobs.extend(Job(kind, pair.new.path, piece) for piece in pieces)
        if not pieces:
            jobs.append(Job(kind, pair.new.path, Piece(pair, (), ())))
    packed += pack_inode_tables(old_files, new_files, claims, old, new)
    pieces = divide_directories(old_files.directories, new_files.directories, claims, old, new)
    found, others = divide_rest(claims, old, new)
    copies.extend(found)
    pieces += others
    jobs.extend(Job(METADATA_KIND, b"", piece) for piece in pieces)
    jobs.sort(key=attrgetter("kind", "path"))
    progress.end()
    there = [file for file in new_files.files if file.inode not in again]
    return _Divided(join_copies(copies), jobs, packed, there, block_size)


def _look_into(changed: Sequence[Pair], old: ImageBytes, new: ImageBytes, *, workers: int) -> list[PackedFile]:
    """Return those of the changed files that can be packed again, the biggest when they are too many."""
    worth = [pair for pair in changed if may_be_packed(_sample(new, pair.new))]
    worth.sort(key=lambda pair: pair.new.stored_size, reverse=True)
    looked = run_ahead(
        worth[:_PACKED_FILES_MAX],
        pull=lambda _pair: None,
        work=lambda pair, _nothing: look_into(pair, old, new),
        weight=lambda _pair: 1,
        budget=2 * workers,
        threads=workers,
    )
    return [found for _pair, found in looked if found is not None]


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
            share = shares[piece.pair.new.inode or None if piece.pair else None]
            share.size += sum(part * rate for part, rate in zip(unit.parts, rates, strict=True))
            share.coders |= {unit.coder}
    return shares


def _reports(divided: _Divided, shares: dict[int | None, _Share]) -> tuple[FileReport, ...]:
    changed = {job.piece.pair.new.inode: job.piece.pair for job in divided.jobs if job.piece.pair}
    again = {file.pair.new.inode: file for file in divided.packed if file.pair.new.inode}
    changed.update({inode: file.pair for inode, file in again.items()})
    reports: list[FileReport] = []
    for inode, pair in sorted(changed.items(), key=lambda item: item[1].new.path):
        coders = sorted(shares[inode].coders) or ["copy"]
        if inode in again:
            coders.append(again[inode].recoder.kind)
        reports.append(
            FileReport(
                path=pair.new.path,
                reference=pair.old.path if pair.old else None,
                method="+".join(coders),
                size=pair.new.size,
                delta_size=round(shares[inode].size),
            )
        )
    return tuple(reports)


def _placed(header: DeltaHeader, offset: int) -> DeltaHeader:
    """Return `header` with the offset of every segment in the file; the first lies at `offset`."""
    places = iter(accumulate((segment.size for segment in header.all_segments), initial=offset))

    def placed(segments: Iterable[Segment]) -> tuple[Segment, ...]:
        return tuple(replace(segment, offset=next(places)) for segment in segments)

    plain = placed(header.segments)
    groups = [replace(group, segments=placed(group.segments)) for group in header.groups]
    return replace(
        header,
        copies=list(header.copies),
        segments=list(plain),
        groups=tuple(replace(group, instead=placed(group.instead)) for group in groups),
    )
