"""A source read as it was before it was damaged."""

import random
from pathlib import Path

import pytest
from tests.small_disk import small_disk

from overhaul.content.delta.segments import Run
from overhaul.content.index import Chunk, Index, chunk_id
from overhaul.content.mended_source import MendedSource, damaged_chunks
from overhaul.content.mending import BLOCK_SIZE
from overhaul.content.target import ImageReader

_CHUNK = 30_000


@pytest.mark.parametrize("seed", range(5))
def test_it_reads_what_was_put_right_and_leaves_the_file_alone(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    right = chance.randbytes(10 * _CHUNK)
    damaged = bytearray(right)
    for _ in range(6):
        damaged[chance.randrange(len(damaged))] ^= 0x55
    path = tmp_path / "source"
    path.write_bytes(damaged)
    chunks = [Chunk(begin, _CHUNK, chunk_id(right[begin : begin + _CHUNK])) for begin in range(0, len(right), _CHUNK)]
    index = Index(chunks)
    whole = [Run(0, len(right))]
    with ImageReader(path) as reader, MendedSource(reader, tmp_path) as source:
        wrong = damaged_chunks(source, index, whole)
        assert wrong == [
            number
            for number, chunk in enumerate(chunks)
            if damaged[chunk.offset : chunk.end] != right[chunk.offset : chunk.end]
        ]
        for number in wrong:
            assert damaged_chunks(source, index, [Run(chunks[number].offset + 1, 1)]) == [number]
            source.write(chunks[number].offset, right[chunks[number].offset : chunks[number].end])
        assert damaged_chunks(source, index, whole) == []
        begin = chance.randrange(len(right) - 50_000)
        assert source.read(begin, 50_000) == right[begin : begin + 50_000]
    assert path.read_bytes() == damaged
    assert [one.name for one in tmp_path.iterdir()] == ["source"]


def test_blocks_without_room_stay_as_they_are(tmp_path: Path) -> None:
    right = random.Random(7).randbytes(40 * BLOCK_SIZE)
    path = tmp_path / "source"
    path.write_bytes(bytes(len(right)))
    with (
        small_disk(tmp_path / "small", "64k") as small,
        ImageReader(path) as reader,
        MendedSource(reader, small) as source,
    ):
        for begin in range(0, len(right), 5 * BLOCK_SIZE):
            source.write(begin, right[begin : begin + 5 * BLOCK_SIZE])
        read = source.read(0, len(right))
        assert source.read(0, len(right)) == read

    kept = [begin for begin in range(0, len(right), BLOCK_SIZE) if any(read[begin : begin + BLOCK_SIZE])]
    assert 0 < len(kept) < 40
    assert all(read[begin : begin + BLOCK_SIZE] == right[begin : begin + BLOCK_SIZE] for begin in kept)
