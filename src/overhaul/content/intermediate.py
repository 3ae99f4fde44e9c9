"""The images a chain of deltas passes through: read where the next delta looks, never written as a whole.

A chain leads from the release in the source slot over releases that the device never had. Of such an *intermediate*
image everything is somewhere already but what its delta computes: copies lie in the image before it, what nothing
writes is zeros. Only what units and groups compute is kept, in a *spool*, and of that only what the next delta looks
at. The spool lies where the new image has zeros, or in a scratch file; where each piece goes follows from the headers
alone, so an interrupted chain finds its pieces again and knows them by their signed digests.

What an intermediate image holds is believed nothing: a damaged source makes it wrong, and what became of that is found
when the slot is read back.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.format import DeltaHeader
from overhaul.content.delta.groups import Group
from overhaul.content.delta.segments import Run, Segment
from overhaul.content.target import ImageReader, SlotTarget


class FilePart(NamedTuple):
    """Bytes that lie together in a file, or zeros that lie nowhere."""

    reader: ImageReader | None
    offset: int
    size: int


class Source(Protocol):
    """The image that a delta starts from."""

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on."""

    def parts(self, offset: int, size: int) -> Iterator[FilePart]:
        """Yield where the `size` bytes from `offset` on lie, in their order."""


class NoRoomError(MalformedDeltaError):
    """A delta computes more than its release record says."""

    def __init__(self, *, wanted_bytes: int, room_bytes: int) -> None:
        self.wanted_bytes = wanted_bytes
        self.room_bytes = room_bytes
        super().__init__(f"a step of a chain needs {wanted_bytes} bytes where {room_bytes} were made ready")


@dataclass(frozen=True)
class Taken:
    """What is carried out of one delta of a chain."""

    header: DeltaHeader
    segments: Sequence[Segment]
    #: Numbers of groups, ascending.
    groups: Sequence[int]

    @classmethod
    def whole(cls, header: DeltaHeader) -> "Taken":
        """All of it: the last delta of a chain."""
        return cls(header, header.segments, range(len(header.groups)))

    def before(self, header: DeltaHeader) -> "Taken":
        """What must be carried out of the delta `header` so that this one finds in its source what it looks at."""
        looked_at = _Runs(self._source_runs())
        groups: list[int] = []
        for number in reversed(range(len(header.groups))):
            if looked_at.meet(header.groups[number].output_runs):
                groups.insert(0, number)
                # A group may take from those before it.
                looked_at = _Runs((*looked_at.runs, *_own_runs(header, number)))
        segments = [segment for segment in header.segments if looked_at.meet(segment.output_runs)]
        return Taken(header, segments, groups)

    @property
    def computed_runs(self) -> Iterator[Run]:
        """Runs of the image that its segments and groups write, in a fixed order."""
        for segment in self.segments:
            yield from segment.output_runs
        for number in self.groups:
            yield from self.header.groups[number].output_runs

    def _source_runs(self) -> Iterator[Run]:
        size = self.header.source_size
        yield from (Run(copy.source, copy.size) for copy in self.header.copies)
        yield from _windows(self.segments)
        for number in self.groups:
            group = self.header.groups[number]
            yield from (run for unpacking in group.unpackings for run in unpacking.packed)
            yield from _windows(group.instead)
            yield from _clipped(_joined_runs(group), 0, size)


def _windows(segments: Iterable[Segment]) -> Iterator[Run]:
    return (run for segment in segments for unit in segment.units for run in unit.window)


def _joined_runs(group: Group) -> Iterator[Run]:
    """Yield what a group looks at in its joined space."""
    yield from (Run(move.source, move.size) for move in group.moves)
    yield from _windows(group.segments)


def _own_runs(header: DeltaHeader, number: int) -> Iterator[Run]:
    """Yield what a group looks at in the image that its own delta makes."""
    group = header.groups[number]
    begin = header.source_size + group.work_size
    for run in _clipped(_joined_runs(group), begin, begin + header.target_size):
        yield Run(run.offset - begin, run.size)


def _clipped(runs: Iterable[Run], begin: int, end: int) -> Iterator[Run]:
    for run in runs:
        low, high = max(begin, run.offset), min(end, run.end)
        if low < high:
            yield Run(low, high - low)


class _Runs:
    """Runs of an image, to be met by others."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs: list[Run] = []
        for run in sorted(runs):
            if self.runs and run.offset <= self.runs[-1].end:
                last = self.runs[-1]
                self.runs[-1] = Run(last.offset, max(last.end, run.end) - last.offset)
            else:
                self.runs.append(run)
        self._offsets = [run.offset for run in self.runs]

    def meet(self, others: Iterable[Run]) -> bool:
        """Tell whether one of `others` has a byte in common with these."""
        for other in others:
            number = bisect_right(self._offsets, other.end - 1) - 1
            if number >= 0 and self.runs[number].end > other.offset:
                return True
        return False


class Spool:
    """Room for what intermediate images compute, given out from the front."""

    def __init__(self, store: SlotTarget, room: Iterable[Run]) -> None:
        self.store = store
        self._room = [run for run in room if run.size]
        self._room.reverse()
        self._size = sum(run.size for run in self._room)

    def take(self, size: int) -> Iterator[Run]:
        """Yield where the next `size` bytes go.

        Raises:
            NoRoomError: There are not so many left.
        """
        if size > self._size:
            raise NoRoomError(wanted_bytes=size, room_bytes=self._size)
        self._size -= size
        while size:
            run = self._room.pop()
            taken = Run(run.offset, min(size, run.size))
            if taken.size < run.size:
                self._room.append(Run(taken.end, run.size - taken.size))
            size -= taken.size
            yield taken


class _Place(NamedTuple):
    """Bytes of an intermediate image and where they are."""

    offset: int
    size: int
    #: None is the spool.
    source: Source | None
    place: int


class Intermediate:
    """The image that a delta makes of `before`, as far as the next delta of the chain looks at it."""

    def __init__(self, taken: Taken, before: Source, spool: Spool) -> None:
        self.taken = taken
        self.before = before
        self._store = spool.store
        places = [_Place(copy.target, copy.size, before, copy.source) for copy in taken.header.copies]
        for run in taken.computed_runs:
            offset = run.offset
            for piece in spool.take(run.size):
                places.append(_Place(offset, piece.size, None, piece.offset))
                offset += piece.size
        self._places = sorted(places, key=lambda place: place.offset)
        self._offsets = [place.offset for place in self._places]

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on."""
        pieces = []
        for begin, amount, found in self._within(offset, size):
            if found is None:
                pieces.append(bytes(amount))
            else:
                source = self._store if found.source is None else found.source
                pieces.append(source.read(found.place + begin - found.offset, amount))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def parts(self, offset: int, size: int) -> Iterator[FilePart]:
        """Yield where the `size` bytes from `offset` on lie, in their order."""
        for begin, amount, found in self._within(offset, size):
            if found is None:
                yield FilePart(None, 0, amount)
            elif found.source is None:
                yield FilePart(self._store, found.place + begin - found.offset, amount)
            else:
                yield from found.source.parts(found.place + begin - found.offset, amount)

    def write(self, offset: int, data: bytes, /) -> None:
        """Keep what a unit or a group computed."""
        view = memoryview(data)
        for begin, amount, found in self._within(offset, len(data)):
            if found is None or found.source is not None:
                raise MalformedDeltaError(f"a step of a chain writes {amount} bytes at {begin} that it does not state")
            self._store.write(found.place + begin - found.offset, view[begin - offset : begin - offset + amount])

    def _within(self, offset: int, size: int) -> Iterator[tuple[int, int, _Place | None]]:
        """Yield (offset, size, place) of the parts of a range; None is what nothing writes."""
        end = offset + size
        number = max(0, bisect_right(self._offsets, offset) - 1)
        while offset < end:
            place = self._places[number] if number < len(self._places) else None
            if place is not None and place.offset + place.size <= offset:
                number += 1
            elif place is not None and place.offset <= offset:
                stop = min(end, place.offset + place.size)
                yield offset, stop - offset, place
                offset = stop
            else:
                stop = end if place is None else min(end, place.offset)
                yield offset, stop - offset, None
                offset = stop


def open_chain(headers: Sequence[DeltaHeader], source: Source, spool: Spool) -> list[Intermediate]:
    """Return the images between the deltas of a chain, the first one first; nothing is computed yet.

    Raises:
        MalformedDeltaError: The deltas do not fit one another, or the spool is too small.
    """
    for earlier, later in pairwise(headers):
        if earlier.target_size != later.source_size:
            raise MalformedDeltaError(
                f"a delta of a chain makes {earlier.target_size} bytes, and the next starts from {later.source_size}"
            )
    taken = [Taken.whole(headers[-1])]
    for header in reversed(headers[:-1]):
        taken.insert(0, taken[0].before(header))
    images: list[Intermediate] = []
    for one in taken[:-1]:
        before = images[-1] if images else source
        images.append(Intermediate(one, before, spool))
    return images
