"""A part of a static delta, unpacked into a file: its data are tens of MiB, and a device has little memory.

    `(a(uuu)aa(ayay)ayay)`      modes, sets of extended attributes, data, operations; then the ends of the first
                                three, in reverse order, each as wide as the size of the whole asks for

The file has no name, so it is gone with the process.
"""

import lzma
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from overhaul.dialects.ostree.errors import MalformedOstreeDataError
from overhaul.dialects.ostree.gvariant import decode

_OUTPUT_BYTES = 1 << 20
#: Of everything but the data: tables and operations, which are held in memory.
_TABLES_LIMIT_BYTES = 16 << 20


class SpooledPayload:
    """A payload whose data are read from a file."""

    def __init__(self, stream: BinaryIO, size: int, *, what: str) -> None:
        self._descriptor = stream.fileno()
        width = next(width for width in (1, 2, 4, 8) if size < 1 << 8 * width)
        table = size - 3 * width
        if table < 0:
            raise MalformedOstreeDataError(what=what, reason="its payload is cut short")
        ends = os.pread(self._descriptor, 3 * width, table)
        data_end, xattrs_end, modes_end = (
            int.from_bytes(ends[width * place : width * (place + 1)], "little") for place in range(3)
        )
        if not modes_end <= xattrs_end <= data_end <= table:
            raise MalformedOstreeDataError(what=what, reason="a member of its payload ends outside it")
        if xattrs_end + table - data_end > _TABLES_LIMIT_BYTES:
            raise MalformedOstreeDataError(what=what, reason="its tables are too big")
        self._begin = xattrs_end
        self.data_size = data_end - xattrs_end
        modes: Sequence[tuple[int, int, int]] = decode("a(uuu)", self._at(0, modes_end), what=what)
        xattrs: Sequence[Sequence[tuple[bytes, bytes]]] = decode(
            "aa(ayay)", self._at(modes_end, xattrs_end - modes_end), what=what
        )
        self.modes = modes
        self.xattr_sets = xattrs
        self.operations = self._at(data_end, table - data_end)

    def read(self, offset: int, length: int) -> memoryview:
        """Return a piece of the data that is there."""
        return memoryview(self._at(self._begin + offset, length))

    def _at(self, offset: int, length: int) -> bytes:
        return os.pread(self._descriptor, length, offset)


@contextmanager
def spooled(packed: bytes, *, limit_bytes: int, directory: Path, what: str) -> Iterator[SpooledPayload]:
    """Unpack the bytes of a part's file, whose digest was checked, into a file in `directory`.

    Raises:
        MalformedOstreeDataError: It cannot be unpacked, or unpacks to more than `limit_bytes`.
    """
    if not packed:
        raise MalformedOstreeDataError(what=what, reason="it is empty")
    with tempfile.TemporaryFile(dir=directory) as stream:
        size = 0
        for piece in _unpacked(packed, what=what):
            size += len(piece)
            if size > limit_bytes:
                raise MalformedOstreeDataError(what=what, reason="it unpacks to more than it says")
            stream.write(piece)
        stream.flush()
        yield SpooledPayload(stream, size, what=what)


def _unpacked(packed: bytes, *, what: str) -> Iterator[bytes | memoryview]:
    form, content = packed[0], memoryview(packed)[1:]
    if form == 0:
        yield content
        return
    if form != ord("x"):
        raise MalformedOstreeDataError(what=what, reason=f"it is packed in the unknown form {form}")
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=64 << 20)
    try:
        data: bytes | memoryview = content
        while not unpacker.eof:
            piece = unpacker.decompress(data, _OUTPUT_BYTES)
            if not piece and unpacker.needs_input:
                raise MalformedOstreeDataError(what=what, reason="it is cut short")
            data = b""
            yield piece
    except lzma.LZMAError as error:
        raise MalformedOstreeDataError(what=what, reason=f"it cannot be unpacked ({error})") from error
    if unpacker.unused_data:
        raise MalformedOstreeDataError(what=what, reason="bytes follow its end")
