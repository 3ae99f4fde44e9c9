"""Ranges of packs that cover what is wanted, and little besides."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.content.frame_tables import frame_table, identity

from overhaul.content.frames import Frame
from overhaul.content.packranges import coalesce, locate_frames

_PACKS = st.lists(
    st.lists(st.tuples(st.booleans(), st.integers(1, 50_000)), min_size=1, max_size=120), min_size=1, max_size=3
)


@given(packs=_PACKS, request_cost=st.integers(0, 40_000), requests=st.integers(1, 60), slack=st.floats(0, 1.5))
def test_ranges_cover_what_is_wanted_within_the_budget(
    packs: list[list[tuple[bool, int]]], request_cost: int, requests: int, slack: float
) -> None:
    taken: list[list[Frame]] = []
    for number, sizes in enumerate(packs):
        offset = 0
        frames: list[Frame] = []
        for place, (wanted, size) in enumerate(sizes):
            if wanted:
                frames.append(Frame(identity(number * 1000 + place), bytes(32), offset, size, 60_000))
            offset += size
        taken.append(frames)
    needed = sum(frame.size for frames in taken for frame in frames)
    budget = int(needed * (1 + slack))
    ranges = coalesce(taken, budget_bytes=budget, request_cost_bytes=request_cost, max_requests=requests)
    for number, frames in enumerate(taken):
        mine = [piece for piece in ranges if piece.pack == number]
        assert [frame for piece in mine for frame in piece.frames] == frames
        assert all(before.end < after.start for before, after in pairwise(mine))
        assert all(piece.start == piece.frames[0].offset and piece.end == piece.frames[-1].end for piece in mine)
    total = sum(piece.size for piece in ranges)
    assert total <= budget
    gaps = [after.start - before.end for before, after in pairwise(ranges) if before.pack == after.pack]
    # What is left unbridged does not fit, or is too dear and need not be or is too much of what is wanted.
    if gaps:
        cheapest = min(gaps)
        big_part = total + cheapest - needed > needed * 0.1
        assert total + cheapest > budget or (cheapest >= request_cost and (len(ranges) <= requests or big_part))


def test_the_first_pack_with_a_chunk_provides_it() -> None:
    tables = [frame_table([1, 2]), frame_table([2, 3])]
    located = locate_frames(tables, {identity(2), identity(3)})
    assert [[frame.chunk_id for frame in frames] for frames in located] == [[identity(2)], [identity(3)]]


def test_scattered_damage_is_mended_by_many_requests_and_not_by_the_whole_pack() -> None:
    numbers = range(0, 1200, 5)
    table = frame_table(range(1200))
    ranges = coalesce([[table[number] for number in numbers]], budget_bytes=1 << 40)
    wanted = sum(table[number].size for number in numbers)
    assert sum(piece.size for piece in ranges) <= 1.1 * wanted
    assert len(ranges) > 48
