"""A chunk store is written out of packs and read back with distrust."""

import random
from pathlib import Path

import pytest

from overhaul.content.castr import (
    CastrStore,
    ChunkDamagedError,
    ChunkMissingError,
    PackDamagedError,
    chunk_file_name,
    extract_image,
    write_castr,
)
from overhaul.content.index import CHUNK_SIZE_MAX, Chunk, Index, chunk_id
from overhaul.content.ingest import Ingested, ingest_image
from overhaul.content.zstd import compress_frame
from overhaul.progress import Silence


def _published(directory: Path) -> tuple[bytes, Ingested]:
    """Write an image, its pack and its store below `directory`."""
    noise = random.Random(3).randbytes(900_000)
    data = noise + bytes(3 * CHUNK_SIZE_MAX) + noise[:500_000] + b"end"
    (directory / "image").write_bytes(data)
    made = ingest_image(directory / "image", directory / "pack", known=frozenset(), workers=2, progress=Silence())
    with (directory / "pack").open("rb") as pack:
        assert write_castr(pack, made.frames, directory / "store.castr") == len(made.frames)
    return data, made


def _files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_store_holds_one_file_for_each_chunk_and_nothing_else(tmp_path: Path) -> None:
    _data, made = _published(tmp_path)

    assert _files(tmp_path / "store.castr") == {chunk_file_name(chunk.id) for chunk in made.index}


def test_a_chunk_file_is_the_frame_of_the_pack(tmp_path: Path) -> None:
    _data, made = _published(tmp_path)
    pack = (tmp_path / "pack").read_bytes()

    for frame in made.frames:
        path = tmp_path / "store.castr" / chunk_file_name(frame.chunk_id)
        assert path.read_bytes() == pack[frame.offset : frame.end]


def test_an_image_comes_out_of_the_store_as_it_went_in(tmp_path: Path) -> None:
    data, made = _published(tmp_path)
    extract_image(made.index, CastrStore(tmp_path / "store.castr"), tmp_path / "out", progress=Silence())

    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_blocks * 512 < len(data)


def test_an_image_that_ends_in_zeros_keeps_its_size(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"begin" + bytes(5 * CHUNK_SIZE_MAX))
    made = ingest_image(tmp_path / "image", tmp_path / "pack", known=frozenset(), workers=1, progress=Silence())
    with (tmp_path / "pack").open("rb") as pack:
        write_castr(pack, made.frames, tmp_path / "store.castr")
    extract_image(made.index, CastrStore(tmp_path / "store.castr"), tmp_path / "out", progress=Silence())

    assert (tmp_path / "out").read_bytes() == (tmp_path / "image").read_bytes()


def test_writing_a_store_again_adds_only_what_it_lacks(tmp_path: Path) -> None:
    _data, made = _published(tmp_path)
    lost = tmp_path / "store.castr" / chunk_file_name(made.frames[1].chunk_id)
    lost.unlink()
    with (tmp_path / "pack").open("rb") as pack:
        assert write_castr(pack, made.frames, tmp_path / "store.castr") == 1
    assert lost.exists()


def test_a_store_knows_what_it_holds(tmp_path: Path) -> None:
    _data, made = _published(tmp_path)
    store = CastrStore(tmp_path / "store.castr")

    assert made.index.chunks[0].id in store
    assert bytes(32) not in store


@pytest.mark.parametrize("position", [0, 5_000, -1])
def test_a_damaged_pack_puts_nothing_under_the_name_of_the_chunk(tmp_path: Path, position: int) -> None:
    _data, made = _published(tmp_path)
    damaged = bytearray((tmp_path / "pack").read_bytes())
    damaged[position] ^= 1
    (tmp_path / "pack").write_bytes(damaged)
    with (tmp_path / "pack").open("rb") as pack, pytest.raises(PackDamagedError, match="is damaged between"):
        write_castr(pack, made.frames, tmp_path / "other.castr")

    assert _files(tmp_path / "other.castr") == set()


def test_a_pack_that_ends_early_is_refused(tmp_path: Path) -> None:
    _data, made = _published(tmp_path)
    whole = (tmp_path / "pack").read_bytes()
    (tmp_path / "pack").write_bytes(whole[:-1])

    with (tmp_path / "pack").open("rb") as pack, pytest.raises(PackDamagedError):
        write_castr(pack, made.frames, tmp_path / "other.castr")


def test_a_missing_chunk_is_named_and_the_target_stays_as_it_was(tmp_path: Path) -> None:
    _data, made = _published(tmp_path)
    lost = made.index.chunks[-1].id
    (tmp_path / "store.castr" / chunk_file_name(lost)).unlink()
    (tmp_path / "out").write_bytes(b"precious")

    with pytest.raises(ChunkMissingError, match=lost.hex()):
        extract_image(made.index, CastrStore(tmp_path / "store.castr"), tmp_path / "out", progress=Silence())
    assert (tmp_path / "out").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_a_chunk_file_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    data = b"some bytes that make one small chunk, some bytes that make one small chunk"
    chunk = Chunk(0, len(data), chunk_id(data))
    path = tmp_path / chunk_file_name(chunk.id)
    path.parent.mkdir()
    frame = compress_frame(data, level=3)
    store = CastrStore(tmp_path)
    refused = 0
    for bit in range(len(frame) * 8):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            # A few bits of a frame mean nothing; then the chunk must come out whole.
            assert store.read(chunk) == data
        except ChunkDamagedError:
            refused += 1

    assert refused > len(frame) * 8 * 0.9


def test_a_chunk_file_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    data = b"some bytes that make one small chunk, some bytes that make one small chunk"
    chunk = Chunk(0, len(data), chunk_id(data))
    path = tmp_path / chunk_file_name(chunk.id)
    path.parent.mkdir()
    frame = compress_frame(data, level=3)
    for length in range(len(frame)):
        path.write_bytes(frame[:length])
        with pytest.raises(ChunkDamagedError, match="does not hold the chunk"):
            CastrStore(tmp_path).read(chunk)


def test_a_chunk_file_that_holds_another_chunk_is_refused(tmp_path: Path) -> None:
    chunk = Chunk(0, 3, chunk_id(b"one"))
    path = tmp_path / chunk_file_name(chunk.id)
    path.parent.mkdir()
    path.write_bytes(compress_frame(b"two", level=3))

    with pytest.raises(ChunkDamagedError):
        CastrStore(tmp_path).read(chunk)


def test_an_index_that_gives_one_chunk_two_sizes_is_refused(tmp_path: Path) -> None:
    identity = chunk_id(b"one")
    path = tmp_path / "store" / chunk_file_name(identity)
    path.parent.mkdir(parents=True)
    path.write_bytes(compress_frame(b"one", level=3))
    index = Index([Chunk(0, 3, identity), Chunk(3, 2, identity)])

    with pytest.raises(ChunkDamagedError):
        extract_image(index, CastrStore(tmp_path / "store"), tmp_path / "out", progress=Silence())
