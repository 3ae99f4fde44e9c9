"""Images that are read and never written: where their bytes come from, and what of them is needed at all."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.format import CopyRun, DeltaHeader
from overhaul.content.delta.groups import Group, Move, Write
from overhaul.content.delta.segments import Run, Segment, Unit
from overhaul.content.intermediate import Intermediate, NoRoomError, Spool, Taken, open_chain
from overhaul.content.mended_source import MendedSource
from overhaul.content.target import ImageReader, SlotTarget

_SIZE = 4000


def _segment(*output: Run, window: tuple[Run, ...] = ()) -> Segment:
    return Segment(0, 0, bytes(32), bytes(32), (), (Unit("covers", tuple(output), window, ()),))


def _header(copies: list[CopyRun], segments: list[Segment], *, size: int = _SIZE) -> DeltaHeader:
    return DeltaHeader(source_size=_SIZE, target_size=size, copies=copies, segments=segments)


@given(seed=st.integers(0, 1 << 32))
def test_it_reads_like_the_image_it_stands_for(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    chance = random.Random(seed)
    directory = tmp_path_factory.mktemp("images")
    old = chance.randbytes(_SIZE)
    (directory / "old").write_bytes(old)
    (directory / "store").touch()
    made = bytearray(_SIZE)
    copies, segments = [], []
    computed: dict[int, bytes] = {}
    position = 0
    while position < _SIZE:
        size = min(chance.randrange(1, 500), _SIZE - position)
        match chance.randrange(3):
            case 0:
                source = chance.randrange(_SIZE - size)
                copies.append(CopyRun(position, source, size))
                made[position : position + size] = old[source : source + size]
            case 1:
                computed[position] = chance.randbytes(size)
                segments.append(_segment(Run(position, size)))
                made[position : position + size] = computed[position]
            case _:
                pass
        position += size
    with (
        ImageReader(directory / "old") as reader,
        MendedSource(reader, None) as whole,
        SlotTarget(directory / "store", image_size=2 * _SIZE) as store,
    ):
        # In pieces, as zeros lie in a slot.
        room = [Run(begin, 90) for begin in range(0, 2 * _SIZE - 100, 100)]
        image = Intermediate(Taken.whole(_header(copies, segments)), whole, Spool(store, room))
        for place, data in computed.items():
            image.write(place, data)
        begin = chance.randrange(_SIZE)
        size = chance.randrange(_SIZE - begin)
        assert image.read(begin, size) == made[begin : begin + size]
        parts = b"".join(
            bytes(part.size) if part.reader is None else part.reader.read(part.offset, part.size)
            for part in image.parts(begin, size)
        )
        assert parts == made[begin : begin + size]


def test_only_what_the_next_delta_looks_at_is_taken() -> None:
    first = _header([CopyRun(0, 0, 100)], [_segment(Run(100, 50)), _segment(Run(200, 50)), _segment(Run(300, 50))])
    last = _header([CopyRun(0, 240, 100)], [_segment(Run(500, 10), window=(Run(149, 1),))])
    taken = Taken.whole(last).before(first)
    assert list(taken.segments) == [first.segments[0], first.segments[1], first.segments[2]]
    narrow = _header([CopyRun(0, 250, 50)], [_segment(Run(500, 10), window=(Run(150, 50),))])
    assert list(Taken.whole(narrow).before(first).segments) == []


def test_writing_what_is_not_computed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(_SIZE))
    (tmp_path / "store").touch()
    with (
        ImageReader(tmp_path / "old") as reader,
        MendedSource(reader, None) as whole,
        SlotTarget(tmp_path / "store", image_size=_SIZE) as store,
    ):
        taken = Taken.whole(_header([CopyRun(0, 0, 100)], [_segment(Run(200, 50))]))
        image = Intermediate(taken, whole, Spool(store, [Run(0, 60)]))
        for place in (0, 180, 240):
            with pytest.raises(MalformedDeltaError):
                image.write(place, b"x" * 40)
        with pytest.raises(NoRoomError):
            Intermediate(taken, whole, Spool(store, [Run(0, 30), Run(40, 19)]))


def test_deltas_that_do_not_fit_one_another_are_no_chain(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(bytes(_SIZE))
    (tmp_path / "store").touch()
    with (
        ImageReader(tmp_path / "old") as reader,
        MendedSource(reader, None) as whole,
        SlotTarget(tmp_path / "store", image_size=_SIZE) as store,
    ):
        spool = Spool(store, [Run(0, _SIZE)])
        with pytest.raises(MalformedDeltaError):
            open_chain([_header([], [], size=_SIZE + 1), _header([], [])], whole, spool)
        assert len(open_chain([_header([], [])] * 3, whole, spool)) == 2


def _group(*, target: int, takes: int) -> Group:
    """Return a group that writes 50 bytes at `target`, which it moves there from `takes` of the image itself."""
    return Group(
        work_size=50,
        unpackings=(),
        moves=(Move(0, _SIZE + 50 + takes, 50),),
        segments=(),
        packings=(),
        writes=(Write(target, 0, 50),),
        sha256=bytes(32),
    )


def test_a_group_takes_along_what_earlier_groups_write_for_it() -> None:
    groups = (_group(target=600, takes=0), _group(target=700, takes=100), _group(target=800, takes=600))
    first = replace(_header([CopyRun(0, 0, 100)], [_segment(Run(100, 50)), _segment(Run(200, 50))]), groups=groups)
    last = _header([CopyRun(0, 800, 50)], [])
    taken = Taken.whole(last).before(first)
    assert list(taken.groups) == [0, 2]
    assert list(taken.segments) == []
    other = Taken.whole(_header([CopyRun(0, 710, 5)], [])).before(first)
    assert (list(other.groups), list(other.segments)) == ([1], [first.segments[0]])
