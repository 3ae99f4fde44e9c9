"""Chunks of which a few blocks are wrong, mended from the others and from sums."""

import hashlib
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overhaul.content.index import CHUNK_SIZE_MAX, chunk_id
from overhaul.content.mending import (
    BLOCK_SIZE,
    MalformedMendsError,
    Mends,
    MendsWriter,
    make_mends,
    mend,
    mends_key,
    read_mends_header,
    wrong_blocks,
)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1 << 32),
    size=st.sampled_from([1, 100, BLOCK_SIZE, 16 * 1024, 65_537, CHUNK_SIZE_MAX]),
    phase=st.integers(0, BLOCK_SIZE - 1),
    sums=st.integers(1, 4),
)
def test_as_many_wrong_blocks_as_there_are_sums_are_mended(seed: int, size: int, phase: int, sums: int) -> None:
    chance = random.Random(seed)
    chunks = [chance.randbytes(size), chance.randbytes(chance.randrange(1, 20_000))]
    made = [make_mends(data, chunk_id=chunk_id(data), phase=phase, sums=sums) for data in chunks]
    file, header = _written(made, sums=sums)
    places = read_mends_header(header)
    for data in chunks:
        place = places[mends_key(chunk_id(data))]
        assert place.size == len(data)
        damaged = bytearray(data)
        hit = chance.sample(range(place.blocks), min(sums, place.blocks))
        for number in hit:
            begin = max(0, number * BLOCK_SIZE - phase)
            end = min(len(data), (number + 1) * BLOCK_SIZE - phase)
            for offset in (begin, chance.randrange(begin, end)):
                damaged[offset] ^= 1 + chance.randrange(255)
        first = file[place.offset : place.first_end]
        wrong = wrong_blocks(bytes(damaged), place, first)
        assert set(wrong) <= set(hit)
        found = [first[-BLOCK_SIZE:]]
        found += [file[slice(*place.sum_range(number))] for number in range(1, sums)]
        assert mend(bytes(damaged), place, wrong, found) == data


def _written(mends: list[Mends], *, sums: int) -> tuple[bytes, bytes]:
    """Return a mends file and its header."""
    with TemporaryDirectory() as directory, MendsWriter(Path(directory), sums=sums) as writer:
        for one in mends:
            writer.add(one)
        written = writer.finish(Path(directory) / "mends")
        file = (Path(directory) / "mends").read_bytes()
    assert (len(file), hashlib.sha256(file).hexdigest()) == (written.size, written.sha256)
    header = file[: written.header_size]
    assert hashlib.sha256(header).hexdigest() == written.header_sha256
    return file, header


def test_what_is_lied_to_comes_out_wrong_and_never_fails() -> None:
    data = random.Random(1).randbytes(50_000)
    made = make_mends(data, chunk_id=chunk_id(data), phase=7, sums=2)
    _file, header = _written([made], sums=2)
    place = read_mends_header(header)[mends_key(chunk_id(data))]
    lies = [bytes(BLOCK_SIZE), random.Random(2).randbytes(BLOCK_SIZE)]
    mended = mend(data, place, [3, 5], lies)
    assert len(mended) == len(data)
    assert chunk_id(mended) != chunk_id(data)


def test_a_header_cut_anywhere_or_of_impossible_numbers_is_refused() -> None:
    made = [make_mends(b"a" * 20_000, chunk_id=bytes([number]) * 32, phase=0, sums=2) for number in range(3)]
    _file, header = _written(made, sums=2)
    for size in range(len(header)):
        if (size - 9) % 14:
            with pytest.raises(MalformedMendsError):
                read_mends_header(header[:size])
    for place, value in ((0, 0), (8, 0), (8, 9), (17, 0xFF), (22, 0xFF)):
        lied = bytearray(header)
        lied[place] = value
        if place == 17:
            lied[17:21] = b"\xff" * 4
        with pytest.raises(MalformedMendsError):
            read_mends_header(bytes(lied))
