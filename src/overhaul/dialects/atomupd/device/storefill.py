"""Filling a slot with the image an index describes: from the running slot, and from a chunk store over HTTP.

A chunk store has one small file for each chunk, so what counts is how many requests are under way at once. Each chunk
is written only after its id was checked; the slot itself is therefore the record of what is done, and an interrupted
installation goes on where it was.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from overhaul.content.castr import chunk_file_name
from overhaul.content.chunker import chunk_file
from overhaul.content.fill import fill_from_seeds, zero_chunks
from overhaul.content.index import Chunk, Index, chunk_id
from overhaul.content.readback import find_wrong
from overhaul.content.seeds import Seeds
from overhaul.content.target import ImageReader, MediumReader, SlotTarget, SlotUnusableError, is_same_file
from overhaul.content.workers import keep_no_freed_memory, run_ahead
from overhaul.content.zstd import MalformedFrameError, decompress_frame
from overhaul.errors import DeviceError, InputError
from overhaul.progress import Progress
from overhaul.transfer.fetcher import Fetcher
from overhaul.transfer.fetching import WrongDigestError, fetch_bytes

#: casync's encoder asks for so much at most.
_WINDOW_BYTES = 8 << 20
_THREADS = 2
#: Requests under way at once.
_CONNECTIONS = 6
_IN_FLIGHT_BYTES = 4 << 20
_REPAIR_ROUNDS = 2

#: The steps of `fill_slot`, and where they stand on the scale of a whole installation.
STEPS = {
    "Looking at what the slot holds": (5.0, 10.0),
    "Cutting the running slot": (10.0, 15.0),
    "Copying chunks": (15.0, 27.5),
    "Fetching chunks": (27.5, 90.0),
    "Reading back": (90.0, 95.0),
}


class WornSlotError(DeviceError):
    """The slot does not hold what was written to it."""

    def __init__(self, *, path: Path, wrong_chunks: int) -> None:
        self.path = path
        self.wrong_chunks = wrong_chunks
        super().__init__(
            f"The medium of {path} gives back other bytes than were written ({wrong_chunks} chunks); the slot stays "
            "unbootable. Check the medium and replace it."
        )


def fill_slot(
    index: Index,
    *,
    target: Path,
    source: Path,
    store_url: str,
    open_fetcher: Callable[[], Fetcher],
    progress: Progress,
) -> None:
    """Make `target` hold the image of `index`, and prove it by reading it back.

    Args:
        index: The signed index.
        target: The idle slot.
        source: The running slot, which is the seed.
        store_url: Address of the chunk store.
        open_fetcher: Called once in each thread that fetches.
        progress: Is told the steps of `STEPS`.

    Raises:
        NetworkError: The store cannot provide; what came is kept for the next call.
        WrongDigestError: A file of the store is not the chunk it is named after.
        WornSlotError: The medium does not hold what was written.
    """
    keep_no_freed_memory()
    chunks = index.chunks
    everything = range(len(chunks))
    store = _Store(store_url, open_fetcher)
    with SlotTarget(target, image_size=index.size) as slot, ImageReader(source) as seed:
        if is_same_file(target, source):
            raise SlotUnusableError(path=target, reason="it is the running slot")
        with MediumReader(target) as reader:
            wrong = _wrong(reader, chunks, everything, progress, step="Looking at what the slot holds")
        right = sorted(frozenset(everything) - frozenset(wrong))
        seeds = Seeds()
        seeds.add(slot, (chunks[number] for number in right))
        if wrong:
            _cut(seed, seeds, progress)
        for _round in range(1 + _REPAIR_ROUNDS):
            _fill(slot, chunks, wrong, seeds=seeds, fetch=store.fetch, progress=progress)
            slot.sync()
            with slot.medium_reader() as reader:
                wrong = _wrong(reader, chunks, everything, progress, step="Reading back")
            if not wrong:
                return
        raise WornSlotError(path=target, wrong_chunks=len(wrong))


def _wrong(
    reader: ImageReader, chunks: Sequence[Chunk], numbers: Sequence[int], progress: Progress, *, step: str
) -> list[int]:
    progress.begin(step, sum(chunks[number].size for number in numbers))
    wrong = find_wrong(reader, chunks, numbers, threads=_THREADS, progress=progress)
    progress.end()
    return wrong


def _cut(seed: ImageReader, seeds: Seeds, progress: Progress) -> None:
    """Offer the running slot's chunks; a slot that cannot be read costs fetching, not the update."""
    progress.begin("Cutting the running slot", None)
    with suppress(InputError, OSError):
        seeds.add(seed, chunk_file(seed.path))
    progress.end()


def _fill(
    slot: SlotTarget,
    chunks: Sequence[Chunk],
    wrong: Sequence[int],
    *,
    seeds: Seeds,
    fetch: Callable[[Chunk], bytes],
    progress: Progress,
) -> None:
    numbers = zero_chunks(slot, chunks, wrong)
    progress.begin("Copying chunks", sum(chunks[number].size for number in numbers))
    left = fill_from_seeds(slot, chunks, numbers, seeds, threads=_THREADS, progress=progress)
    progress.end()
    places: dict[bytes, list[Chunk]] = {}
    for number in left:
        places.setdefault(chunks[number].id, []).append(chunks[number])

    def put(wanted: list[Chunk], _nothing: None) -> None:
        data = fetch(wanted[0])
        for chunk in wanted:
            slot.write(chunk.offset, data)

    progress.begin("Fetching chunks", sum(wanted[0].size for wanted in places.values()))
    for wanted, _written in run_ahead(
        places.values(),
        pull=lambda _wanted: None,
        work=put,
        weight=lambda wanted: wanted[0].size,
        budget=_IN_FLIGHT_BYTES,
        threads=_CONNECTIONS,
    ):
        progress.advance(wanted[0].size)
    progress.end()


class _Store:
    """A chunk store over HTTP, with a fetcher for each thread that asks it."""

    def __init__(self, url: str, open_fetcher: Callable[[], Fetcher]) -> None:
        self._url = url
        self._open_fetcher = open_fetcher
        self._mine = threading.local()

    def fetch(self, chunk: Chunk) -> bytes:
        """Return the bytes of `chunk`, checked against its id."""
        if not hasattr(self._mine, "fetcher"):
            self._mine.fetcher = self._open_fetcher()
        url = f"{self._url}/{chunk_file_name(chunk.id)}"
        # zstd adds far less to what it cannot compress.
        frame = fetch_bytes(self._mine.fetcher, url, limit_bytes=chunk.size + chunk.size // 128 + 4096)
        try:
            data = decompress_frame(frame, size=chunk.size, window_size=_WINDOW_BYTES)
        except MalformedFrameError as error:
            raise WrongDigestError(url=url) from error
        if chunk_id(data) != chunk.id:
            raise WrongDigestError(url=url)
        return data
