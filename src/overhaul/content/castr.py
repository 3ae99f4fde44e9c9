"""casync's chunk store (`.castr`): one file for each chunk, named by the chunk's id.

    STORE.castr/f2c1/f2c1...(64 hex digits of the id).cacnk     one zstd frame that decodes to the chunk

Such a file holds exactly the bytes of a pack's frame, so a store is written out of packs without compressing
anything again, and a server can answer requests for it from packs. Stores that casync made are read as well:
its frames do not state their size and ask for a larger window, which is allowed up to a bound.

Reading trusts nothing: what a file decodes to is a chunk only if its digest is the id.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from overhaul.content.chunker import ZERO_CHUNK
from overhaul.content.frames import Frame
from overhaul.content.index import Chunk, Index, chunk_id
from overhaul.content.zstd import MalformedFrameError, decompress_frame
from overhaul.errors import OperatorError, TrustError
from overhaul.host.files import replacing, sync_directory, sync_file_system
from overhaul.progress import Progress

#: casync's encoder asks for 2 MiB at its default level and for 8 MiB at the highest it takes for chunks.
_WINDOW_SIZE_MAX = 8 * 1024 * 1024
#: So many new chunk files are synced together.
_FILES_AT_ONCE = 1024


class ChunkMissingError(OperatorError):
    """The store lacks a chunk that an index names."""

    def __init__(self, identity: bytes, directory: Path) -> None:
        self.chunk_id = identity
        self.directory = directory
        super().__init__(f"The chunk {identity.hex()} is not in {directory}; write the store again from its packs.")


class ChunkDamagedError(TrustError):
    """A file of the store is not the chunk it is named after."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"The file {path} does not hold the chunk it is named after; remove it and fetch it again.")


class PackDamagedError(OperatorError):
    """A pack does not hold what its frame table says."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        super().__init__(
            f"The pack is damaged between its bytes {frame.offset} and {frame.end}; restore it or publish again."
        )


def chunk_file_name(identity: bytes) -> str:
    """Return the name of a chunk's file, relative to the store."""
    name = identity.hex()
    return f"{name[:4]}/{name}.cacnk"


class CastrStore:
    """Reads chunks out of a store directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __contains__(self, identity: object) -> bool:
        return isinstance(identity, bytes) and self._path(identity).is_file()

    def read(self, chunk: Chunk) -> bytes:
        """Return the bytes of `chunk`, verified against its id.

        Raises:
            ChunkMissingError: There is no file for it.
            ChunkDamagedError: The file does not hold it.
        """
        path = self._path(chunk.id)
        try:
            with path.open("rb") as stream:
                # zstd adds far less to what it cannot compress; a longer file is no frame of this chunk.
                frame = stream.read(chunk.size + chunk.size // 128 + 4096)
        except FileNotFoundError as error:
            raise ChunkMissingError(chunk.id, self._directory) from error
        try:
            data = decompress_frame(frame, size=chunk.size, window_size=_WINDOW_SIZE_MAX)
        except MalformedFrameError as error:
            raise ChunkDamagedError(path) from error
        if chunk_id(data) != chunk.id:
            raise ChunkDamagedError(path)
        return data

    def _path(self, identity: bytes) -> Path:
        return self._directory / chunk_file_name(identity)


def write_castr(pack: BinaryIO, frames: Iterable[Frame], directory: Path) -> int:
    """Write a chunk file for each of the `frames` of `pack` that `directory` lacks; return how many were written.

    A name never holds anything but a whole file, at no moment and after no power cut: files are written under
    temporary names, synced together, and then renamed.

    Raises:
        PackDamagedError: The pack ends early or holds other bytes than `frames` say.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = 0
    lacking = (frame for frame in frames if not (directory / chunk_file_name(frame.chunk_id)).exists())
    while batch := list(islice(lacking, _FILES_AT_ONCE)):
        written += _write_batch(pack, batch, directory)
    return written


def extract_image(index: Index, store: CastrStore, target: Path, *, progress: Progress) -> None:
    """Write the image that `index` describes to the file `target`, sparse, from the chunks in `store`.

    Raises:
        ChunkMissingError: The store lacks a chunk; `target` is untouched.
        ChunkDamagedError: The store holds something else; `target` is untouched.
    """
    progress.begin(f"Writing {target.name}", index.size)
    try:
        with replacing(target) as stream:
            for chunk, data in _chunks_in_order(index, store):
                if data == ZERO_CHUNK:
                    stream.seek(len(data), os.SEEK_CUR)
                else:
                    stream.write(data)
                progress.advance(chunk.size)
            stream.truncate(index.size)
    finally:
        progress.end()


def _chunks_in_order(index: Index, store: CastrStore) -> Iterator[tuple[Chunk, bytes]]:
    """Yield each chunk with its bytes; runs of one and the same chunk are decoded once."""
    known_as, data = (b"", 0), b""
    for chunk in index:
        if known_as != (chunk.id, chunk.size):
            known_as, data = (chunk.id, chunk.size), store.read(chunk)
        yield chunk, data


def _write_batch(pack: BinaryIO, batch: list[Frame], directory: Path) -> int:
    renames: dict[Path, Path] = {}
    try:
        for frame in batch:
            data = _read_frame(pack, frame)
            final = directory / chunk_file_name(frame.chunk_id)
            final.parent.mkdir(exist_ok=True)
            temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
            renames[temporary] = final
            temporary.write_bytes(data)
        sync_file_system(directory)
        for temporary, final in renames.items():
            temporary.replace(final)
    except BaseException:
        for temporary in renames:
            temporary.unlink(missing_ok=True)
        raise
    for parent in {final.parent for final in renames.values()}:
        sync_directory(parent)
    sync_directory(directory)
    return len(renames)


def _read_frame(pack: BinaryIO, frame: Frame) -> bytes:
    pack.seek(frame.offset)
    data = pack.read(frame.size)
    if hashlib.sha256(data).digest() != frame.sha256:
        raise PackDamagedError(frame)
    return data
