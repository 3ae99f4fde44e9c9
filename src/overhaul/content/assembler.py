"""Assembling a release's image straight into a slot, from whatever is cheapest, and proving what was written.

The steps: fetch the index; look at what the slot holds already (an interrupted assembly goes on where it was);
plan; fill the slot by a delta or from seeds and packs; make it durable; read everything back from the medium
and compare it with the index; mend what is wrong, from seeds, then from packs; read that back. The call
returns only when every byte of the image was read back right.

Nothing is decoded before its signed digest was checked. A delta that cannot be used (missing on the server, wrong
digest, unknown coder) costs the delta and not the update: packs hold every chunk. Memory is bounded by windows,
whatever the size of the image. The slot must not be bootable while this runs; that is the caller's business, as is
everything about which release and which slot.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.bydelta import Gaps, chunks_of_groups, fill_by_delta, rebuild_groups
from overhaul.content.fill import fill_from_packs, fill_from_seeds, zero_chunks
from overhaul.content.plan import Limits, Plan, Way, plan_ranges
from overhaul.content.preparing import THREADS, Materials, Preparation
from overhaul.content.target import ImageReader, SlotTarget, SlotTooSmallError, SlotUnusableError, is_same_file
from overhaul.content.workers import give_memory_back, keep_no_freed_memory
from overhaul.errors import DeviceError, TrustError
from overhaul.progress import Progress
from overhaul.release.record import DeltaRef, Release
from overhaul.transfer.fetcher import Fetcher, RefusedStatusError

#: How often wrong chunks are written again before the medium is blamed.
_REPAIR_ROUNDS = 2


class AssemblyFailedError(DeviceError):
    """The slot does not hold what was written to it."""

    def __init__(self, *, path: Path, wrong_chunks: int, first_offset: int) -> None:
        self.path = path
        self.wrong_chunks = wrong_chunks
        self.first_offset = first_offset
        super().__init__(
            f"The medium of {path} gives back other bytes than were written ({wrong_chunks} chunks, the first at byte "
            f"{first_offset}); the slot stays unbootable. Check the medium and replace it."
        )


@dataclass(frozen=True, kw_only=True)
class AssemblyReport:
    """What an assembly did and cost."""

    way: Way
    #: Bytes of all response bodies, and requests.
    bytes_received: int
    requests: int
    #: Bytes of the image that were right in the slot before.
    kept_bytes: int
    #: Bytes copied from the source slot and from seeds.
    reused_bytes: int
    #: Bytes written to the slot.
    written_bytes: int
    #: Chunks that were wrong when everything was first read back.
    repaired_chunks: int
    plan: Plan
    #: What was tried and refused, and why, in sentences.
    refused: tuple[str, ...]


def assemble(
    release: Release,
    *,
    base_url: str,
    fetcher: Fetcher,
    target: Path,
    source: Path | None = None,
    source_index: str | None = None,
    seeds: Sequence[Path] = (),
    limits: Limits | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> AssemblyReport:
    """Make `target` hold the image of `release`, and prove it.

    Interrupted at any moment, it leaves a slot that a second call continues from. What the other arguments mean
    is said at `Materials`.

    Raises:
        TrustError: Published bytes are not the signed ones.
        NetworkError: The repository cannot be reached or is incomplete.
        SlotTooSmallError: The image does not fit; nothing was written.
        SlotUnusableError: The slot cannot be opened, read or written, is in use, or is the source.
        AssemblyFailedError: The medium does not hold what was written.
    """
    materials = Materials(
        base_url=base_url,
        fetcher=fetcher,
        source=source,
        source_index=source_index,
        seeds=seeds,
        limits=limits,
        progress=progress,
        cache=cache,
        wait=wait,
    )
    keep_no_freed_memory()
    give_memory_back()
    with SlotTarget(target, image_size=release.image.size) as slot, Preparation(release, materials) as preparation:
        if preparation.source is not None and is_same_file(preparation.source.path, target):
            raise SlotUnusableError(path=target, reason="it is also the source")
        return _Assembly(slot, preparation).run()


def preview(
    release: Release,
    *,
    base_url: str,
    fetcher: Fetcher,
    target: Path | None = None,
    source: Path | None = None,
    source_index: str | None = None,
    seeds: Sequence[Path] = (),
    limits: Limits | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Plan:
    """Return the plan `assemble` would follow; the slot is read when one is given, and never written.

    Raises:
        TrustError: Published bytes are not the signed ones.
        NetworkError: The repository cannot be reached or is incomplete.
        SlotTooSmallError: The image does not fit.
        SlotUnusableError: The slot cannot be opened or read.
    """
    materials = Materials(
        base_url=base_url,
        fetcher=fetcher,
        source=source,
        source_index=source_index,
        seeds=seeds,
        limits=limits,
        progress=progress,
        cache=cache,
        wait=wait,
    )
    with Preparation(release, materials) as preparation:
        return preparation.plan(frozenset() if target is None else _right_if_fitting(preparation, target))


def _right_if_fitting(preparation: Preparation, target: Path) -> frozenset[int]:
    with ImageReader(target) as slot:
        if slot.size == 0:
            return frozenset()
        if slot.size < preparation.image.size:
            raise SlotTooSmallError(path=target, size_bytes=slot.size, image_bytes=preparation.image.size)
    return preparation.right_in(target)


class _Assembly:
    """One run over a slot."""

    def __init__(self, slot: SlotTarget, preparation: Preparation) -> None:
        self._slot = slot
        self._preparation = preparation
        self._chunks = preparation.index.chunks
        self._right: frozenset[int] = frozenset()
        self._reused_bytes = 0
        #: Chunks that were read back right and are not touched any more.
        self._proved: frozenset[int] = frozenset()
        self._repaired_chunks = 0

    def run(self) -> AssemblyReport:
        self._right = self._preparation.right_in(self._slot.path)
        kept_bytes = sum(self._chunks[number].size for number in self._right)
        plan = self._preparation.plan(self._right)
        while plan.delta is not None and not self._fill_by(plan, plan.delta):
            self._slot.sync()
            self._right = self._preparation.right_in(self._slot.path)
            plan = self._preparation.plan(self._right)
        if plan.delta is None:
            self._fill([number for number in range(len(self._chunks)) if number not in self._right])
        self._prove(frozenset(range(len(self._chunks))) - self._proved)
        counted = self._preparation.counting
        self._preparation.finish()
        return AssemblyReport(
            way=plan.way,
            bytes_received=counted.bytes_received,
            requests=counted.requests,
            kept_bytes=kept_bytes,
            reused_bytes=self._reused_bytes,
            written_bytes=self._slot.bytes_written,
            repaired_chunks=self._repaired_chunks,
            plan=plan,
            refused=tuple(self._preparation.refused),
        )

    def _fill_by(self, plan: Plan, delta: DeltaRef) -> bool:
        """Apply a delta; say whether it could be used."""
        source = self._preparation.source
        if source is None:
            raise AssertionError("a delta was planned without a source")
        try:
            self._apply(delta, source, plan.rebuilt)
            if plan.rebuilt:
                self._rebuild(delta, source, plan.rebuilt)
        except TrustError as error:
            self._preparation.refuse(delta, error)
            return False
        except RefusedStatusError as error:
            # Gone from the server, that is; trouble of the server itself would meet the packs, too.
            if not 400 <= error.status < 500:
                raise
            self._preparation.refuse(delta, error)
            return False
        return True

    def _apply(self, delta: DeltaRef, source: ImageReader, rebuilt: frozenset[int]) -> None:
        self._reused_bytes += fill_by_delta(
            self._slot,
            source,
            Gaps(self._chunks, self._right),
            delta,
            self._preparation.files,
            rebuilt=rebuilt,
            threads=THREADS,
            progress=self._preparation.progress,
        )

    def _rebuild(self, delta: DeltaRef, source: ImageReader, rebuilt: frozenset[int]) -> None:
        """Pack the files of groups again, from a slot whose other chunks were proved right."""
        files, directory = self._preparation.files, self._preparation.work_directory
        if directory is None:
            raise AssertionError("packing again was planned without room for it")
        waiting = chunks_of_groups(self._chunks, self._slot, delta, files, rebuilt=rebuilt) - self._right
        self._proved = frozenset(range(len(self._chunks))) - waiting
        self._prove(self._proved)
        self._right = self._proved
        failed = rebuild_groups(
            self._slot,
            source,
            Gaps(self._chunks, self._right),
            delta,
            files,
            rebuilt=rebuilt,
            directory=directory,
            progress=self._preparation.progress,
        )
        if failed:
            self._preparation.refused.append(f"{len(failed)} groups of files could not be packed again here.")
            self._apply(delta, source, rebuilt.difference(failed))

    def _fill(self, numbers: Sequence[int]) -> None:
        """Write chunks from seeds and, what these lack, from packs."""
        preparation, progress = self._preparation, self._preparation.progress
        seeds = preparation.seeds
        seeds.add(self._slot, (self._chunks[number] for number in sorted(self._right)))
        numbers = zero_chunks(self._slot, self._chunks, numbers)
        wanted_bytes = sum(self._chunks[number].size for number in numbers)
        progress.begin("Copying chunks", wanted_bytes)
        left = fill_from_seeds(self._slot, self._chunks, numbers, seeds, threads=THREADS, progress=progress)
        progress.end()
        self._reused_bytes += wanted_bytes - sum(self._chunks[number].size for number in left)
        if not left:
            return
        wanted = {self._chunks[number].id for number in left}
        ranges = plan_ranges(preparation.image, preparation.index, preparation.files.tables(), wanted)
        progress.begin("Fetching chunks", sum(frame.size for piece in ranges for frame in piece.frames))
        fill_from_packs(self._slot, self._chunks, left, ranges, preparation.files, threads=THREADS, progress=progress)
        progress.end()

    def _prove(self, numbers: Collection[int]) -> None:
        """Read chunks back and mend those that are wrong."""
        expected = frozenset(numbers)
        wrong = self._read_back(sorted(expected))
        self._repaired_chunks += len(wrong)
        for _round in range(_REPAIR_ROUNDS):
            if not wrong:
                return
            self._right = self._proved.union(expected).difference(wrong)
            self._fill(wrong)
            wrong = self._read_back(wrong)
        if wrong:
            raise AssemblyFailedError(
                path=self._slot.path, wrong_chunks=len(wrong), first_offset=self._chunks[wrong[0]].offset
            )

    def _read_back(self, numbers: Sequence[int]) -> list[int]:
        self._slot.sync()
        with self._slot.medium_reader() as reader:
            return self._preparation.find_wrong(reader, numbers, step="Reading back")
