"""Dividing the new image: what is copied, and which pieces of it are to be told from which windows.

A piece is what becomes one unit later: at most 1 MiB of new bytes and, as a rule, 1.5 MiB of old ones that lie
around the same relative position of the reference. Windows that narrow were measured to cost nothing in size; they
save matching time and bound memory on the device. Blocks that stand at the same place of the reference are copied.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from overhaul.content.delta.bytesource import ImageBytes
from overhaul.content.delta.format import CopyRun
from overhaul.content.delta.pairing import Pair, numberless, part_of
from overhaul.content.delta.segments import MAX_UNIT_WINDOW, Run, join_runs
from overhaul.content.ext4 import Extent, ImageFile

#: How far beyond its own relative position a piece looks into its reference, on either side.
_MARGIN = 256 * 1024
#: New bytes of a piece.
PIECE_SIZE = 1024 * 1024
#: A reference up to this size is the window as a whole.
_SMALL_REFERENCE = 1536 * 1024
#: Windows begin and end at multiples of this, which keeps the numbers in the header small.
_ALIGNMENT = 4096
#: Fewer equal bytes between changed ones than this stay in the piece: a copy has its price, too.
_WORTH_COPYING = 16 * 1024
_COMPARED_SIZE = 256 * 1024


@dataclass(frozen=True, slots=True)
class Piece:
    """What one unit is to write, and the part of the old image it may look at."""

    #: The file it is of; none for what belongs to no file.
    pair: Pair | None
    output: tuple[Run, ...]
    window: tuple[Run, ...]


class Gatherer(Protocol):
    """Bytes that lie somewhere, read by their runs."""

    def gather(self, runs: Iterable[tuple[int, int]]) -> bytes:
        """Return the bytes of `runs`, joined."""


class Claims:
    """Which blocks of the new image are provided for already, so that none is written twice."""

    def __init__(self, size: int, block_size: int) -> None:
        self.block_size = block_size
        self._taken = bytearray(-(-size // block_size))

    def take(self, extents: Iterable[Extent]) -> bool:
        """Claim the blocks of a file; leave them all and return False when one is another file's."""
        slices = [slice(e.offset // self.block_size, (e.offset + e.size) // self.block_size) for e in extents]
        if any(1 in self._taken[part] for part in slices):
            return False
        for part in slices:
            self._taken[part] = b"\1" * (part.stop - part.start)
        return True

    def free_runs(self, size: int) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of what is below `size` and not claimed."""
        position = 0
        blocks = len(self._taken)
        while 0 <= (begin := self._taken.find(0, position)) < blocks:
            end = self._taken.find(1, begin)
            position = blocks if end < 0 else end
            yield begin * self.block_size, min(position * self.block_size, size)


def copies_of_file(old: Sequence[Extent], new: Sequence[Extent]) -> Iterator[CopyRun]:
    """Yield the copies that make a file whose blocks are those of an old one."""
    sources = iter(old)
    source = next(sources, Extent(0, 0))
    for offset, size in new:
        target = offset
        while target < offset + size:
            if not source.size:
                source = next(sources)
            step = min(offset + size - target, source.size)
            yield CopyRun(target, source.offset, step)
            target += step
            source = Extent(source.offset + step, source.size - step)


def divide_file(pair: Pair, old: Gatherer, new: Gatherer, block_size: int) -> tuple[list[CopyRun], list[Piece]]:
    """Return what of a changed file is copied, and the pieces of the rest."""
    reference = pair.old.extents if pair.old else ()
    copies: list[CopyRun] = []
    changed: list[Run] = []
    position = 0
    for begin, end in _equal_runs(reference, pair.new.extents, old, new, block_size):
        if begin > position:
            changed.append(Run(position, begin - position))
        if end > begin:
            copies.extend(copies_of_file([*part_of(reference, begin, end)], [*part_of(pair.new.extents, begin, end)]))
        position = end
    return copies, _pieces_of(pair, changed)


def pieces_of_whole_file(pair: Pair) -> list[Piece]:
    """Return the pieces of a file of which nothing is copied."""
    return _pieces_of(pair, [Run(0, pair.new.stored_size)])


def _pieces_of(pair: Pair, changed: Iterable[Run]) -> list[Piece]:
    reference = pair.old.extents if pair.old else ()
    return [
        Piece(
            pair,
            tuple(Run(*extent) for run in runs for extent in part_of(pair.new.extents, run.offset, run.end)),
            tuple(Run(*extent) for run in _window(runs, pair) for extent in part_of(reference, run.offset, run.end)),
        )
        for runs in _batches(changed)
    ]


def _equal_runs(
    reference: Sequence[Extent], extents: Sequence[Extent], old: Gatherer, new: Gatherer, block_size: int
) -> Iterator[tuple[int, int]]:
    """Yield (begin, end), in bytes of the file, of equal runs worth copying, and an empty one at its end."""
    size = sum(extent.size for extent in extents)
    shared = min(size, sum(extent.size for extent in reference)) // block_size * block_size
    begin = end = 0
    for position in range(0, shared, _COMPARED_SIZE):
        stop = min(position + _COMPARED_SIZE, shared)
        ours = new.gather(part_of(extents, position, stop))
        theirs = old.gather(part_of(reference, position, stop))
        if ours == theirs:
            end = stop
            continue
        for offset in range(0, stop - position, block_size):
            if ours[offset : offset + block_size] == theirs[offset : offset + block_size]:
                end = position + offset + block_size
            else:
                if end - begin >= _WORTH_COPYING:
                    yield begin, end
                begin = end = position + offset + block_size
    if end - begin >= _WORTH_COPYING:
        yield begin, end
    yield size, size


def _batches(changed: Iterable[Run]) -> Iterator[list[Run]]:
    """Group runs of one file, cutting long ones, so that a group makes one unit and its window stays narrow."""
    batch: list[Run] = []
    written = seen = 0
    for run in changed:
        for offset in range(run.offset, run.end, PIECE_SIZE):
            part = Run(offset, min(PIECE_SIZE, run.end - offset))
            gap = part.offset - batch[-1].end if batch else 2 * _MARGIN
            cost = part.size + min(gap, 2 * _MARGIN)
            if batch and (written + part.size > PIECE_SIZE or seen + cost > MAX_UNIT_WINDOW):
                yield batch
                batch, written, seen = [], 0, 0
                cost = part.size + 2 * _MARGIN
            batch.append(part)
            written += part.size
            seen += cost
    if batch:
        yield batch


def _window(runs: Sequence[Run], pair: Pair) -> list[Run]:
    """Return the bytes of the reference around the same relative positions, joined where they touch."""
    reference_size = pair.old.stored_size if pair.old else 0
    if reference_size <= _SMALL_REFERENCE:
        return [Run(0, reference_size)] if reference_size else []
    window: list[Run] = []
    room = MAX_UNIT_WINDOW
    for run in runs:
        middle = (run.offset + run.end) * reference_size // (2 * pair.new.stored_size)
        begin = max(0, middle - run.size // 2 - _MARGIN) // _ALIGNMENT * _ALIGNMENT
        end = min(reference_size, -(-(middle + run.size // 2 + _MARGIN) // _ALIGNMENT) * _ALIGNMENT)
        if window and begin <= window[-1].end:
            begin = window[-1].end
        end = min(end, begin + room)
        if begin < end:
            room -= end - begin
            window.append(Run(begin, end - begin))
    return window


def divide_directories(
    old_directories: Sequence[ImageFile],
    new_directories: Sequence[ImageFile],
    claims: Claims,
    old: Gatherer,
    new: Gatherer,
) -> list[Piece]:
    """Return pieces of the directories that changed or moved, many to a piece; told as files are, from the same path.

    Names are what they are made of, and these are found in the old directory only: next to it lies something else.
    """
    by_numberless_path = {numberless(directory.path): directory for directory in reversed(old_directories)}
    by_path = {directory.path: directory for directory in old_directories}
    pieces: list[Piece] = []
    output: list[Extent] = []
    window: list[Extent] = []
    for directory in sorted(new_directories, key=lambda one: one.extents[:1]):
        reference = by_path.get(directory.path) or by_numberless_path.get(numberless(directory.path))
        seen = reference.extents if reference else ()
        if seen == directory.extents and old.gather(seen) == new.gather(directory.extents):
            continue
        if max(_size(directory.extents), _size(seen)) > PIECE_SIZE or not claims.take(directory.extents):
            continue
        if max(_size([*output, *directory.extents]), _size([*window, *seen])) > PIECE_SIZE:
            pieces.append(Piece(None, tuple(join_runs(output)), tuple(join_runs(window))))
            output, window = [], []
        output += directory.extents
        window += seen
    if output:
        pieces.append(Piece(None, tuple(join_runs(output)), tuple(join_runs(window))))
    return pieces


def _size(extents: Iterable[Extent]) -> int:
    return sum(extent.size for extent in extents)


def divide_rest(claims: Claims, old: ImageBytes, new: ImageBytes) -> tuple[list[CopyRun], list[Piece]]:
    """Return copies and pieces for what belongs to no file: the reference is the same place of the old image."""
    copies: list[CopyRun] = []
    pieces: list[Piece] = []
    output: list[Run] = []
    written = 0
    for free_begin, free_end in claims.free_runs(new.size):
        for offset, size in new.nonzero_runs(free_begin, free_end, claims.block_size):
            if offset + size <= old.size and new.read(offset, size) == old.read(offset, size):
                copies.append(CopyRun(offset, offset, size))
                continue
            if written + size > PIECE_SIZE:
                pieces.append(_rest_piece(output, old.size))
                output, written = [], 0
            if output and output[-1].end == offset:
                output[-1] = Run(output[-1].offset, output[-1].size + size)
            else:
                output.append(Run(offset, size))
            written += size
    if output:
        pieces.append(_rest_piece(output, old.size))
    return copies, pieces


def _rest_piece(output: Sequence[Run], old_size: int) -> Piece:
    window = [Run(run.offset, min(run.size, old_size - run.offset)) for run in output if run.offset < old_size]
    return Piece(None, tuple(output), tuple(window))


def join_copies(copies: Iterable[CopyRun]) -> list[CopyRun]:
    """Return the copies in the order of the target, with those that continue one another made one."""
    joined: list[CopyRun] = []
    for copy in sorted(copies):
        if joined:
            last = joined[-1]
            if (last.target + last.size, last.source + last.size) == (copy.target, copy.source):
                joined[-1] = CopyRun(last.target, last.source, last.size + copy.size)
                continue
        joined.append(copy)
    return joined
