"""Unpacking what is compressed inside an image, a piece at a time: the forms that deltas look into.

    gzip    a deflate stream and its trailer, behind the header of one gzip member
    lz4     the legacy frame of lz4: a mark, then blocks of at most 8 MiB, each behind its size
    zstd    one frame
    xz      one stream

and `ext4-inodes`, an inode table, of which check sums are left out (`inodes`). The plain size is known beforehand, so a
bomb is noticed when it exceeds it and never held.
"""

import ctypes
import lzma
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.inodes import INODES_FORM, unpack_inodes
from overhaul.content.delta.recoders import (
    LZ4_BLOCK_SIZE,
    LZ4_LEGACY_MAGIC,
    RecodingFailedError,
    lz4_block_bound,
    lz4_library,
)
from overhaul.content.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

_OUTPUT_SIZE = 1024 * 1024
#: 8 MiB; an initial file system packed at a higher level is told as it is.
ZSTD_WINDOW_LOG_MAX = 23
#: What liblzma says it takes for the biggest dictionary of the xz program's presets, 64 MiB; it touches only as much of
#: that as there are bytes unpacked.
XZ_DECODER_MEMORY_MAX = 66 * 1024 * 1024
_TRAILER = struct.Struct("<II")


class WrongPackedBytesError(MalformedDeltaError):
    """Bytes that are not what the delta says they are: the old image is damaged or another one."""

    def __init__(self, form: str) -> None:
        self.form = form
        super().__init__(f"bytes of the old image do not unpack as {form}")


def unpack(form: str, packed: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield the `size` bytes that `packed` holds.

    Raises:
        WrongPackedBytesError: It does not hold exactly these many, or not in this form.
        RecodingFailedError: The library for it is not there, or the form is newer than this agent.
    """
    unpack_form = FORMS.get(form)
    if unpack_form is None:
        raise RecodingFailedError(kind=form, reason="such files cannot even be unpacked")
    left = size
    for piece in unpack_form(packed):
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left:
        raise WrongPackedBytesError(form)


def _unpack_gzip(packed: Iterable[bytes]) -> Iterator[bytes]:
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    check = size = 0
    trailer = b""
    for piece in packed:
        if decoder.eof:
            trailer += piece
            continue
        data = piece
        while not decoder.eof:
            try:
                plain = decoder.decompress(data, _OUTPUT_SIZE)
            except zlib.error as error:
                raise WrongPackedBytesError("gzip") from error
            check = zlib.crc32(plain, check)
            size += len(plain)
            yield plain
            data = decoder.unconsumed_tail
            if not data and len(plain) < _OUTPUT_SIZE:
                break
        trailer += decoder.unused_data
    if not decoder.eof or trailer != _TRAILER.pack(check, size & 0xFFFFFFFF):
        raise WrongPackedBytesError("gzip")


def _unpack_lz4(packed: Iterable[bytes]) -> Iterator[bytes]:
    library = lz4_library()
    room = ctypes.create_string_buffer(LZ4_BLOCK_SIZE)
    most = lz4_block_bound()
    reader = _Reader(packed)
    if reader.take(len(LZ4_LEGACY_MAGIC)) != LZ4_LEGACY_MAGIC:
        raise WrongPackedBytesError("lz4")
    while head := reader.take(4):
        size = int.from_bytes(head, "little")
        block = reader.take(size) if 0 < size <= most else b""
        if len(head) != 4 or not block or len(block) != size:
            raise WrongPackedBytesError("lz4")
        made = library.LZ4_decompress_safe(block, room, len(block), len(room))
        if made < 0:
            raise WrongPackedBytesError("lz4")
        view = memoryview(room)
        for begin in range(0, made, _OUTPUT_SIZE):
            yield bytes(view[begin : min(begin + _OUTPUT_SIZE, made)])


def _unpack_zstd(packed: Iterable[bytes]) -> Iterator[bytes]:
    decoder = ZstdDecompressor(options={DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})
    return _decoded("zstd", decoder, packed, error=ZstdError)


def _unpack_xz(packed: Iterable[bytes]) -> Iterator[bytes]:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_DECODER_MEMORY_MAX)
    return _decoded("xz", decoder, packed, error=lzma.LZMAError)


def _decoded(
    form: str, decoder: ZstdDecompressor | lzma.LZMADecompressor, packed: Iterable[bytes], *, error: type[Exception]
) -> Iterator[bytes]:
    """Yield what a decoder makes of one frame or stream, and nothing may stand behind it."""
    for piece in packed:
        if decoder.eof:
            raise WrongPackedBytesError(form)
        data = piece
        while not decoder.eof:
            try:
                plain = decoder.decompress(data, max_length=_OUTPUT_SIZE)
            except error as cause:
                raise WrongPackedBytesError(form) from cause
            data = b""
            yield plain
            if decoder.needs_input:
                break
    if not decoder.eof or decoder.unused_data:
        raise WrongPackedBytesError(form)


class _Reader:
    """Takes bytes out of pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._held = bytearray()

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end."""
        while len(self._held) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._held += piece
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


FORMS: Mapping[str, Callable[[Iterable[bytes]], Iterator[bytes]]] = {
    "gzip": _unpack_gzip,
    "lz4": _unpack_lz4,
    "zstd": _unpack_zstd,
    "xz": _unpack_xz,
    INODES_FORM: unpack_inodes,
}
