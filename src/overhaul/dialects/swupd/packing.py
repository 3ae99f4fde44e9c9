"""Compression of what swupd publishes: which of the known ways is smallest, found out cheaply.

Trying all ways on every object costs three times what choosing well does. Measured over the files of a system
(each in its tar): gzip wins below 2 KiB because xz has a larger frame; between there and 16 KiB they are close, so
both are tried; above, xz wins unless the bytes are compressed already, which a sample tells.

Packs are xz streams behind one another, each of a few MiB: every reader of xz reads them as one, all cores can
write them, and a later pack takes over the streams that did not change.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, Literal, Protocol

from overhaul.content.delta.matching import is_incompressible
from overhaul.content.zstd import (
    FRAME_MAGIC,
    MalformedFrameError,
    ZstdDecompressor,
    ZstdError,
    compress_frame,
    decompress_frame,
    get_frame_info,
)
from overhaul.errors import TrustError

#: `smallest` is what every client since 2016 reads; the others are for clients known to read them, and for speed.
Compression = Literal["smallest", "xz", "gzip", "zstd", "none"]

XZ_MAGIC = b"\xfd7zXZ\0"
GZIP_MAGIC = b"\x1f\x8b"
BZIP2_MAGIC = b"BZh"

_GZIP_ONLY_BELOW = 2 << 10
_BOTH_BELOW = 16 << 10
_DICTIONARY_MIN = 4 << 10
_DICTIONARY_MAX = 8 << 20
_DECODER_MEMORY_MAX = 192 << 20
_READ_SIZE = 1 << 20

Buffer = bytes | bytearray | memoryview


class MalformedCompressionError(TrustError):
    """Compressed bytes that cannot be read, or are larger than they may be."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name} cannot be unpacked: {reason}. Its publisher must build it again.")


def compress(data: bytes, *, how: Compression, level: int) -> bytes:
    """Return `data` compressed; `level` is that of xz, from 0 to 9."""
    match how:
        case "none":
            return data
        case "gzip":
            return _gzip(data, 9)
        case "xz":
            return compress_xz(data, level=level)
        case "zstd":
            return compress_frame(data, level=2 * level + 1)
        case "smallest":
            return _smallest(data, level)


def _smallest(data: bytes, level: int) -> bytes:
    if len(data) < _GZIP_ONLY_BELOW:
        return min(_gzip(data, 9), data, key=len)
    if len(data) < _BOTH_BELOW:
        return min(_gzip(data, 9), compress_xz(data, level=level), data, key=len)
    if is_incompressible(data):
        return min(_gzip(data, 1), data, key=len)
    return min(compress_xz(data, level=level), data, key=len)


def _gzip(data: bytes, level: int) -> bytes:
    # 31: a gzip header, in which zlib puts neither a time nor a name.
    packer = zlib.compressobj(level, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()


def compress_xz(data: bytes, *, level: int) -> bytes:
    """Return one xz stream whose dictionary is no larger than it needs; a device takes no more memory to read it."""
    dictionary = max(_DICTIONARY_MIN, min(_DICTIONARY_MAX, 1 << max(0, len(data) - 1).bit_length()))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": level, "dict_size": dictionary}]
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)


def decompress(data: bytes, *, name: str, limit: int) -> bytes:
    """Return what `data` holds, in whichever way it is compressed, when that is no more than `limit` bytes.

    Raises:
        MalformedCompressionError: It is damaged, goes on behind its end, or holds more.
    """
    try:
        decoded = _decompress(data, limit)
    except (OSError, EOFError, ValueError, MemoryError, lzma.LZMAError, zlib.error, MalformedFrameError) as error:
        raise MalformedCompressionError(name=name, reason=str(error) or "it is damaged") from error
    if len(decoded) > limit:
        raise MalformedCompressionError(name=name, reason=f"it holds more than {limit} bytes")
    return decoded


def _decompress(data: bytes, limit: int) -> bytes:
    if data.startswith(XZ_MAGIC):
        return _members(data, limit, lambda: lzma.LZMADecompressor(memlimit=_DECODER_MEMORY_MAX))
    if data.startswith(BZIP2_MAGIC):
        return _members(data, limit, bz2.BZ2Decompressor)
    if data.startswith(GZIP_MAGIC):
        decoder = zlib.decompressobj(31)
        decoded = decoder.decompress(data, limit + 1)
        if len(decoded) <= limit and (not decoder.eof or decoder.unused_data):
            raise EOFError("it is cut short or goes on behind its end")
        return decoded
    if data.startswith(FRAME_MAGIC):
        stated = get_frame_info(data).decompressed_size
        if stated is None or stated > limit:
            raise ValueError(f"it states {stated} bytes")
        return decompress_frame(data, size=stated)
    return data


def _members(data: bytes, limit: int, decoder: "Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]") -> bytes:
    pieces: list[bytes] = []
    left = limit + 1
    while data and left > 0:
        one = decoder()
        piece = one.decompress(data, left)
        pieces.append(piece)
        left -= len(piece)
        if not one.eof and left > 0:
            raise EOFError("it is cut short")
        data = one.unused_data if one.eof else b""
    return b"".join(pieces)


def split_streams(stream: BinaryIO, *, name: str) -> Iterator[bytes]:
    """Yield what each of the compressed streams in `stream` holds, one after the other.

    Raises:
        MalformedCompressionError: One of them is damaged.
    """
    rest = stream.read(_READ_SIZE)
    make = _decoder_of(rest)
    if make is None:
        yield rest + stream.read()
        return
    while rest:
        decoder = make()
        pieces: list[bytes] = []
        try:
            while not decoder.eof and rest:
                pieces.append(decoder.decompress(rest))
                rest = decoder.unused_data if decoder.eof else stream.read(_READ_SIZE)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, ZstdError) as error:
            raise MalformedCompressionError(name=name, reason=str(error) or "it is damaged") from error
        if not decoder.eof:
            raise MalformedCompressionError(name=name, reason="it is cut short")
        yield b"".join(pieces)
        rest = rest or stream.read(_READ_SIZE)


class _StreamDecoder(Protocol):
    """What the decoders of xz, bzip2, zstd and zlib have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _decoder_of(head: bytes) -> "Callable[[], _StreamDecoder] | None":
    if head.startswith(XZ_MAGIC):
        return lambda: lzma.LZMADecompressor(memlimit=_DECODER_MEMORY_MAX)
    if head.startswith(GZIP_MAGIC):
        return lambda: zlib.decompressobj(31)
    if head.startswith(FRAME_MAGIC):
        return ZstdDecompressor
    return bz2.BZ2Decompressor if head.startswith(BZIP2_MAGIC) else None
