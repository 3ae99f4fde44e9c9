"""Everything before the first byte of a slot is written: the index, what is there already, and the plan.

Preparing only reads. It is shared by those who assemble and those who want to know what that would cost.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from overhaul.content.cache import KEPT_FREE_BYTES, ContentCache
from overhaul.content.chunker import chunk_file
from overhaul.content.delta.recoders import proved
from overhaul.content.index import Index
from overhaul.content.plan import Limits, Plan, Situation, Step, choose_plan, plan_without_tables
from overhaul.content.published import PublishedFiles
from overhaul.content.readback import find_wrong
from overhaul.content.seeds import Seeds
from overhaul.content.target import ImageReader, MediumReader, SlotUnusableError
from overhaul.errors import InputError, TrustError
from overhaul.progress import Progress, Silence
from overhaul.release.record import DeltaRef, Release
from overhaul.transfer.counting import CountingFetcher
from overhaul.transfer.fetcher import Fetcher
from overhaul.transfer.resuming import ResumingFetcher

#: Reading, hashing and decoding gain from a second core; more would cost memory.
THREADS = 2


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What an assembly may draw on."""

    base_url: str
    #: It need not resume by itself.
    fetcher: Fetcher
    #: The slot the device runs from, or another that holds the release a delta starts at.
    source: Path | None = None
    #: Digest of the index of the release in it.
    source_index: str | None = None
    #: Images, such as on a USB stick, that may have chunks of the release.
    seeds: Sequence[Path] = ()
    #: Deltas, in order, that lead from the source over other releases to this one.
    chains: Sequence[tuple[DeltaRef, ...]] = ()
    limits: Limits | None = None
    progress: Progress | None = None
    #: Directory for indexes, tables and delta headers, so that they are not fetched twice.
    cache: Path | None = None
    #: Whether neighbours may want what was fetched of a delta; it stays in the cache then until the next update.
    keeps_segments: bool = False
    #: Called between two tries of a request.
    wait: Callable[[float], None] = time.sleep


class Preparation:
    """What is known about a release, this device and its seeds."""

    def __init__(self, release: Release, materials: Materials) -> None:
        self.image = release.image
        self.counting = CountingFetcher(materials.fetcher)
        self.progress = materials.progress or Silence()
        self.cache = ContentCache(materials.cache)
        self.files = PublishedFiles(
            fetcher=ResumingFetcher(self.counting, wait=materials.wait),
            base_url=materials.base_url,
            image=release.image,
            cache=self.cache,
            keeps_segments=materials.keeps_segments,
        )
        #: What was tried and refused, in sentences.
        self.refused: list[str] = []
        self._materials = materials
        self._refused_deltas: set[str] = set()
        self._had_at_first = {
            digest
            for digest in (release.image.index.sha256, *(pack.frames.sha256 for pack in release.image.packs))
            if digest in self.cache
        } | {
            delta.header_sha256
            for delta in (*release.image.deltas, *(one for chain in materials.chains for one in chain))
            if delta.header_sha256 in self.cache
        }
        self._open = ExitStack()
        self.source = self._open_seed(materials.source)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @cached_property
    def index(self) -> Index:
        """The index of the image."""
        self.progress.begin("Fetching the index", self.image.index.size)
        index = self.files.index()
        self.progress.end()
        return index

    @cached_property
    def seeds(self) -> Seeds:
        """All seeds, looked through when first asked for."""
        seeds = Seeds()
        if self.source is not None:
            self._offer(seeds, self.source, self.index_of_source())
        for path in self._materials.seeds:
            reader = self._open_seed(path)
            if reader is not None:
                self._offer(seeds, reader, None)
        return seeds

    def index_of_source(self) -> Index | None:
        """Return the index of the release in the source slot, when it can be had."""
        if self.source is None or self._materials.source_index is None:
            return None
        try:
            return self.files.other_index(self._materials.source_index, image_bytes=self.source.size)
        except TrustError as error:
            self.refused.append(str(error))
            return None

    @property
    def seeds_at_hand(self) -> Seeds:
        """What can be had of the seeds without fetching anything: for mending what a delta made of the source."""
        if "seeds" in vars(self) or self._materials.source_index in self.cache or self._materials.seeds:
            return self.seeds
        return Seeds()

    def find_wrong(self, reader: ImageReader, numbers: Sequence[int], *, step: str) -> list[int]:
        """Return those of the chunk `numbers` that a slot does not hold."""
        self.progress.begin(step, sum(self.index.chunks[number].size for number in numbers))
        wrong = find_wrong(reader, self.index.chunks, numbers, threads=THREADS, progress=self.progress)
        self.progress.end()
        return wrong

    def right_in(self, slot: Path) -> frozenset[int]:
        """Return the numbers of the chunks that the medium of a slot holds already."""
        numbers = range(len(self.index))
        with MediumReader(slot) as reader:
            wrong = self.find_wrong(reader, numbers, step="Looking at what the slot holds")
        return frozenset(numbers) - frozenset(wrong)

    def plan(self, right: Collection[int]) -> Plan:
        """Return the cheapest plan; seeds are only looked through when the plan may depend on them."""
        plan = None
        if not self._materials.seeds:
            plan = plan_without_tables(self._situation(right, seeds=None))
        if plan is None:
            plan = plan_without_tables(self._situation(right, seeds=self.seeds))
        return plan or choose_plan(self._situation(right, seeds=self.seeds), self.files.tables())

    def refuse(self, steps: Iterable[Step], error: Exception) -> None:
        """Remember that a delta, or a chain of them as it is, cannot be used."""
        self._refused_deltas.update(step.delta.file.sha256 for step in steps)
        self.refused.append(str(error))

    def finish(self) -> None:
        """Keep of the cache only what the next update, or neighbours, can use."""
        wanted = {self.image.index.sha256, self._materials.source_index or ""}
        if self._materials.keeps_segments:
            wanted |= self.files.used
        self.cache.keep_only(wanted)

    def _situation(self, right: Collection[int], *, seeds: Seeds | None) -> Situation:
        return Situation(
            image=self.image,
            index=self.index,
            right=right,
            seeded=frozenset() if seeds is None else seeds,
            source_index=None if self.source is None else self._materials.source_index,
            limits=self._limits,
            cached=self._had_at_first,
            refused=self._refused_deltas,
            chains=() if self.source is None else self._materials.chains,
        )

    @cached_property
    def work_directory(self) -> Path | None:
        """Where work areas may lie."""
        return self._materials.cache

    @cached_property
    def _limits(self) -> Limits:
        """What this device can afford, with what it has proved of packing again."""
        limits = self._materials.limits or Limits()
        if self.work_directory is None:
            return limits
        source_index = self._materials.source_index
        names = {
            name
            for delta in (
                *(one for one in self.image.deltas if one.source_index == source_index),
                *(one for chain in self._materials.chains for one in chain),
            )
            for part in delta.rebuilds
            for name in part.recoders
        }
        room = os.statvfs(self.work_directory)
        free = room.f_bavail * room.f_frsize - KEPT_FREE_BYTES
        return replace(limits, recoders=proved(names), work_bytes=max(0, free))

    def _open_seed(self, path: Path | None) -> ImageReader | None:
        """Open a seed; one that cannot be opened is no reason to fail."""
        if path is None:
            return None
        try:
            return self._open.enter_context(ImageReader(path))
        except SlotUnusableError as error:
            self.refused.append(str(error))
            return None

    def _offer(self, seeds: Seeds, reader: ImageReader, index: Index | None) -> None:
        if index is None and reader.size:
            self.progress.begin(f"Cutting {reader.path.name} into chunks", None)
            try:
                index = chunk_file(reader.path)
            except (InputError, OSError) as error:
                self.refused.append(f"{reader.path} cannot be used as a seed ({error}).")
            self.progress.end()
        if index is not None:
            seeds.add(reader, index)
