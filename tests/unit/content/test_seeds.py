"""Seeds are believed nothing."""

from pathlib import Path

import pytest
from tests.releases import some_image

from overhaul.content.chunker import chunk_file
from overhaul.content.seeds import WINDOW_BYTES, Seeds, plan_windows
from overhaul.content.target import ImageReader


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(some_image(3, size=9_000_000))
    return path


def test_windows_are_contiguous_and_bounded(image: Path) -> None:
    seeds = Seeds()
    index = chunk_file(image)
    with ImageReader(image) as reader:
        seeds.add(reader, index)
        windows = plan_windows(index, seeds, choice=0)
    assert all(window.size <= WINDOW_BYTES for window in windows)
    assert [chunk for window in windows for chunk in window.chunks] == list(index)
    assert len(windows) < len(index) / 4


def test_a_good_seed_gives_everything_in_few_runs(image: Path) -> None:
    seeds = Seeds()
    index = chunk_file(image)
    with ImageReader(image) as reader:
        seeds.add(reader, index)
        for window in plan_windows(index, seeds, choice=0):
            ((chunks, data),) = window.good_runs()
            assert tuple(chunks) == window.chunks
            assert data == image.read_bytes()[chunks[0].offset : chunks[-1].end]


def test_a_chunk_that_is_not_what_the_index_said_is_left_out(image: Path, tmp_path: Path) -> None:
    index = chunk_file(image)
    harmed = tmp_path / "harmed"
    data = bytearray(image.read_bytes())
    data[index.chunks[2].offset] ^= 1
    harmed.write_bytes(data)
    seeds = Seeds()
    with ImageReader(harmed) as reader:
        seeds.add(reader, index)
        (window, *_rest) = plan_windows(index, seeds, choice=0)
        runs = [chunks for chunks, _data in window.good_runs()]
    assert [chunk for run in runs for chunk in run] == [c for c in window.chunks if c != index.chunks[2]]
    assert runs[0] == list(index.chunks[:2])


def test_a_second_seed_is_the_second_choice(image: Path, tmp_path: Path) -> None:
    index = chunk_file(image)
    copy = tmp_path / "copy"
    copy.write_bytes(image.read_bytes())
    seeds = Seeds()
    with ImageReader(image) as first, ImageReader(copy) as second:
        seeds.add(first, index)
        seeds.add(second, index)
        assert {window.place.reader for window in plan_windows(index, seeds, choice=0)} == {first}
        assert {window.place.reader for window in plan_windows(index, seeds, choice=1)} == {second}
        assert plan_windows(index, seeds, choice=2) == []


def test_chunks_behind_the_end_of_a_seed_are_not_offered(image: Path, tmp_path: Path) -> None:
    index = chunk_file(image)
    short = tmp_path / "short"
    short.write_bytes(image.read_bytes()[: index.chunks[4].end - 1])
    seeds = Seeds()
    with ImageReader(short) as reader:
        seeds.add(reader, index)
        assert index.chunks[3].id in seeds
        assert index.chunks[4].id not in seeds
