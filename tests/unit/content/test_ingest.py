"""An image becomes the same index and pack every time, whoever works on it."""

import hashlib
import os
import random
from pathlib import Path

import pytest

from overhaul.content import ingest
from overhaul.content.chunker import EmptyImageError, chunk_file
from overhaul.content.frames import read_frames, write_frames
from overhaul.content.index import CHUNK_SIZE_MAX, chunk_id
from overhaul.content.ingest import Ingested, ingest_image
from overhaul.content.zstd import decompress_frame
from overhaul.progress import Silence


class _Recorder(Silence):
    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.advanced = 0
        self.ended = 0

    def begin(self, step: str, total: int | None, unit: str = "bytes") -> None:
        self.totals.append(total)

    def advance(self, amount: int) -> None:
        self.advanced += amount

    def end(self) -> None:
        self.ended += 1


def _image(path: Path, seed: int = 1) -> bytes:
    """Write an image with text, noise, a hole, written zeros and a repeated part."""
    noise = random.Random(seed).randbytes(700_001)
    text = b"".join(b"%d bottles on the wall\n" % number for number in range(60_000))
    data = text + bytes(3 * CHUNK_SIZE_MAX + 17) + noise + bytes(2_000_000) + text + noise + b"end"
    with path.open("wb") as stream:
        stream.write(text)
        stream.seek(3 * CHUNK_SIZE_MAX + 17, os.SEEK_CUR)
        stream.write(data[stream.tell() :])
    return data


def _ingest(image: Path, pack: Path, *, known: frozenset[bytes] = frozenset(), workers: int = 2) -> Ingested:
    return ingest_image(image, pack, known=known, workers=workers, progress=Silence())


def test_the_pack_holds_every_chunk_once_and_each_frame_decodes_to_it(tmp_path: Path) -> None:
    data = _image(tmp_path / "image")
    made = _ingest(tmp_path / "image", tmp_path / "pack")
    pack = (tmp_path / "pack").read_bytes()
    contents = {}
    for frame in made.frames:
        assert hashlib.sha256(pack[frame.offset : frame.end]).digest() == frame.sha256
        contents[frame.chunk_id] = decompress_frame(pack[frame.offset : frame.end], size=frame.chunk_size)

    assert data == b"".join(contents[chunk.id] for chunk in made.index)
    assert all(chunk_id(content) == identity for identity, content in contents.items())
    assert len(contents) == len(made.frames) < len(made.index)
    assert (len(pack), hashlib.sha256(pack).hexdigest()) == (made.pack_size, made.pack_sha256)
    assert made.frames == read_frames(write_frames(made.frames))
    assert made.frames[-1].end == made.pack_size


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, workers: int) -> None:
    _image(tmp_path / "image")
    one = _ingest(tmp_path / "image", tmp_path / "one", workers=1)
    many = _ingest(tmp_path / "image", tmp_path / "many", workers=workers)

    assert one == many
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()


def test_the_size_of_the_batches_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _image(tmp_path / "image")
    usual = _ingest(tmp_path / "image", tmp_path / "pack")
    monkeypatch.setattr(ingest, "_BATCH_PIECES", 1)

    assert usual == _ingest(tmp_path / "image", tmp_path / "pack")


def test_the_index_is_that_of_the_chunker(tmp_path: Path) -> None:
    _image(tmp_path / "image")

    assert chunk_file(tmp_path / "image") == _ingest(tmp_path / "image", tmp_path / "pack").index


def test_known_chunks_are_left_out_of_the_pack(tmp_path: Path) -> None:
    _image(tmp_path / "old", seed=1)
    _image(tmp_path / "new", seed=2)
    old = _ingest(tmp_path / "old", tmp_path / "old.pack")
    known = frozenset(chunk.id for chunk in old.index)
    new = _ingest(tmp_path / "new", tmp_path / "new.pack", known=known)

    assert {frame.chunk_id for frame in new.frames} == {chunk.id for chunk in new.index} - known
    assert 0 < len(new.frames) < len(old.frames)


def test_an_image_of_known_chunks_makes_an_empty_pack(tmp_path: Path) -> None:
    _image(tmp_path / "image")
    known = frozenset(chunk.id for chunk in chunk_file(tmp_path / "image"))
    made = _ingest(tmp_path / "image", tmp_path / "pack", known=known)

    assert (made.frames, made.pack_size, (tmp_path / "pack").read_bytes()) == ([], 0, b"")
    assert made.pack_sha256 == hashlib.sha256().hexdigest()


def test_an_empty_image_is_refused_and_leaves_no_pack(tmp_path: Path) -> None:
    (tmp_path / "image").touch()

    with pytest.raises(EmptyImageError, match="is empty"):
        _ingest(tmp_path / "image", tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_an_error_in_a_worker_arrives_and_leaves_no_pack(tmp_path: Path) -> None:
    class Broken:
        def __contains__(self, item: object) -> bool:
            raise OSError("the list of known chunks is gone")

    _image(tmp_path / "image")

    with pytest.raises(OSError, match="is gone"):
        ingest_image(tmp_path / "image", tmp_path / "pack", known=Broken(), workers=2, progress=Silence())
    assert not (tmp_path / "pack").exists()


def test_progress_adds_up_to_the_image(tmp_path: Path) -> None:
    data = _image(tmp_path / "image")
    progress = _Recorder()
    ingest_image(tmp_path / "image", tmp_path / "pack", known=frozenset(), workers=2, progress=progress)

    assert (progress.totals, progress.advanced, progress.ended) == ([len(data)], len(data), 1)
