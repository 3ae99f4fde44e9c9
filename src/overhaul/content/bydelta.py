"""Filling a slot by a delta: zeros, then copies and segments as they come.

What is right in the slot already is neither written nor fetched again, and never overwritten: a damaged source
must not undo what an earlier attempt has mended. A segment whose result is wrong, because the source is damaged,
is left to be found when the slot is read back. Small groups of files that are packed again come with the segments;
those that take something of the new image, or much memory, come when everything they may be made of was written.
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self, TypeVar

from overhaul.content.delta.apply import BlockReader, BlockWriter, apply_segment, segment_is_done
from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.format import CopyRun, DeltaHeader
from overhaul.content.delta.groups import Group
from overhaul.content.delta.rebuilding import Outcome, group_is_done, rebuild
from overhaul.content.delta.segments import MAX_SEGMENT_SIZE, Run, Segment
from overhaul.content.index import Chunk
from overhaul.content.intermediate import Intermediate, Source
from overhaul.content.plan import Step
from overhaul.content.published import PublishedFiles
from overhaul.content.target import SlotTarget
from overhaul.content.workers import give_memory_back, run_ahead
from overhaul.progress import Progress
from overhaul.release.record import DeltaRef

#: Payload fetched but not applied yet; what a killed assembly fetches again is at most this.
IN_FLIGHT_BYTES = MAX_SEGMENT_SIZE
_COPY_BYTES = 8 * 1024 * 1024
#: A group with a work area up to this size is carried out beside segments: two at a time cost little memory.
_SMALL_WORK_SIZE = 24 * 1024 * 1024

#: What is carried out by a thread.
_Job = Segment | CopyRun | Group
_AnyJob = TypeVar("_AnyJob", bound=_Job)

#: Mends runs of the source as far as that can be done, and returns the mended source; None when it cannot.
Mending = Callable[[Iterable[Run]], Source | None]


class Gaps:
    """The runs of an image that are not right yet, ascending."""

    def __init__(self, chunks: Sequence[Chunk], right: Collection[int]) -> None:
        self._runs: list[tuple[int, int]] = []
        for number, chunk in enumerate(chunks):
            if number in right:
                continue
            if self._runs and self._runs[-1][1] == chunk.offset:
                self._runs[-1] = (self._runs[-1][0], chunk.end)
            else:
                self._runs.append((chunk.offset, chunk.end))

    def within(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a range that are not right yet."""
        low, high = 0, len(self._runs)
        while low < high:
            middle = (low + high) // 2
            if self._runs[middle][1] <= begin:
                low = middle + 1
            else:
                high = middle
        for run_begin, run_end in self._runs[low:]:
            if run_begin >= end:
                return
            yield max(begin, run_begin), min(end, run_end)

    def touch(self, runs: Iterable[Run]) -> bool:
        """Tell whether anything of `runs` is not right yet."""
        return any(True for run in runs for _gap in self.within(run.offset, run.end))


class _Protected:
    """Writes into the gaps of a slot and nowhere else."""

    def __init__(self, target: SlotTarget, gaps: Gaps) -> None:
        self._target = target
        self._gaps = gaps

    def write(self, offset: int, data: bytes, /) -> None:
        view = memoryview(data)
        for begin, end in self._gaps.within(offset, offset + len(data)):
            self._target.write(begin, view[begin - offset : end - offset])


@dataclass(frozen=True, kw_only=True)
class DeltaUse:
    """One delta, and how much of it is carried out how."""

    delta: DeltaRef
    header: DeltaHeader
    #: Numbers of the groups that are packed again; the others are told by the segments instead.
    rebuilt: Collection[int]

    @classmethod
    def open(cls, step: Step, files: PublishedFiles) -> Self:
        """Return the use of a planned step.

        Raises:
            TrustError: The delta is not the signed one, or its record says other things of it.
        """
        header = files.delta_header(step.delta)
        if len(header.groups) != len(step.delta.rebuilds):
            raise MalformedDeltaError(
                f"it has {len(header.groups)} groups, the release record {len(step.delta.rebuilds)}"
            )
        return cls(delta=step.delta, header=header, rebuilt=step.rebuilt)

    def segments(self, own: Iterable[Segment], groups: Iterable[int]) -> list[Segment]:
        """Return `own` segments and those that stand instead of those of `groups` that are not packed again."""
        told = (number for number in groups if number not in self.rebuilt)
        return [*own, *(segment for number in told for segment in self.header.groups[number].instead)]

    def pending_groups(self, target: BlockReader, gaps: Gaps) -> tuple[int, ...]:
        """Return the numbers of the groups to pack again of which something is not written yet."""
        return tuple(
            number
            for number in sorted(self.rebuilt)
            if gaps.touch(self.header.groups[number].output_runs)
            and not group_is_done(self.header.groups[number], target)
        )


def fill_by_delta(
    target: SlotTarget,
    source: Source,
    gaps: Gaps,
    use: DeltaUse,
    files: PublishedFiles,
    *,
    mended: Mending,
    directory: Path | None,
    threads: int,
    progress: Progress,
) -> int:
    """Write into the gaps of `target` what the delta makes of `source`; return how many bytes were copied.

    Of the groups to pack again the small ones are carried out; what is pending then is left to `rebuild_groups`.
    Segments that come out wrong are kept in an unnamed file in `directory` and applied again to what `mended` makes
    of the source.

    Raises:
        TrustError: The delta is not the signed one or cannot be used; nothing of what was wrong was decoded.
        NetworkError: The server cannot provide; what came was kept.
    """
    header = use.header
    if header.target_size != target.image_size:
        raise MalformedDeltaError(f"it makes {header.target_size} bytes of an image of {target.image_size}")
    give_memory_back()
    was_blank = next(target.data_runs(0, target.image_size), None) is None
    for run in header.zeros:
        for begin, end in gaps.within(run.offset, run.end):
            target.zero(begin, end - begin)
    copies = list(_copies(gaps, header.copies))
    wanted = use.segments(header.segments, range(len(header.groups)))
    touched = [segment for segment in wanted if gaps.touch(segment.output_runs)]
    segments = wanted if was_blank else _pending(target, touched, threads=threads)
    groups = [] if directory is None else [header.groups[number] for number in use.pending_groups(target, gaps)]
    small = [group for group in groups if group.segments and _goes_along(group, header.source_size)]
    jobs = list(_interleaved(sorted([*segments, *small], key=_place), copies))
    progress.begin("Applying the delta", sum(map(_written_bytes, jobs)))
    writer = _Protected(target, gaps)
    with _Kept(directory) as kept:

        def carry_out(job: _Job, payloads: Sequence[bytes]) -> None:
            match job:
                case CopyRun():
                    _copy(job, source, target)
                case Segment():
                    if not apply_segment(job, payloads[0], source, writer):
                        kept.keep(job, payloads[0])
                case Group() if directory is not None:
                    # How it came out shows in what is pending afterwards.
                    rebuild(
                        job,
                        payloads,
                        source=source,
                        source_size=header.source_size,
                        target=target,
                        into=writer,
                        directory=directory,
                    )

        _carry_out(jobs, use.delta, files, work=carry_out, threads=threads, progress=progress)
        progress.end()
        again = None if not kept.segments else mended(windows_of(kept.segments))
        if again is not None:
            for segment, payload in kept.payloads():
                apply_segment(segment, payload, again, writer)
    return sum(copy.size for copy in copies)


class _Kept:
    """Segments that came out wrong, with their payloads in an unnamed file."""

    def __init__(self, directory: Path | None) -> None:
        self._file = None if directory is None else TemporaryFile(dir=directory)  # noqa: SIM115 - closed at the end
        self._lock = threading.Lock()
        self.segments: list[Segment] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, segment: Segment, payload: bytes) -> None:
        """Keep one, where there is a place for it."""
        if self._file is not None:
            with self._lock, suppress(OSError):
                self._file.write(payload)
                self.segments.append(segment)

    def payloads(self) -> Iterator[tuple[Segment, bytes]]:
        """Yield what was kept."""
        if self._file is not None:
            self._file.seek(0)
            for segment in self.segments:
                yield segment, self._file.read(segment.size)


def windows_of(segments: Iterable[Segment]) -> Iterator[Run]:
    """Yield what segments look at of the image that their delta starts from."""
    return (run for segment in segments for unit in segment.units for run in unit.window)


def source_runs_of_groups(use: DeltaUse, numbers: Iterable[int]) -> Iterator[Run]:
    """Yield what groups look at of the image that their delta starts from."""
    size = use.header.source_size
    for number in numbers:
        group = use.header.groups[number]
        yield from (run for unpacking in group.unpackings for run in unpacking.packed)
        yield from (run for run in group.looked_at if run.offset < size)


def rebuild_groups(
    numbers: Iterable[int],
    use: DeltaUse,
    files: PublishedFiles,
    *,
    target: SlotTarget,
    source: Source,
    gaps: Gaps,
    directory: Path,
    progress: Progress,
) -> dict[int, Outcome]:
    """Write into the gaps of `target` the files of groups to pack again; everything they may take is written.

    Returns how the groups came out; nothing is written of one that did not come out right. Work areas are made in
    `directory`.

    Raises:
        TrustError, NetworkError: As in `fill_by_delta`.
    """
    into = _Protected(target, gaps)
    return _rebuild(
        numbers, use, files, source=source, target=target, into=into, directory=directory, progress=progress
    )


def fill_intermediate(
    image: Intermediate,
    use: DeltaUse,
    files: PublishedFiles,
    *,
    directory: Path | None,
    threads: int,
    progress: Progress,
) -> None:
    """Compute what a chain looks at of an intermediate image; what an interrupted run computed is not fetched again.

    Raises:
        TrustError, NetworkError: As in `fill_by_delta`.
    """
    give_memory_back()
    taken = image.taken

    def apply(wanted: Sequence[Segment]) -> None:
        segments = _pending(image, wanted, threads=threads)
        progress.begin("Computing a release in between", sum(segment.output_size for segment in segments))
        _carry_out(
            segments,
            use.delta,
            files,
            work=lambda segment, payloads: apply_segment(segment, payloads[0], image.before, image),
            threads=threads,
            progress=progress,
        )
        progress.end()

    apply(use.segments(taken.segments, taken.groups))
    groups = use.header.groups
    rebuilt = [number for number in taken.groups if number in use.rebuilt and not group_is_done(groups[number], image)]
    if rebuilt and directory is not None:
        progress.begin("Packing files again", sum(groups[number].written_size for number in rebuilt))
        outcomes = _rebuild(
            rebuilt,
            use,
            files,
            source=image.before,
            target=image,
            into=image,
            directory=directory,
            progress=progress,
        )
        progress.end()
        impossible = (number for number, outcome in outcomes.items() if outcome is Outcome.IMPOSSIBLE)
        apply([segment for number in impossible for segment in groups[number].instead])


def _rebuild(
    numbers: Iterable[int],
    use: DeltaUse,
    files: PublishedFiles,
    *,
    source: Source,
    target: BlockReader,
    into: BlockWriter,
    directory: Path,
    progress: Progress,
) -> dict[int, Outcome]:
    """Pack the files of groups again; return how each came out."""
    groups = {number: use.header.groups[number] for number in numbers}
    outcomes: dict[int, Outcome] = {}
    segments = [segment for group in groups.values() for segment in group.segments]
    with closing(files.segments(use.delta, segments)) as bodies:
        for number, group in groups.items():
            give_memory_back()
            outcomes[number] = rebuild(
                group,
                [next(bodies) for _segment in group.segments],
                source=source,
                source_size=use.header.source_size,
                target=target,
                into=into,
                directory=directory,
            )
            progress.advance(group.written_size)
    return outcomes


def _carry_out(
    jobs: Sequence[_AnyJob],
    delta: DeltaRef,
    files: PublishedFiles,
    *,
    work: Callable[[_AnyJob, Sequence[bytes]], object],
    threads: int,
    progress: Progress,
) -> None:
    """Let `work` do jobs in threads, with the bytes of the segments they have, as these come."""
    segments = [segment for job in jobs for segment in _segments_of(job)]
    # Closed here and not some time later, so that an error leaves no connection behind.
    with closing(files.segments(delta, segments)) as bodies:
        for job, _done in run_ahead(
            jobs,
            pull=lambda job: [next(bodies) for _segment in _segments_of(job)],
            work=work,
            weight=lambda job: sum(segment.size for segment in _segments_of(job)),
            budget=IN_FLIGHT_BYTES,
            threads=threads,
        ):
            progress.advance(_written_bytes(job))


def _segments_of(job: _Job) -> Sequence[Segment]:
    match job:
        case CopyRun():
            return ()
        case Segment():
            return (job,)
        case Group():
            return job.segments


def _goes_along(group: Group, source_size: int) -> bool:
    """Tell whether a group can be carried out beside segments, before all of the new image is there."""
    behind_work = source_size + group.work_size
    return group.work_size <= _SMALL_WORK_SIZE and all(run.end <= behind_work for run in group.looked_at)


def _copy(run: CopyRun, source: Source, target: SlotTarget) -> None:
    offset = run.target
    for part in source.parts(run.source, run.size):
        if part.reader is None:
            target.zero(offset, part.size)
        else:
            target.copy_from(part.reader, part.offset, offset, part.size)
        offset += part.size


def chunks_of_groups(chunks: Sequence[Chunk], use: DeltaUse, numbers: Iterable[int]) -> frozenset[int]:
    """Return the numbers of the chunks that hold something of what groups write."""
    runs = sorted(run for number in numbers for run in use.header.groups[number].output_runs)
    ends = [chunk.end for chunk in chunks]
    found: set[int] = set()
    for run in runs:
        number = bisect_right(ends, run.offset)
        while number < len(chunks) and chunks[number].offset < run.end:
            found.add(number)
            number += 1
    return frozenset(found)


def _copies(gaps: Gaps, copies: Iterable[CopyRun]) -> Iterator[CopyRun]:
    """Yield what of the copies goes into gaps, in pieces."""
    for copy in copies:
        for begin, end in gaps.within(copy.target, copy.target + copy.size):
            for position in range(begin, end, _COPY_BYTES):
                yield CopyRun(position, copy.source + position - copy.target, min(_COPY_BYTES, end - position))


def _place(job: Segment | Group) -> int:
    """Return where the first byte of a job lies in the delta file."""
    return _segments_of(job)[0].offset


def _interleaved(jobs: Sequence[Segment | Group], copies: Sequence[CopyRun]) -> Iterator[_Job]:
    """Yield both in their order, mixed: a copy keeps the disk busy while another job keeps the processor."""
    begin = 0
    for number, job in enumerate(jobs, start=1):
        yield job
        end = len(copies) * number // len(jobs)
        yield from copies[begin:end]
        begin = end
    yield from copies[begin:]


def _written_bytes(job: _Job) -> int:
    match job:
        case CopyRun():
            return job.size
        case Segment():
            return job.output_size
        case Group():
            return job.written_size


def _pending(target: BlockReader, wanted: Sequence[Segment], *, threads: int) -> list[Segment]:
    """Return the segments whose result is not there yet."""
    return [
        segment
        for segment, is_done in run_ahead(
            wanted,
            pull=lambda _segment: None,
            work=lambda segment, _nothing: segment_is_done(segment, target),
            weight=lambda _segment: 1,
            budget=2 * threads,
            threads=threads,
        )
        if not is_done
    ]
