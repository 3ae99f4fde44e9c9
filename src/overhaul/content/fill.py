"""Putting chunks into a slot: from seeds what they really have, from packs the rest.

A chunk is written only after its id was checked, so a target that was filled half is a target with half of its
chunks right, and nothing else needs to be remembered about an interrupted assembly.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple, Protocol

from overhaul.content.frames import Frame
from overhaul.content.index import Chunk, chunk_id
from overhaul.content.mending import BLOCK_SIZE, MendPlace, mend, mends_key, wrong_blocks
from overhaul.content.packranges import PackRange
from overhaul.content.published import PublishedFiles
from overhaul.content.readback import is_zero_chunk
from overhaul.content.seeds import WINDOW_BYTES, Seeds, Window, plan_windows
from overhaul.content.target import SlotTarget
from overhaul.content.workers import run_ahead
from overhaul.content.zstd import decompress_frame
from overhaul.progress import Progress
from overhaul.transfer.fetching import WrongDigestError

#: Frames fetched but not written yet; what a killed assembly fetches again is at most these.
IN_FLIGHT_BYTES = 1024 * 1024
#: Chunks whose sums are held together, some kilobytes each: few at first, which tell whether more are worth it.
_MENDED_FIRST = 32
_MENDED_TOGETHER = 256


class Mendable(Protocol):
    """What chunks lie in, right or nearly so."""

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on."""

    def write(self, offset: int, data: bytes | memoryview, /) -> None:
        """Put `data` at `offset`."""


def zero_chunks(target: SlotTarget, chunks: Sequence[Chunk], numbers: Sequence[int]) -> list[int]:
    """Make the chunks zero that consist of zeros; return the other numbers."""
    others: list[int] = []
    begin = end = 0
    for number in numbers:
        chunk = chunks[number]
        if not is_zero_chunk(chunk):
            others.append(number)
            continue
        if chunk.offset != end:
            target.zero(begin, end - begin)
            begin = chunk.offset
        end = chunk.end
    target.zero(begin, end - begin)
    return others


def fill_from_seeds(
    target: SlotTarget,
    chunks: Sequence[Chunk],
    numbers: Sequence[int],
    seeds: Seeds,
    *,
    threads: int,
    progress: Progress,
) -> list[int]:
    """Write every chunk that a seed really has; return the numbers of those that none has."""
    left = list(numbers)
    choice = 0
    while left:
        windows = plan_windows((chunks[number] for number in left), seeds, choice=choice)
        if not windows:
            break
        done = _copy_windows(target, windows, threads=threads, progress=progress)
        left = [number for number in left if chunks[number].offset not in done]
        choice += 1
    return left


def _copy_windows(target: SlotTarget, windows: Sequence[Window], *, threads: int, progress: Progress) -> set[int]:
    """Write the good chunks of each window; return the offsets of the chunks written."""

    def copy(window: Window, _nothing: None) -> list[int]:
        written: list[int] = []
        for chunks, data in window.good_runs():
            target.write(chunks[0].offset, data)
            written.extend(chunk.offset for chunk in chunks)
        return written

    done: set[int] = set()
    for window, written in run_ahead(
        windows,
        pull=lambda _window: None,
        work=copy,
        weight=lambda window: window.size,
        budget=threads * WINDOW_BYTES,
        threads=threads,
    ):
        done.update(written)
        progress.advance(window.size)
    return done


def mend_chunks(
    target: Mendable,
    chunks: Sequence[Chunk],
    numbers: Sequence[int],
    files: PublishedFiles,
    *,
    packs: int,
    progress: Progress,
) -> list[int]:
    """Mend chunks that `target` holds but for a few blocks; return the numbers of those that could not be.

    Raises:
        TrustError: The header of the mends is not the signed one; what was mended before is kept.
        NetworkError: The server cannot provide; what was mended before is kept.
    """
    twins: dict[bytes, list[int]] = {}
    for number in numbers:
        twins.setdefault(chunks[number].id, []).append(number)
    for pack in range(packs):
        if not twins:
            break
        places = files.mends_header(pack)
        found = [
            _Wanted(place, [chunks[number] for number in same])
            for identity, same in twins.items()
            if (place := places.get(mends_key(identity))) is not None and place.size == chunks[same[0]].size
        ]
        found.sort(key=lambda one: one.place.offset)
        for batch in _growing(found, first=_MENDED_FIRST, most=_MENDED_TOGETHER):
            mended = _mend_batch(target, batch, partial(files.mends, pack))
            for identity in mended:
                del twins[identity]
            progress.advance(sum(chunk.size for one in batch for chunk in one.twins))
            if len(mended) < len(batch) // 2:
                # Too much is wrong in each chunk of this pack: sums would come on top of the chunks.
                break
    return sorted(number for same in twins.values() for number in same)


class _Wanted(NamedTuple):
    """A chunk to be mended: by what, and everywhere it belongs."""

    place: MendPlace
    twins: list[Chunk]


def _growing(items: Sequence[_Wanted], *, first: int, most: int) -> Iterator[Sequence[_Wanted]]:
    """Yield `items` in batches that double in size from `first` to `most`."""
    begin = 0
    while begin < len(items):
        yield items[begin : begin + first]
        begin += first
        first = min(2 * first, most)


def _mend_batch(
    target: Mendable, batch: Sequence[_Wanted], fetch: Callable[[list[tuple[int, int]]], Generator[bytes]]
) -> list[bytes]:
    """Mend what is mended by one sum, then what takes more; return the ids of the chunks mended."""
    done: list[bytes] = []
    waiting: list[tuple[_Wanted, list[int], list[bytes]]] = []
    with closing(fetch([(one.place.offset, one.place.first_end) for one in batch])) as bodies:
        for one, first in zip(batch, bodies, strict=True):
            chunk = one.twins[0]
            wrong = wrong_blocks(target.read(chunk.offset, chunk.size), one.place, first)
            sums = [first[-BLOCK_SIZE:]]
            if len(wrong) < 2:
                done += _mend(target, one, wrong, sums)
            elif len(wrong) <= one.place.sums:
                waiting.append((one, wrong, sums))
    for number in range(1, max((len(wrong) for _one, wrong, _sums in waiting), default=0)):
        wanting = [(one, sums) for one, wrong, sums in waiting if len(wrong) > number]
        with closing(fetch([one.place.sum_range(number) for one, _sums in wanting])) as bodies:
            for (_one, sums), body in zip(wanting, bodies, strict=True):
                sums.append(body)
    for one, wrong, sums in waiting:
        done += _mend(target, one, wrong, sums)
    return done


def _mend(target: Mendable, one: _Wanted, wrong: Sequence[int], sums: Sequence[bytes]) -> list[bytes]:
    """Write a mended chunk everywhere it belongs if it is the right one; return its id then."""
    chunk = one.twins[0]
    data = mend(target.read(chunk.offset, chunk.size), one.place, wrong, sums)
    if chunk_id(data) != chunk.id:
        return []
    for twin in one.twins:
        target.write(twin.offset, data)
    return [chunk.id]


def fill_from_packs(
    target: Mendable,
    chunks: Sequence[Chunk],
    numbers: Sequence[int],
    ranges: Sequence[PackRange],
    files: PublishedFiles,
    *,
    threads: int,
    progress: Progress,
) -> None:
    """Fetch the frames of `ranges`, which are ordered by pack, and write each chunk wherever it is wanted.

    Raises:
        WrongDigestError: A frame or the chunk in it is not the signed one; the others were kept.
        NetworkError: The server cannot provide; what came was kept.
    """
    places: dict[bytes, list[int]] = {}
    for number in numbers:
        places.setdefault(chunks[number].id, []).append(number)

    def put(wanted: tuple[Frame, str], data: bytes) -> None:
        frame, url = wanted
        chunk = _decode(frame, data, url)
        for number in places[frame.chunk_id]:
            target.write(chunks[number].offset, chunk)

    # Closed here and not some time later, so that an error leaves no connection behind.
    with closing(files.frames(ranges)) as bodies:
        for (frame, _url), _written in run_ahead(
            ((frame, files.pack_url(piece.pack)) for piece in ranges for frame in piece.frames),
            pull=lambda _wanted: next(bodies),
            work=put,
            weight=lambda wanted: wanted[0].size,
            budget=IN_FLIGHT_BYTES,
            threads=threads,
        ):
            progress.advance(frame.size)


def _decode(frame: Frame, data: bytes, url: str) -> bytes:
    part = f"the frame at {frame.offset}"
    if hashlib.sha256(data).digest() != frame.sha256:
        raise WrongDigestError(url=url, part=part)
    chunk = decompress_frame(data, size=frame.chunk_size)
    if chunk_id(chunk) != frame.chunk_id:
        raise WrongDigestError(url=url, part=f"the chunk in {part}")
    return chunk
