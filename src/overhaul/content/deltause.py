"""What a delta is used with on a device: where it may write, which groups it packs again, and what is kept of it."""

import os
import threading
from bisect import bisect_right
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

from overhaul.content.delta.apply import BlockReader
from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.format import CopyRun, DeltaHeader
from overhaul.content.delta.groups import Group
from overhaul.content.delta.rebuilding import group_is_done
from overhaul.content.delta.segments import Run, Segment
from overhaul.content.index import Chunk
from overhaul.content.plan import Step
from overhaul.content.published import PublishedFiles
from overhaul.content.target import SlotTarget
from overhaul.release.record import DeltaRef


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


class ProtectedSlot:
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


class KeptPayloads:
    """Bytes of segments whose result came out wrong, in an unnamed file, so that they are not fetched once more."""

    def __init__(self, directory: Path | None) -> None:
        # Not buffered: what a full disk refuses must not come up again at the next write.
        self._file = None if directory is None else TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115 - closed at the end
        self._lock = threading.Lock()
        self._size = 0
        #: By the segment's place in the delta file.
        self._places: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def keep(self, segments: Sequence[Segment], payloads: Sequence[bytes]) -> None:
        """Keep what belongs to `segments`, where there is a place for it."""
        if self._file is None:
            return
        with self._lock, suppress(OSError):
            for segment, payload in zip(segments, payloads, strict=True):
                if os.pwrite(self._file.fileno(), payload, self._size) == len(payload):
                    self._places[segment.offset] = self._size
                    self._size += len(payload)

    def take(self, segment: Segment) -> bytes | None:
        """Return what was kept for `segment`."""
        place = self._places.get(segment.offset)
        if self._file is None or place is None:
            return None
        return os.pread(self._file.fileno(), segment.size, place)

    def fetch(self, files: PublishedFiles, delta: DeltaRef, segments: Sequence[Segment]) -> Generator[bytes]:
        """Yield the bytes of each of `segments`, ascending in the file: from here, or fetched."""
        missing = [segment for segment in segments if segment.offset not in self._places]
        with closing(files.segments(delta, missing)) as bodies:
            for segment in segments:
                held = self.take(segment)
                yield next(bodies) if held is None else held


def source_runs(job: Segment | CopyRun | Group, header: DeltaHeader) -> Iterator[Run]:
    """Yield what a job looks at of the image that its delta starts from."""
    match job:
        case CopyRun():
            yield Run(job.source, job.size)
        case Segment():
            yield from (run for unit in job.units for run in unit.window)
        case Group():
            yield from (run for unpacking in job.unpackings for run in unpacking.packed)
            yield from (run for run in job.looked_at if run.offset < header.source_size)


def source_runs_of_groups(use: DeltaUse, numbers: Iterable[int]) -> Iterator[Run]:
    """Yield what groups look at of the image that their delta starts from."""
    return (run for number in numbers for run in source_runs(use.header.groups[number], use.header))
