"""From an image to its index and its pack: cut, hashed and compressed on all cores in one reading.

One thread cuts the image; others name each chunk by its digest and compress it; the results are written in the
order of the image. So one image, one set of known chunks and one level always make the same pack, whatever the
number of workers, and memory holds a few segments of the image however large that is.

The pack is scratch until whoever asked for it moves it to its final, content-derived name: it is written
under the given name at once, without syncing, and removed when anything goes wrong.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from overhaul.content.chunker import ZERO_CHUNK, Piece, cut_image
from overhaul.content.frames import Frame
from overhaul.content.index import Chunk, Index, chunk_id
from overhaul.content.mending import BLOCK_SIZE, Mends, MendsWriter, WrittenMends, make_mends
from overhaul.content.zstd import compress_frame
from overhaul.progress import Progress

#: A worker takes so many bytes at a time: enough to make handing them over cheap, few enough to stay in the cache.
_BATCH_SIZE = 1024 * 1024
_BATCH_PIECES = 256
#: Batches for each worker that may be waiting or done and not yet written.
_BATCHES_AHEAD = 3


@dataclass(frozen=True)
class Ingested:
    """What an image turned into."""

    index: Index
    #: The frames in the pack, in pack order: chunks of the image that were not known, each once.
    frames: list[Frame]
    pack_size: int
    pack_sha256: str
    #: The file that mends chunks of the pack, when one was asked for.
    mends: WrittenMends | None = None


class _Named(NamedTuple):
    """A chunk with its id and, unless it is known or in the pack already, its frame and the frame's digest."""

    chunk: Chunk
    frame: bytes | None
    frame_sha256: bytes
    mends: Mends | None


def ingest_image(
    image: Path,
    pack: Path,
    *,
    known: Container[bytes],
    workers: int,
    level: int = 3,
    sums: int = 0,
    mends: Path | None = None,
    progress: Progress,
) -> Ingested:
    """Write the chunks of `image` that are not in `known` to `pack` and return index and frames.

    `known` holds chunk ids and is asked from several threads at once. What mends up to `sums` blocks of each chunk
    is written to `mends`.

    Raises:
        EmptyImageError: The image has no byte.
        ImageChangedError: It was written to while it was read.
    """
    progress.begin(f"Reading {image.name}", image.stat().st_size or None)
    try:
        with pack.open("wb") as stream, MendsWriter(pack.parent, sums=0 if mends is None else sums) as writer:
            ingested = _ingest(image, stream, writer, known=known, workers=workers, level=level, progress=progress)
            if mends is None or not sums or not ingested.frames:
                return ingested
            return replace(ingested, mends=writer.finish(mends))
    except BaseException:
        pack.unlink(missing_ok=True)
        raise
    finally:
        progress.end()


def _ingest(
    image: Path,
    stream: BinaryIO,
    mends_writer: MendsWriter,
    *,
    known: Container[bytes],
    workers: int,
    level: int,
    progress: Progress,
) -> Ingested:
    packed: set[bytes] = set()
    zero_id = chunk_id(ZERO_CHUNK)

    def name(batch: list[Piece]) -> list[_Named]:
        # `packed` grows meanwhile, but only by chunks of earlier batches: missing one costs work, not sameness.
        return [
            _name(piece, known=known, packed=packed, level=level, sums=mends_writer.sums, zero_id=zero_id)
            for piece in batch
        ]

    chunks: list[Chunk] = []
    frames: list[Frame] = []
    digest = hashlib.sha256()
    pack_size = 0
    with ThreadPoolExecutor(workers, thread_name_prefix="ingest") as pool:
        for named in _in_order(pool, name, _batches(cut_image(image)), ahead=workers * _BATCHES_AHEAD):
            fresh: list[bytes] = []
            for chunk, frame, frame_sha256, mends in named:
                chunks.append(chunk)
                if frame is not None and chunk.id not in packed:
                    packed.add(chunk.id)
                    frames.append(Frame(chunk.id, frame_sha256, pack_size, len(frame), chunk.size))
                    pack_size += len(frame)
                    fresh.append(frame)
                    if mends is not None:
                        mends_writer.add(mends)
            # All at once: each call gives the interpreter's lock away and has to wait for it again.
            joined = b"".join(fresh)
            digest.update(joined)
            stream.write(joined)
            progress.advance(named[-1].chunk.end - named[0].chunk.offset)
    return Ingested(Index(chunks), frames, pack_size, digest.hexdigest())


def _name(
    piece: Piece, *, known: Container[bytes], packed: Container[bytes], level: int, sums: int, zero_id: bytes
) -> _Named:
    identity = zero_id if piece.data is ZERO_CHUNK else chunk_id(piece.data)
    chunk = Chunk(piece.offset, len(piece.data), identity)
    if identity in packed or identity in known:
        return _Named(chunk, None, b"", None)
    frame = compress_frame(piece.data, level=level)
    mends = None
    if sums and identity != zero_id:
        mends = make_mends(bytes(piece.data), chunk_id=identity, phase=piece.offset % BLOCK_SIZE, sums=sums)
    return _Named(chunk, frame, hashlib.sha256(frame).digest(), mends)


def _batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += 0 if piece.data is ZERO_CHUNK else len(piece.data)
        if size >= _BATCH_SIZE or len(batch) >= _BATCH_PIECES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[list[Piece]], list[_Named]],
    batches: Iterable[list[Piece]],
    *,
    ahead: int,
) -> Iterator[list[_Named]]:
    """Yield the results of `work` in the order of `batches`, with at most `ahead` batches under way."""
    waiting: deque[Future[list[_Named]]] = deque()
    try:
        for batch in batches:
            waiting.append(pool.submit(work, batch))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
