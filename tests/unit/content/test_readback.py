"""Which chunks of a slot are right."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.releases import some_image

from overhaul.content.chunker import chunk_file
from overhaul.content.index import CHUNK_SIZE_MAX, Chunk, Index, chunk_id
from overhaul.content.readback import find_wrong, is_zero_chunk
from overhaul.content.target import ImageReader, MediumReader
from overhaul.progress import Silence


def _wrong(reader: ImageReader, index: Index, numbers: list[int] | None = None) -> list[int]:
    listed = list(range(len(index))) if numbers is None else numbers
    return find_wrong(reader, index.chunks, listed, threads=2, progress=Silence())


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "image"
    # The odd length also ends the last window between two blocks of the medium.
    path.write_bytes(some_image(7) + b"tail")
    return path


@pytest.fixture(scope="module")
def index(image: Path) -> Index:
    return chunk_file(image)


@pytest.fixture(params=[ImageReader, MediumReader])
def kind(request: pytest.FixtureRequest) -> type[ImageReader]:
    return request.param  # type: ignore[no-any-return]  # pytest's parameters have no type


def test_a_whole_image_is_right(image: Path, index: Index, kind: type[ImageReader]) -> None:
    with kind(image) as reader:
        assert _wrong(reader, index) == []
        assert _wrong(reader, index, [1, 2, 7, len(index) - 1]) == []


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.sets(st.floats(0, 0.9999), max_size=6))
def test_exactly_the_chunks_with_a_flipped_bit_are_wrong(
    image: Path, index: Index, tmp_path: Path, places: set[float]
) -> None:
    data = bytearray(image.read_bytes())
    harmed = {int(place * len(data)) for place in places}
    for offset in harmed:
        data[offset] ^= 4
    slot = tmp_path / "slot"
    slot.write_bytes(data)
    expected = [n for n, chunk in enumerate(index) if any(chunk.offset <= at < chunk.end for at in harmed)]
    with MediumReader(slot) as reader:
        assert _wrong(reader, index) == expected


def test_of_an_empty_slot_only_the_zeros_are_right_and_nothing_is_read(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = tmp_path / "slot"
    with slot.open("wb") as stream:
        stream.truncate(index.size)
    monkeypatch.delattr(os, "preadv")
    with ImageReader(slot) as reader:
        wrong = _wrong(reader, index)
    assert wrong == [number for number, chunk in enumerate(index) if not is_zero_chunk(chunk)]
    assert 0 < len(wrong) < len(index)


def test_a_last_chunk_of_zeros_is_right_in_a_hole(tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    with slot.open("wb") as stream:
        stream.truncate(CHUNK_SIZE_MAX + 5000)
    index = chunk_file(slot)
    with ImageReader(slot) as reader:
        assert _wrong(reader, index) == []


def test_zeros_in_place_of_data_are_wrong_and_the_other_way_round(tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    data = random.Random(1).randbytes(CHUNK_SIZE_MAX)
    slot.write_bytes(bytes(CHUNK_SIZE_MAX) + data)
    zero, other = chunk_id(bytes(CHUNK_SIZE_MAX)), chunk_id(data)
    index = Index([Chunk(0, CHUNK_SIZE_MAX, other), Chunk(CHUNK_SIZE_MAX, CHUNK_SIZE_MAX, zero)])
    with ImageReader(slot) as reader:
        assert _wrong(reader, index) == [0, 1]


def test_a_slot_that_ends_early_has_its_last_chunks_wrong(image: Path, index: Index, tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    slot.write_bytes(image.read_bytes()[: index.chunks[5].offset + 10])
    with ImageReader(slot) as reader:
        assert _wrong(reader, index) == list(range(5, len(index)))


def test_an_unreadable_block_makes_only_its_chunk_wrong(
    image: Path, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = index.chunks[3].offset + index.chunks[3].size // 2
    real = os.preadv

    def failing(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if offset <= bad < offset + len(buffers[0]):
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    with ImageReader(image) as reader:
        assert _wrong(reader, index) == [3]
