"""Putting chunks into a slot: from seeds what they really have, from packs the rest.

A chunk is written only after its id was checked, so a target that was filled half is a target with half of its
chunks right, and nothing else needs to be remembered about an interrupted assembly.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar

from overhaul.content.frames import Frame
from overhaul.content.index import Chunk, chunk_id
from overhaul.content.mending import BLOCK_SIZE, MendPlace, mend, mends_key, wrong_blocks
from overhaul.content.plan import PackRange
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

_Item = TypeVar("_Item")


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
    target: SlotTarget,
    chunks: Sequence[Chunk],
    numbers: Sequence[int],
    files: PublishedFiles,
    *,
    packs: int,
    progress: Progress,
) -> list[int]:
    """Mend chunks that the slot holds but for a few blocks; return the numbers of those that could not be.

    Raises:
        TrustError: The header of the mends is not the signed one; what was mended before is kept.
        NetworkError: The server cannot provide; what was mended before is kept.
    """
    left = list(numbers)
    for pack in range(packs):
        if not left:
            break
        places = files.mends_header(pack)
        found = [(places[key], number) for number in left if (key := mends_key(chunks[number].id)) in places]
        found.sort(key=lambda one: one[0].offset)
        done: set[int] = set()
        for batch in _growing(found, first=_MENDED_FIRST, most=_MENDED_TOGETHER):
            mended = _mend_batch(target, chunks, batch, partial(files.mends, pack))
            done.update(mended)
            progress.advance(sum(chunks[number].size for _place, number in batch))
            if len(mended) < len(batch) // 2:
                # Too much is wrong in each chunk: sums would come on top of the chunks.
                return [number for number in left if number not in done]
        left = [number for number in left if number not in done]
    return left


def _growing(items: Sequence[_Item], *, first: int, most: int) -> Iterator[Sequence[_Item]]:
    """Yield `items` in batches that double in size from `first` to `most`."""
    begin = 0
    while begin < len(items):
        yield items[begin : begin + first]
        begin += first
        first = min(2 * first, most)


def _mend_batch(
    target: SlotTarget,
    chunks: Sequence[Chunk],
    batch: Sequence[tuple[MendPlace, int]],
    fetch: Callable[[list[tuple[int, int]]], Generator[bytes]],
) -> list[int]:
    """Mend what is mended by one sum, then what takes more; return the numbers of the chunks mended."""
    done: list[int] = []
    waiting: list[tuple[MendPlace, int, list[int], list[bytes]]] = []
    with closing(fetch([(place.offset, place.first_end) for place, _number in batch])) as bodies:
        for (place, number), first in zip(batch, bodies, strict=True):
            chunk = chunks[number]
            if place.size != chunk.size:
                continue
            wrong = wrong_blocks(target.read(chunk.offset, chunk.size), place, first)
            sums = [first[-BLOCK_SIZE:]]
            if len(wrong) == 1 and _mend(target, chunk, place, wrong, sums):
                done.append(number)
            elif 1 < len(wrong) <= place.sums:
                waiting.append((place, number, wrong, sums))
    for sum_number in range(1, max((len(wrong) for _place, _number, wrong, _sums in waiting), default=0)):
        wanting = [one for one in waiting if len(one[2]) > sum_number]
        with closing(fetch([place.sum_range(sum_number) for place, _number, _wrong, _sums in wanting])) as bodies:
            for (_place, _number, _wrong, sums), body in zip(wanting, bodies, strict=True):
                sums.append(body)
    done += [number for place, number, wrong, sums in waiting if _mend(target, chunks[number], place, wrong, sums)]
    return done


def _mend(target: SlotTarget, chunk: Chunk, place: MendPlace, wrong: Sequence[int], sums: Sequence[bytes]) -> bool:
    """Write a mended chunk if it is the right one; tell whether it was."""
    data = mend(target.read(chunk.offset, chunk.size), place, wrong, sums)
    if chunk_id(data) != chunk.id:
        return False
    target.write(chunk.offset, data)
    return True


def fill_from_packs(
    target: SlotTarget,
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
