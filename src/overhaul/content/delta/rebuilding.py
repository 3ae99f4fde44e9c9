"""Carrying out a group on a device: unpack old bytes, tell new ones from them, pack these again, compare, write.

Everything bigger than a piece lies in the work area, an unnamed scratch file, so memory stays bounded and a killed
device leaves nothing behind. What the group makes is compared with its signed digest before a byte of it is written:
a damaged old image or a library that packs otherwise makes a group fail, never the slot wrong.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

from overhaul.content.delta.apply import BlockReader, BlockWriter, apply_segment
from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.groups import Group, Packing
from overhaul.content.delta.recoders import RecodingFailedError, recoder_of
from overhaul.content.delta.segments import Run
from overhaul.content.delta.unpacking import WrongPackedBytesError, unpack

_PIECE_SIZE = 1024 * 1024


class Outcome(Enum):
    """How a group came out."""

    WRITTEN = auto()
    #: The old image does not hold what the delta was made from.
    DAMAGED = auto()
    #: The files cannot be packed again here, or there is no room; what stands instead can help.
    IMPOSSIBLE = auto()


class WorkArea:
    """A scratch file that begins as zeros and is gone when the block ends, or the process."""

    def __init__(self, directory: Path, size: int) -> None:
        self.directory = directory
        self.size = size
        try:
            self._file = TemporaryFile(dir=directory)  # noqa: SIM115 - closed when the block ends
            self._file.truncate(size)
        except OSError as error:
            raise RecodingFailedError(kind="a work area", reason=str(error.strerror)) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on."""
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise MalformedDeltaError(f"{size} bytes at {offset} are not in the work area")
        return data

    def write(self, offset: int, data: bytes, /) -> None:
        """Put `data` at `offset`."""
        if offset + len(data) > self.size:
            raise MalformedDeltaError(f"{len(data)} bytes at {offset} do not fit into the work area")
        view = memoryview(data)
        try:
            while view:
                done = os.pwrite(self._file.fileno(), view, offset)
                offset += done
                view = view[done:]
        except OSError as error:
            raise RecodingFailedError(kind="a work area", reason=str(error.strerror)) from error


class JoinedSpace:
    """The old image, the work area and the new image, one behind the other."""

    def __init__(self, source: BlockReader, source_size: int, work: WorkArea, target: BlockReader) -> None:
        self._parts = (
            (0, source_size, source),
            (source_size, source_size + work.size, work),
            (source_size + work.size, 1 << 63, target),
        )

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on."""
        pieces = [
            part.read(max(offset, begin) - begin, min(offset + size, end) - max(offset, begin))
            for begin, end, part in self._parts
            if max(offset, begin) < min(offset + size, end)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def gather(self, runs: Iterable[tuple[int, int]]) -> bytes:
        """Return the bytes of `runs`, joined."""
        return b"".join([self.read(offset, size) for offset, size in runs])


def rebuild(
    group: Group,
    payloads: Iterable[bytes],
    *,
    source: BlockReader,
    source_size: int,
    target: BlockReader,
    into: BlockWriter,
    directory: Path,
) -> Outcome:
    """Carry out `group` with a work area in `directory`, and write what it makes; `payloads` are its segments' bytes.

    Raises:
        MalformedDeltaError: A payload has the wrong digest or the group contradicts itself; nothing is written.
    """
    # The payloads are taken in any case: they stream in, and others follow.
    fetched = list(payloads)
    try:
        with WorkArea(directory, group.work_size) as work:
            outcome = _fill(group, fetched, work, source, JoinedSpace(source, source_size, work, target))
            if outcome is Outcome.WRITTEN:
                for write in group.writes:
                    for offset in range(0, write.size, _PIECE_SIZE):
                        piece = work.read(write.offset + offset, min(_PIECE_SIZE, write.size - offset))
                        into.write(write.target + offset, piece)
            return outcome
    except WrongPackedBytesError:
        return Outcome.DAMAGED
    except RecodingFailedError:
        return Outcome.IMPOSSIBLE


def _fill(group: Group, payloads: Sequence[bytes], work: WorkArea, source: BlockReader, joined: JoinedSpace) -> Outcome:
    """Do everything in the work area; say whether what it now holds may be written."""
    for unpacking in group.unpackings:
        plain = unpack(unpacking.form, _pieces(source, unpacking.packed), unpacking.plain.size)
        _put(work, unpacking.plain, plain)
    for move in group.moves:
        _put(work, Run(move.offset, move.size), _pieces(joined, [Run(move.source, move.size)]))
    for segment, payload in zip(group.segments, payloads, strict=True):
        if not apply_segment(segment, payload, joined, work):
            return Outcome.DAMAGED
    if not all(_pack(packing, work) for packing in group.packings):
        return Outcome.IMPOSSIBLE
    digest = hashlib.sha256()
    for piece in _pieces(work, (Run(write.offset, write.size) for write in group.writes)):
        digest.update(piece)
    return Outcome.WRITTEN if digest.digest() == group.sha256 else Outcome.IMPOSSIBLE


def group_is_done(group: Group, target: BlockReader) -> bool:
    """Tell whether the target already holds what the group would write."""
    digest = hashlib.sha256()
    for piece in _pieces(target, group.output_runs):
        digest.update(piece)
    return digest.digest() == group.sha256


def _pack(packing: Packing, work: WorkArea) -> bool:
    """Pack bytes of the work area again; say whether they became as many as they must."""
    recoder = recoder_of(packing.coder)
    if recoder is None:
        return False
    return _put(work, packing.packed, recoder.pack(work, packing.plain, scratch=work.directory))


def _put(work: WorkArea, run: Run, pieces: Iterable[bytes]) -> bool:
    """Write `pieces` to `run` of the work area; say whether they filled it exactly."""
    offset = run.offset
    for piece in pieces:
        if offset + len(piece) > run.end:
            return False
        work.write(offset, piece)
        offset += len(piece)
    return offset == run.end


def _pieces(reader: BlockReader, runs: Iterable[Run]) -> Iterator[bytes]:
    for run in runs:
        for offset in range(run.offset, run.end, _PIECE_SIZE):
            yield reader.read(offset, min(_PIECE_SIZE, run.end - offset))
