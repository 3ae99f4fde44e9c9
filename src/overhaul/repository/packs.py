"""Chunks read out of the published packs, each checked before and after it is decoded."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from overhaul.content.frames import Frame, read_frames
from overhaul.content.index import Chunk, Index, chunk_id, read_index
from overhaul.content.zstd import decompress_frame
from overhaul.errors import TrustError
from overhaul.progress import Progress
from overhaul.release.record import FileRef, ImageRecord, PackRef
from overhaul.repository.layout import public_key
from overhaul.repository.storage import Storage

#: Frames that follow one another are read at once, up to so many bytes.
_READ_BYTES = 8 << 20


class WrongContentError(TrustError):
    """A content file that is not what signed data says of it."""

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} is damaged: {reason}. Restore it from a copy, or publish the release again.")


class Place(NamedTuple):
    """Where a chunk lies."""

    pack: FileRef
    frame: Frame


class Piece(NamedTuple):
    """A chunk and its bytes."""

    chunk: Chunk
    data: bytes


def read_checked(storage: Storage, ref: FileRef) -> bytes:
    """Return the bytes of a small content file; raise `WrongContentError` when they are not the signed ones."""
    data = storage.read(public_key(ref.path))
    if len(data) != ref.size or hashlib.sha256(data).hexdigest() != ref.sha256:
        raise WrongContentError(path=ref.path, reason="its SHA-256 is not the signed one")
    return data


def read_frames_of(storage: Storage, pack: PackRef) -> list[Frame]:
    """Return the checked frame table of a pack."""
    return read_frames(read_checked(storage, pack.frames))


def places_in(storage: Storage, packs: Iterable[PackRef]) -> dict[bytes, Place]:
    """Return where each chunk lies in `packs`; the first pack that has a chunk is taken."""
    places: dict[bytes, Place] = {}
    for pack in packs:
        for frame in read_frames_of(storage, pack):
            places.setdefault(frame.chunk_id, Place(pack.pack, frame))
    return places


def decode_checked(place: Place, data: bytes) -> bytes:
    """Return the chunk in the frame `data`; raise `WrongContentError` unless frame and chunk are the right ones."""
    if hashlib.sha256(data).digest() != place.frame.sha256:
        raise WrongContentError(path=place.pack.path, reason=f"the frame at {place.frame.offset} has another digest")
    chunk = decompress_frame(data, size=place.frame.chunk_size)
    if chunk_id(chunk) != place.frame.chunk_id:
        raise WrongContentError(path=place.pack.path, reason=f"the frame at {place.frame.offset} holds another chunk")
    return chunk


def restore_image(storage: Storage, image: ImageRecord, target: Path, *, progress: Progress) -> None:
    """Write the published `image` to the new file `target`; what is zero stays a hole."""
    index = read_index(read_checked(storage, image.index))
    places = places_in(storage, image.packs)
    progress.begin(f"Restoring {target.name}", index.size)
    try:
        with target.open("wb") as stream:
            for piece in _pieces(storage, index, places, path=image.index.path):
                if piece.data.strip(b"\0"):
                    stream.seek(piece.chunk.offset)
                    stream.write(piece.data)
                progress.advance(piece.chunk.size)
            stream.truncate(index.size)
    finally:
        progress.end()


def _pieces(storage: Storage, index: Index, places: dict[bytes, Place], *, path: str) -> Iterator[Piece]:
    for run in _runs(index, places, path=path):
        first, last = run[0][1], run[-1][1]
        data = storage.read(public_key(first.pack.path), start=first.frame.offset, end=last.frame.end)
        for chunk, place in run:
            begin = place.frame.offset - first.frame.offset
            yield Piece(chunk, decode_checked(place, data[begin : begin + place.frame.size]))


def _runs(index: Index, places: dict[bytes, Place], *, path: str) -> Iterator[Sequence[tuple[Chunk, Place]]]:
    """Yield runs of chunks whose frames follow one another in one pack."""
    run: list[tuple[Chunk, Place]] = []
    for chunk in index:
        place = places.get(chunk.id)
        if place is None:
            raise WrongContentError(path=path, reason=f"no pack holds the chunk at {chunk.offset}")
        if run:
            before = run[-1][1]
            follows = before.pack.path == place.pack.path and before.frame.end == place.frame.offset
            if not follows or place.frame.end - run[0][1].frame.offset > _READ_BYTES:
                yield run
                run = []
        run.append((chunk, place))
    if run:
        yield run


def file_digest(storage: Storage, ref: FileRef) -> str:
    """Return the SHA-256 of a published file of any size."""
    digest = hashlib.sha256()
    for offset in range(0, ref.size + 1, _READ_BYTES):
        # One byte more than signed is asked for at the end, so that a longer file has another digest.
        end = min(offset + _READ_BYTES, ref.size + 1)
        digest.update(storage.read(public_key(ref.path), start=offset, end=end))
    return digest.hexdigest()
