"""Filling a slot by a delta: zeros, then copies and segments as they come.

What is right in the slot already is neither written nor fetched again, and never overwritten: a damaged source
must not undo what an earlier attempt has mended. A segment whose result is wrong, because the source is damaged,
is left to be found when the slot is read back. Small groups of files that are packed again come with the segments;
those that take something of the new image, or much memory, come when everything they may be made of was written.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from overhaul.content.delta.apply import BlockReader, BlockWriter, apply_segment, segment_is_done
from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.format import CopyRun
from overhaul.content.delta.groups import Group
from overhaul.content.delta.rebuilding import Outcome, group_is_done, rebuild
from overhaul.content.delta.segments import MAX_SEGMENT_SIZE, Run, Segment
from overhaul.content.deltause import DeltaUse, Gaps, KeptPayloads, ProtectedSlot, source_runs, source_runs_of_groups
from overhaul.content.intermediate import Intermediate, Source
from overhaul.content.published import PublishedFiles
from overhaul.content.target import SlotTarget
from overhaul.content.workers import give_memory_back, run_ahead
from overhaul.progress import Progress

#: Payload fetched but not applied yet; what a killed assembly fetches again is at most this.
IN_FLIGHT_BYTES = MAX_SEGMENT_SIZE
_COPY_BYTES = 8 * 1024 * 1024
#: A group with a work area up to this size is carried out beside segments: two at a time cost little memory.
_SMALL_WORK_SIZE = 24 * 1024 * 1024

#: What is carried out by a thread.
_Job = Segment | CopyRun | Group
_AnyJob = TypeVar("_AnyJob", bound=_Job)

#: Mends what lies under runs of a source as far as that can be done; says whether it is worth looking at it again.
Mending = Callable[[Source, Iterable[Run]], bool]


def fill_by_delta(
    target: SlotTarget,
    source: Source,
    gaps: Gaps,
    use: DeltaUse,
    files: PublishedFiles,
    *,
    mend: Mending,
    directory: Path | None,
    threads: int,
    progress: Progress,
) -> int:
    """Write into the gaps of `target` what the delta makes of `source`; return how many bytes were copied.

    Of the groups to pack again the small ones are carried out; what is pending then is left to `rebuild_groups`.
    Segments that come out wrong are kept in an unnamed file in `directory` and applied again when `mend` has mended
    the source.

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
    writer = ProtectedSlot(target, gaps)

    def attempt(job: _Job, payloads: Sequence[bytes]) -> bool:
        match job:
            case CopyRun():
                _copy(job, source, target)
                return True
            case Segment():
                return apply_segment(job, payloads[0], source, writer)
            case Group():
                outcome = _rebuild_one(
                    job, payloads, use, source=source, target=target, into=writer, directory=directory
                )
                return outcome is not Outcome.DAMAGED

    with KeptPayloads(directory) as kept:
        _carry_out(
            jobs,
            use,
            files,
            attempt=attempt,
            mend=lambda runs: mend(source, runs),
            kept=kept,
            step="Applying the delta",
            threads=threads,
            progress=progress,
        )
    return sum(copy.size for copy in copies)


def rebuild_groups(
    numbers: Iterable[int],
    use: DeltaUse,
    files: PublishedFiles,
    *,
    target: SlotTarget,
    source: Source,
    gaps: Gaps,
    kept: KeptPayloads,
    directory: Path,
    progress: Progress,
) -> dict[int, Outcome]:
    """Write into the gaps of `target` the files of groups to pack again; everything they may take is written.

    Returns how the groups came out; nothing is written of one that did not come out right, and its segments are kept.
    Work areas are made in `directory`.

    Raises:
        TrustError, NetworkError: As in `fill_by_delta`.
    """
    return _rebuild(
        numbers,
        use,
        files,
        source=source,
        target=target,
        into=ProtectedSlot(target, gaps),
        kept=kept,
        directory=directory,
        progress=progress,
    )


def fill_intermediate(
    image: Intermediate,
    use: DeltaUse,
    files: PublishedFiles,
    *,
    mend: Mending,
    directory: Path | None,
    threads: int,
    progress: Progress,
) -> None:
    """Compute what a chain looks at of an intermediate image; what an interrupted run computed is not fetched again.

    Raises:
        TrustError, NetworkError: As in `fill_by_delta`.
    """
    give_memory_back()
    taken, groups = image.taken, use.header.groups
    with KeptPayloads(directory) as kept:

        def apply(wanted: Sequence[Segment]) -> None:
            _carry_out(
                _pending(image, wanted, threads=threads),
                use,
                files,
                attempt=lambda segment, payloads: apply_segment(segment, payloads[0], image.before, image),
                mend=lambda runs: mend(image.before, runs),
                kept=kept,
                step="Computing a release in between",
                threads=threads,
                progress=progress,
            )

        def pack(numbers: Sequence[int], directory: Path) -> dict[int, Outcome]:
            progress.begin("Packing files again", sum(groups[number].written_size for number in numbers))
            outcomes = _rebuild(
                numbers,
                use,
                files,
                source=image.before,
                target=image,
                into=image,
                kept=kept,
                directory=directory,
                progress=progress,
            )
            progress.end()
            return outcomes

        apply(use.segments(taken.segments, taken.groups))
        rebuilt = [
            number for number in taken.groups if number in use.rebuilt and not group_is_done(groups[number], image)
        ]
        if rebuilt and directory is not None:
            outcomes = pack(rebuilt, directory)
            left = [number for number, outcome in outcomes.items() if outcome is not Outcome.WRITTEN]
            is_damaged = Outcome.DAMAGED in outcomes.values()
            if is_damaged and mend(image.before, source_runs_of_groups(use, left)):
                outcomes |= pack(left, directory)
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
    kept: KeptPayloads,
    directory: Path,
    progress: Progress,
) -> dict[int, Outcome]:
    """Pack the files of groups again; return how each came out."""
    groups = {number: use.header.groups[number] for number in numbers}
    outcomes: dict[int, Outcome] = {}
    segments = [segment for group in groups.values() for segment in group.segments]
    with closing(kept.fetch(files, use.delta, segments)) as bodies:
        for number, group in groups.items():
            give_memory_back()
            payloads = [next(bodies) for _segment in group.segments]
            outcomes[number] = _rebuild_one(
                group, payloads, use, source=source, target=target, into=into, directory=directory
            )
            if outcomes[number] is not Outcome.WRITTEN:
                kept.keep(group.segments, payloads)
            progress.advance(group.written_size)
    return outcomes


def _rebuild_one(
    group: Group,
    payloads: Sequence[bytes],
    use: DeltaUse,
    *,
    source: Source,
    target: BlockReader,
    into: BlockWriter,
    directory: Path | None,
) -> Outcome:
    if directory is None:
        return Outcome.IMPOSSIBLE
    return rebuild(
        group,
        payloads,
        source=source,
        source_size=use.header.source_size,
        target=target,
        into=into,
        directory=directory,
    )


def _carry_out(
    jobs: Sequence[_AnyJob],
    use: DeltaUse,
    files: PublishedFiles,
    *,
    attempt: Callable[[_AnyJob, Sequence[bytes]], bool],
    mend: Callable[[Iterable[Run]], bool],
    kept: KeptPayloads,
    step: str,
    threads: int,
    progress: Progress,
) -> None:
    """Attempt jobs in threads, with the bytes of the segments they have, as these come.

    Those that came out wrong are kept, and attempted once more when `mend` has mended what they look at.
    """
    failed: list[_AnyJob] = []

    def work(job: _AnyJob, payloads: Sequence[bytes]) -> None:
        if not attempt(job, payloads):
            kept.keep(_segments_of(job), payloads)
            failed.append(job)

    progress.begin(step, sum(map(_written_bytes, jobs)))
    segments = [segment for job in jobs for segment in _segments_of(job)]
    # Closed here and not some time later, so that an error leaves no connection behind.
    with closing(files.segments(use.delta, segments)) as bodies:
        for job, _done in run_ahead(
            jobs,
            pull=lambda job: [next(bodies) for _segment in _segments_of(job)],
            work=work,
            weight=lambda job: sum(segment.size for segment in _segments_of(job)),
            budget=IN_FLIGHT_BYTES,
            threads=threads,
        ):
            progress.advance(_written_bytes(job))
    progress.end()
    if failed and mend(run for job in failed for run in source_runs(job, use.header)):
        for job in failed:
            payloads = [held for held in map(kept.take, _segments_of(job)) if held is not None]
            if len(payloads) == len(_segments_of(job)):
                attempt(job, payloads)


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
