"""Which ranges of packs are fetched for the chunks that are wanted, and what the smallest full form costs."""

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from overhaul.content.frames import Frame
from overhaul.content.index import Index
from overhaul.content.readback import is_zero_chunk
from overhaul.errors import TrustError
from overhaul.release.record import ImageRecord

#: More requests than this are avoided by fetching bigger gaps as well, but only for a part of what is wanted: a
#: request costs a moment, and mending scattered damage must not cost the whole image.
MAX_REQUESTS = 48
_GAPS_SHARE = 0.1
#: What a request costs, in bytes that could have been fetched meanwhile; smaller gaps are fetched.
REQUEST_COST_BYTES = 16 * 1024
#: No way may cost more than this part more than the smallest full form.
MARGIN = 0.01


class PackRange(NamedTuple):
    """Bytes of one pack fetched by one request."""

    #: Which of the image's packs.
    pack: int
    start: int
    end: int
    #: The wanted frames inside, in pack order.
    frames: tuple[Frame, ...]

    @property
    def size(self) -> int:
        """Bytes fetched."""
        return self.end - self.start


class IncompletePacksError(TrustError):
    """The packs of a release lack a chunk of its index."""

    def __init__(self, *, identity: bytes) -> None:
        self.identity = identity
        super().__init__(
            f"No pack of the release holds the chunk {identity.hex()}; run `overhaul repository verify` "
            "and publish the release again."
        )


def plan_ranges(
    image: ImageRecord, index: Index, tables: Sequence[Sequence[Frame]], wanted: Collection[bytes]
) -> tuple[PackRange, ...]:
    """Return the ranges of packs to fetch for the chunks `wanted`.

    Raises:
        IncompletePacksError: One of them is in no pack.
    """
    described = _description_bytes(image)
    budget = int((1 + MARGIN) * full_form_bytes(image, index, tables)) - described
    return coalesce(locate_frames(tables, wanted), budget_bytes=budget)


def _description_bytes(image: ImageRecord) -> int:
    return image.index.size + sum(pack.frames.size for pack in image.packs)


def full_form_bytes(image: ImageRecord, index: Index, tables: Sequence[Sequence[Frame]]) -> int:
    """Return the bytes of the smallest published full form: index, tables, one frame for every chunk."""
    wanted = {chunk.id for chunk in index if not is_zero_chunk(chunk)}
    return _description_bytes(image) + sum(frame.size for taken in locate_frames(tables, wanted) for frame in taken)


def locate_frames(tables: Sequence[Sequence[Frame]], wanted: Collection[bytes]) -> list[list[Frame]]:
    """Return, for each pack, the frames to take from it, in pack order; the first pack with a chunk provides it.

    Raises:
        IncompletePacksError: A chunk is in no pack.
    """
    left = set(wanted)
    located: list[list[Frame]] = []
    for table in tables:
        taken: list[Frame] = []
        for frame in table:
            if frame.chunk_id in left:
                left.remove(frame.chunk_id)
                taken.append(frame)
        located.append(taken)
    if left:
        raise IncompletePacksError(identity=min(left))
    return located


def coalesce(
    frames: Sequence[Sequence[Frame]],
    *,
    budget_bytes: int,
    request_cost_bytes: int = REQUEST_COST_BYTES,
    max_requests: int = MAX_REQUESTS,
) -> tuple[PackRange, ...]:
    """Return ranges that cover the frames taken from each pack, ascending in each.

    Neighbouring frames share a range. Gaps are fetched too, smallest first, while they cost less than a request, or
    there are too many requests and the bigger gaps are a small part of what is wanted; never so that all ranges
    together exceed `budget_bytes`.
    """
    runs = [(pack, run) for pack, taken in enumerate(frames) for run in _runs(taken)]
    total = sum(run[-1].end - run[0].offset for _pack, run in runs)
    gaps = sorted(
        (following[0].offset - run[-1].end, number)
        for number, ((pack, run), (next_pack, following)) in enumerate(pairwise(runs))
        if pack == next_pack
    )
    requests = len(runs)
    bridged: set[int] = set()
    allowance = total * _GAPS_SHARE
    for gap, number in gaps:
        if total + gap > budget_bytes:
            break
        if gap >= request_cost_bytes:
            allowance -= gap
            if requests <= max_requests or allowance < 0:
                break
        bridged.add(number)
        total += gap
        requests -= 1
    ranges: list[PackRange] = []
    for number, (pack, run) in enumerate(runs):
        if number - 1 in bridged:
            before = ranges.pop()
            ranges.append(PackRange(pack, before.start, run[-1].end, (*before.frames, *run)))
        else:
            ranges.append(PackRange(pack, run[0].offset, run[-1].end, tuple(run)))
    return tuple(ranges)


def _runs(frames: Sequence[Frame]) -> Iterator[list[Frame]]:
    run: list[Frame] = []
    for frame in frames:
        if run and run[-1].end != frame.offset:
            yield run
            run = []
        run.append(frame)
    if run:
        yield run
