"""The real casync reads what we publish, and we read what it made."""

import random
import subprocess
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.content.castr import CastrStore, chunk_file_name, extract_image, write_castr
from overhaul.content.chunker import chunk_file
from overhaul.content.index import CHUNK_SIZE_MAX, read_index, write_index
from overhaul.content.ingest import ingest_image
from overhaul.content.zstd import FRAME_MAGIC
from overhaul.progress import Silence


def _casync(*arguments: str | Path) -> None:
    subprocess.run([need("casync"), *map(str, arguments)], check=True, capture_output=True)


def _make(image: Path, index: Path, store: Path) -> None:
    _casync("make", f"--store={store}", index, image)


def _publish(image: Path, index: Path, store: Path) -> None:
    pack = image.with_name("pack")
    made = ingest_image(image, pack, known=frozenset(), workers=2, progress=Silence())
    index.write_bytes(write_index(made.index))
    with pack.open("rb") as stream:
        write_castr(stream, made.frames, store)


def _mixed(size: int) -> bytes:
    chance = random.Random(size)
    words = [chance.randbytes(9) for _ in range(300)]
    parts = [
        chance.randbytes(900_000),
        bytes(4 * CHUNK_SIZE_MAX + 5),
        b"".join(chance.choices(words, k=150_000)),
        bytes(40_000),
        chance.randbytes(70_000),
    ]
    return (b"".join(parts) * (size // 1_000_000 + 1))[:size]


@pytest.fixture(params=[1, 16_383, 16_384, 262_144, 262_145, 9_000_001])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return an image that is a multiple of nothing, or of exactly the bounds."""
    path = tmp_path / "image"
    path.write_bytes(_mixed(request.param))
    return path


def test_the_index_is_byte_for_byte_the_one_casync_writes(image: Path, tmp_path: Path) -> None:
    _make(image, tmp_path / "theirs.caibx", tmp_path / "theirs.castr")

    assert (tmp_path / "theirs.caibx").read_bytes() == write_index(chunk_file(image))


def test_both_stores_hold_the_same_chunks(image: Path, tmp_path: Path) -> None:
    _make(image, tmp_path / "theirs.caibx", tmp_path / "theirs.castr")
    _publish(image, tmp_path / "ours.caibx", tmp_path / "ours.castr")
    theirs = {path.relative_to(tmp_path / "theirs.castr") for path in (tmp_path / "theirs.castr").rglob("*.cacnk")}
    ours = {path.relative_to(tmp_path / "ours.castr") for path in (tmp_path / "ours.castr").rglob("*.cacnk")}

    assert theirs == ours


def test_casync_extracts_what_we_publish(image: Path, tmp_path: Path) -> None:
    _publish(image, tmp_path / "ours.caibx", tmp_path / "ours.castr")
    _casync("extract", f"--store={tmp_path / 'ours.castr'}", tmp_path / "ours.caibx", tmp_path / "out")

    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_we_extract_what_casync_made(image: Path, tmp_path: Path) -> None:
    _make(image, tmp_path / "theirs.caibx", tmp_path / "theirs.castr")
    index = read_index((tmp_path / "theirs.caibx").read_bytes())
    extract_image(index, CastrStore(tmp_path / "theirs.castr"), tmp_path / "out", progress=Silence())

    assert (tmp_path / "out").read_bytes() == image.read_bytes()


def test_a_chunk_file_of_casync_is_one_zstd_frame_like_ours(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(_mixed(3_000_000))
    _make(tmp_path / "image", tmp_path / "theirs.caibx", tmp_path / "theirs.castr")
    for chunk in read_index((tmp_path / "theirs.caibx").read_bytes()):
        assert (tmp_path / "theirs.castr" / chunk_file_name(chunk.id)).read_bytes().startswith(FRAME_MAGIC)


def test_casync_extracts_a_sparse_image_we_published(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as stream:
        stream.write(_mixed(700_000))
        stream.seek(20_000_000)
        stream.write(_mixed(700_001))
        stream.truncate(33_333_333)
    _publish(tmp_path / "image", tmp_path / "ours.caibx", tmp_path / "ours.castr")
    _make(tmp_path / "image", tmp_path / "theirs.caibx", tmp_path / "theirs.castr")
    _casync("extract", f"--store={tmp_path / 'ours.castr'}", tmp_path / "ours.caibx", tmp_path / "out")

    assert (tmp_path / "ours.caibx").read_bytes() == (tmp_path / "theirs.caibx").read_bytes()
    assert (tmp_path / "out").read_bytes() == (tmp_path / "image").read_bytes()
