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

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from overhaul.content.bydelta import fill_by_delta, fill_intermediate, rebuild_groups
from overhaul.content.delta.rebuilding import Outcome
from overhaul.content.delta.segments import Run
from overhaul.content.deltause import DeltaUse, Gaps, KeptPayloads, chunks_of_groups, source_runs_of_groups
from overhaul.content.fill import fill_from_packs, fill_from_seeds, mend_chunks, zero_chunks
from overhaul.content.index import Chunk, Index
from overhaul.content.intermediate import Source, Spool, open_chain
from overhaul.content.mended_source import MendedSource, damaged_chunks
from overhaul.content.packranges import plan_ranges
from overhaul.content.plan import Plan, Way
from overhaul.content.preparing import THREADS, Materials, Preparation
from overhaul.content.readback import find_wrong, is_zero_chunk
from overhaul.content.seeds import Seeds
from overhaul.content.target import ImageReader, SlotTarget, SlotTooSmallError, SlotUnusableError, is_same_file
from overhaul.content.workers import give_memory_back, keep_no_freed_memory, side_by_side
from overhaul.errors import DeviceError, TrustError
from overhaul.progress import Progress
from overhaul.release.record import Release
from overhaul.transfer.fetcher import RefusedStatusError

#: How often wrong chunks are written again before the medium is blamed.
_REPAIR_ROUNDS = 2

_Result = TypeVar("_Result")


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


def assemble(release: Release, materials: Materials, *, target: Path) -> AssemblyReport:
    """Make `target` hold the image of `release`, and prove it.

    Interrupted at any moment, it leaves a slot that a second call continues from.

    Raises:
        TrustError: Published bytes are not the signed ones.
        NetworkError: The repository cannot be reached or is incomplete.
        SlotTooSmallError: The image does not fit; nothing was written.
        SlotUnusableError: The slot cannot be opened, read or written, is in use, or is the source.
        AssemblyFailedError: The medium does not hold what was written.
    """
    keep_no_freed_memory()
    give_memory_back()
    with SlotTarget(target, image_size=release.image.size) as slot, Preparation(release, materials) as preparation:
        if preparation.source is not None and is_same_file(preparation.source.path, target):
            raise SlotUnusableError(path=target, reason="it is also the source")
        return _Assembly(slot, preparation).run()


def preview(release: Release, materials: Materials, *, target: Path | None = None) -> Plan:
    """Return the plan `assemble` would follow; the slot is read when one is given, and never written.

    Raises:
        TrustError: Published bytes are not the signed ones.
        NetworkError: The repository cannot be reached or is incomplete.
        SlotTooSmallError: The image does not fit.
        SlotUnusableError: The slot cannot be opened or read.
    """
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
        #: The source as it was, as far as it had to be mended.
        self._mended: MendedSource | None = None
        self._is_source_damaged = False
        #: Whether what is wrong in the slot is mostly right, because a delta wrote it.
        self._is_nearly_right = False
        #: Chunks of zeros whose place holds what a chain computes, until the image is there.
        self._lent: frozenset[int] = frozenset()

    def run(self) -> AssemblyReport:
        self._right = self._preparation.right_in(self._slot.path)
        kept_bytes = sum(self._chunks[number].size for number in self._right)
        plan = self._preparation.plan(self._right)
        while plan.steps and not self._fill_by(plan):
            self._lent = frozenset()
            self._is_nearly_right = False
            self._slot.sync()
            self._right = self._preparation.right_in(self._slot.path)
            plan = self._preparation.plan(self._right)
        if not plan.steps:
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

    def _fill_by(self, plan: Plan) -> bool:
        """Apply the deltas of a plan; say whether they could be used."""
        if self._preparation.source is None:
            raise AssertionError("a delta was planned without a source")
        try:
            with ExitStack() as opened:
                uses = [DeltaUse.open(step, self._preparation.files) for step in plan.steps]
                directory = self._preparation.work_directory
                self._mended = opened.enter_context(MendedSource(self._preparation.source, directory))
                source = self._last_source(plan, uses, self._mended, opened)
                self._apply(uses[-1], source)
                self._is_nearly_right = True
                if plan.rebuilt:
                    self._rebuild(uses[-1], source)
        except TrustError as error:
            self._preparation.refuse(plan.steps, error)
            return False
        except RefusedStatusError as error:
            # Gone from the server, that is; trouble of the server itself would meet the packs, too.
            if not 400 <= error.status < 500:
                raise
            self._preparation.refuse(plan.steps, error)
            return False
        # Not earlier: an interrupted chain goes on with what lies there.
        zero_chunks(self._slot, self._chunks, sorted(self._lent))
        self._lent = frozenset()
        return True

    def _last_source(self, plan: Plan, uses: Sequence[DeltaUse], source: Source, opened: ExitStack) -> Source:
        """Return what the last delta starts from; what the others compute for it is in the spool then."""
        if len(uses) == 1:
            return source
        spool = self._open_spool(plan, opened)
        images = open_chain([use.header for use in uses], source, spool)
        for image, use in zip(images, uses[:-1], strict=True):
            fill_intermediate(
                image,
                use,
                self._preparation.files,
                mend=self._mend_source,
                directory=self._preparation.work_directory,
                threads=THREADS,
                progress=self._preparation.progress,
            )
        return images[-1]

    def _open_spool(self, plan: Plan, opened: ExitStack) -> Spool:
        """Return room for what a chain computes: in the slot where it will be zero, else in a scratch file."""
        size = plan.spool_bytes
        if plan.spool_in_slot:
            lent = list(_until(size, (chunk for chunk in self._chunks if is_zero_chunk(chunk))))
            offsets = {chunk.offset for chunk in lent}
            self._lent = frozenset(number for number, chunk in enumerate(self._chunks) if chunk.offset in offsets)
            return Spool(self._slot, (Run(chunk.offset, chunk.size) for chunk in lent))
        if self._preparation.work_directory is None:
            raise AssertionError("a spool was planned without room for it")
        # Named, so that an interrupted chain finds it again; the cache forgets it when the image is there.
        path = self._preparation.work_directory / f"{plan.steps[0].delta.header_sha256}.spool"
        path.touch()
        os.truncate(path, size)
        return Spool(opened.enter_context(SlotTarget(path, image_size=size)), [Run(0, size)])

    def _apply(self, use: DeltaUse, source: Source) -> None:
        self._reused_bytes += fill_by_delta(
            self._slot,
            source,
            Gaps(self._chunks, self._right | self._lent),
            use,
            self._preparation.files,
            mend=self._mend_source,
            directory=self._preparation.work_directory,
            threads=THREADS,
            progress=self._preparation.progress,
        )

    def _mend_source(self, source: Source, runs: Iterable[Run]) -> bool:
        """Mend the damage of the device's source that `source` is made of under `runs`, where its index tells of it."""
        preparation = self._preparation
        if preparation.source is None or self._mended is None:
            return False
        self._is_source_damaged = True
        index = preparation.index_of_source()
        if index is None:
            return False
        parts = (part for run in runs for part in source.parts(run.offset, run.size))
        runs = (Run(part.offset, part.size) for part in parts if part.reader is preparation.source)
        damaged = damaged_chunks(self._mended, index, runs)
        preparation.progress.begin("Mending the source", sum(index.chunks[number].size for number in damaged))
        packs = len(preparation.image.packs)
        try:
            left = mend_chunks(
                self._mended, index.chunks, damaged, preparation.files, packs=packs, progress=preparation.progress
            )
            self._fetch_source(self._mended, index, left)
        except (TrustError, RefusedStatusError) as error:
            preparation.refused.append(str(error))
        preparation.progress.end()
        return True

    def _fetch_source(self, source: MendedSource, index: Index, numbers: Sequence[int]) -> None:
        """Fetch chunks of the source that could not be mended, while they are few: much may hang on each."""
        preparation = self._preparation
        if not numbers:
            return
        tables = preparation.files.tables()
        sizes = {frame.chunk_id: frame.size for table in tables for frame in table}
        held = [number for number in numbers if index.chunks[number].id in sizes]
        wanted = {index.chunks[number].id for number in held}
        if not wanted or sum(sizes[identity] for identity in wanted) > preparation.image.own_pack_bytes // 2:
            return
        ranges = plan_ranges(preparation.image, preparation.index, tables, wanted)
        fill_from_packs(
            source, index.chunks, held, ranges, preparation.files, threads=THREADS, progress=preparation.progress
        )

    def _rebuild(self, use: DeltaUse, source: Source) -> None:
        """Pack the files of groups again that are pending, while the other chunks are read back."""
        gaps = Gaps(self._chunks, self._right | self._lent)
        pending = use.pending_groups(self._slot, gaps)
        waiting = chunks_of_groups(self._chunks, use, pending) - self._right
        self._proved = frozenset(range(len(self._chunks))) - waiting - self._lent
        with KeptPayloads(self._preparation.work_directory) as kept:
            if self._is_source_damaged:
                # A wrong block in a packed file would cost all files of its group.
                self._prove(self._proved)
                self._mend_source(source, source_runs_of_groups(use, pending))
                outcomes = self._pack(pending, use, source, kept, self._preparation.progress)
            else:
                outcomes = self._prove_while(
                    self._proved,
                    lambda progress: self._pack(pending, use, source, kept, progress),
                    size=sum(use.header.groups[number].written_size for number in pending),
                )
                left = [number for number, outcome in outcomes.items() if outcome is not Outcome.WRITTEN]
                if left and (self._repaired_chunks or Outcome.DAMAGED in outcomes.values()):
                    # They were made of something that was wrong.
                    self._mend_source(source, source_runs_of_groups(use, left))
                    outcomes |= self._pack(left, use, source, kept, self._preparation.progress)
        self._right = self._proved
        failed = [number for number, outcome in outcomes.items() if outcome is Outcome.IMPOSSIBLE]
        if failed:
            self._preparation.refused.append(f"{len(failed)} groups of files could not be packed again here.")
            self._apply(replace(use, rebuilt=frozenset(use.rebuilt).difference(failed)), source)

    def _pack(
        self, numbers: Sequence[int], use: DeltaUse, source: Source, kept: KeptPayloads, progress: Progress
    ) -> dict[int, Outcome]:
        if self._preparation.work_directory is None:
            raise AssertionError("packing again was planned without room for it")
        return rebuild_groups(
            numbers,
            use,
            self._preparation.files,
            target=self._slot,
            source=source,
            gaps=Gaps(self._chunks, self._right | self._lent),
            kept=kept,
            directory=self._preparation.work_directory,
            progress=progress,
        )

    def _fill(self, numbers: Sequence[int]) -> None:
        """Write chunks from seeds and, what these lack, from packs."""
        preparation, progress = self._preparation, self._preparation.progress
        seeds = preparation.seeds_at_hand if self._is_nearly_right else preparation.seeds
        seeds.add(self._slot, (self._chunks[number] for number in sorted(self._right)))
        numbers = zero_chunks(self._slot, self._chunks, numbers)
        wanted_bytes = sum(self._chunks[number].size for number in numbers)
        progress.begin("Copying chunks", wanted_bytes)
        left = fill_from_seeds(self._slot, self._chunks, numbers, seeds, threads=THREADS, progress=progress)
        progress.end()
        self._reused_bytes += wanted_bytes - sum(self._chunks[number].size for number in left)
        left = self._mend(left, seeds)
        if not left:
            return
        wanted = {self._chunks[number].id for number in left}
        ranges = plan_ranges(preparation.image, preparation.index, preparation.files.tables(), wanted)
        progress.begin("Fetching chunks", sum(frame.size for piece in ranges for frame in piece.frames))
        fill_from_packs(self._slot, self._chunks, left, ranges, preparation.files, threads=THREADS, progress=progress)
        progress.end()

    def _mend(self, numbers: Sequence[int], seeds: Seeds) -> list[int]:
        """Mend chunks that are nearly right, where the slot or a damaged seed has them; return the other numbers."""
        damaged: list[int] = []
        for number in numbers:
            chunk = self._chunks[number]
            places = seeds.places(chunk.id)
            if places:
                self._slot.write(chunk.offset, places[0].reader.read(places[0].offset, chunk.size))
            if places or self._is_nearly_right:
                damaged.append(number)
        if not damaged:
            return list(numbers)
        progress = self._preparation.progress
        progress.begin("Mending chunks", sum(self._chunks[number].size for number in damaged))
        packs = len(self._preparation.image.packs)
        try:
            left = mend_chunks(
                self._slot, self._chunks, damaged, self._preparation.files, packs=packs, progress=progress
            )
        except (TrustError, RefusedStatusError) as error:
            # What mends is a help only: everything it could mend is in the packs.
            self._preparation.refused.append(str(error))
            left = damaged
        progress.end()
        others = set(numbers).difference(damaged)
        return sorted(others.union(left))

    def _prove(self, numbers: Collection[int]) -> None:
        """Read chunks back and mend those that are wrong."""
        self._repair(numbers, self._read_back(sorted(numbers)))

    def _prove_while(self, numbers: Collection[int], work: Callable[[Progress], _Result], *, size: int) -> _Result:
        """Read chunks back while `work`, of `size` bytes, fetches and writes others; then mend those that are wrong."""
        listed, progress = sorted(numbers), self._preparation.progress
        read_bytes = sum(self._chunks[number].size for number in listed)
        self._slot.sync()
        with self._slot.medium_reader() as reader:
            progress.begin("Reading back and packing files again", read_bytes + size)
            wrong, result = side_by_side(
                lambda shared: find_wrong(reader, self._chunks, listed, threads=THREADS, progress=shared),
                work,
                progress=progress,
            )
            progress.end()
        self._repair(listed, wrong)
        return result

    def _repair(self, numbers: Collection[int], wrong: list[int]) -> None:
        """Mend those of the chunks that were read back that are wrong."""
        self._repaired_chunks += len(wrong)
        for _round in range(_REPAIR_ROUNDS):
            if not wrong:
                return
            self._right = self._proved.union(numbers).difference(wrong)
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


def _until(size: int, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """Yield chunks until they have `size` bytes together."""
    for chunk in chunks:
        if size <= 0:
            return
        yield chunk
        size -= chunk.size
