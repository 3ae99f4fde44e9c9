"""Groups of files that are packed again: their place in a header, and what a header may not ask for."""

import contextlib
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.format import DeltaHeader, read_header, write_header
from overhaul.content.delta.groups import MAX_WORK_SIZE, Group, Move, Packing, Unpacking, Write
from overhaul.content.delta.segments import Run, Segment, Stream, Unit

_IMAGE_SIZE = 1 << 20
_WORK_SIZE = 100_000


def _segment(*, output: tuple[Run, ...], window: tuple[Run, ...] = (), size: int = 10, offset: int = 0) -> Segment:
    unit = Unit("covers", output, window, (20,))
    return Segment(offset, size, b"s" * 32, b"o" * 32, (Stream("lzma2", size, 20),), (unit,))


def _group(**changes: object) -> Group:
    group = Group(
        work_size=_WORK_SIZE,
        unpackings=(Unpacking("gzip", (Run(4096, 77), Run(9000, 5)), Run(0, 900)),),
        moves=(Move(1000, _IMAGE_SIZE + 17, 30), Move(1030, _IMAGE_SIZE + _WORK_SIZE + 4096, 11)),
        segments=(_segment(output=(Run(2000, 64),), window=(Run(_IMAGE_SIZE + 5, 40),)),),
        packings=(Packing("gzip-9.0123abcd", Run(1000, 500), Run(5000, 333)),),
        writes=(Write(8192, 4990, 4096), Write(40960, 9086, 4096)),
        sha256=b"w" * 32,
        instead=(_segment(output=(Run(8192, 4096), Run(40960, 4096)), window=(Run(0, 4096),), size=500),),
    )
    return replace(group, **changes)  # type: ignore[arg-type]  # whatever a test varies


def _header(*groups: Group) -> DeltaHeader:
    return DeltaHeader(source_size=_IMAGE_SIZE, target_size=_IMAGE_SIZE, copies=[], segments=[], groups=groups)


def test_a_group_comes_back_as_it_was_written() -> None:
    header = _header(_group(), _group(writes=(Write(0, 5, 100),), instead=(_segment(output=(Run(0, 100),)),)))
    data = write_header(header)
    found = read_header(data)
    assert [segment.offset - len(data) for segment in found.all_segments] == [0, 10, 20, 520]
    first, second = found.groups
    assert first.unpackings == _group().unpackings
    assert first.moves == _group().moves
    assert first.packings == _group().packings
    assert first.writes == _group().writes
    assert first.segments[0].units == _group().segments[0].units
    assert second.instead[0].units[0].output == (Run(0, 100),)
    assert found.coders == ("covers", "lzma2")
    assert first.recoders == {"gzip-9.0123abcd"}


def test_what_a_group_writes_counts_as_written() -> None:
    header = read_header(write_header(_header(_group())))
    assert list(header.written) == [Run(8192, 4096), Run(40960, 4096)]


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (_group(work_size=MAX_WORK_SIZE + 1), "work area of"),
        (_group(unpackings=(Unpacking("gzip", (Run(_IMAGE_SIZE - 1, 2),), Run(0, 9)),)), "not inside its source"),
        (_group(unpackings=(Unpacking("gzip", (Run(0, 2),), Run(_WORK_SIZE - 8, 9)),)), "not inside its target"),
        (_group(moves=(Move(_WORK_SIZE - 1, 0, 2),)), "not inside its target"),
        (_group(moves=(Move(0, 2 * _IMAGE_SIZE + _WORK_SIZE - 1, 2),)), "not inside its source"),
        (_group(moves=(Move(0, 0, 0),)), "not inside its target"),
        (_group(packings=(Packing("x", Run(0, 1), Run(_WORK_SIZE, 1)),)), "not inside its target"),
        (_group(packings=(Packing("x", Run(_WORK_SIZE, 1), Run(0, 1)),)), "not inside its target"),
        (_group(segments=(_segment(output=(Run(_WORK_SIZE - 1, 2),)),)), "not inside its target"),
        (_group(writes=(Write(8192, _WORK_SIZE - 1, 8192),)), "not inside its source"),
        (_group(writes=(Write(8192, 0, 4096), Write(8192, 4096, 4096))), "same runs"),
        (_group(instead=(_segment(output=(Run(8192, 4096),)),)), "same runs"),
        (_group(instead=()), "same runs"),
    ],
)
def test_a_group_that_asks_for_the_impossible_is_refused(group: Group, reason: str) -> None:
    with pytest.raises(MalformedDeltaError, match=reason):
        read_header(write_header(_header(group)))


def test_two_groups_may_not_write_the_same_byte() -> None:
    with pytest.raises(MalformedDeltaError, match="twice"):
        read_header(write_header(_header(_group(), _group())))


@given(st.integers(0, 1 << 32))
def test_damaged_headers_are_refused_or_stay_within_bounds(seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(_PLAIN_BODY)
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    from overhaul.content.delta.format import _parse_body

    with contextlib.suppress(MalformedDeltaError):
        header = _parse_body(bytes(data[: chance.choice((len(data), chance.randrange(len(data))))]), 0)
        for group in header.groups:
            assert all(move.offset + move.size <= group.work_size for move in group.moves)
            assert all(write.target + write.size <= header.target_size for write in group.writes)


def _unpacked_body() -> bytes:
    from overhaul.content.delta.format import PREFIX_SIZE
    from overhaul.content.delta.segments import unpack_lzma2

    data = write_header(_header(_group()))
    return unpack_lzma2(data[PREFIX_SIZE:], int.from_bytes(data[12:16], "little"))


_PLAIN_BODY = _unpacked_body()
