"""Finding what is compressed inside a file of an image, and how it was compressed. Only publishers need it.

Looked for are a gzip member, zstd frame, xz stream or legacy lz4 frame that a file begins with, the payload of a Linux
kernel (bzImage; boot protocol 2.08 and later, Documentation/arch/x86/boot.rst), and the compressed end of an initial
file system that begins with plain cpio archives (Documentation/driver-api/early-userspace/buffer-format.rst).
"""

import lzma
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from overhaul.content.delta.archives import ARCHIVE_MAGICS, end_of_archives
from overhaul.content.delta.errors import MalformedDeltaError
from overhaul.content.delta.inodes import INODES_FORM
from overhaul.content.delta.recoders import (
    LZ4_LEGACY_MAGIC,
    RECODERS,
    XZ_MEMORY_MAX,
    Recoder,
    RecodingFailedError,
    lz4_block_bound,
    recoder_called,
)
from overhaul.content.delta.segments import Run
from overhaul.content.delta.unpacking import FORMS, XZ_DECODER_MEMORY_MAX, ZSTD_WINDOW_LOG_MAX
from overhaul.content.delta.xz import XZ_MAGIC, settings_of
from overhaul.content.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

_GZIP_MAGIC = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
STREAM_MAGICS = (_GZIP_MAGIC, _ZSTD_MAGIC, LZ4_LEGACY_MAGIC, XZ_MAGIC)
BOOT_MAGIC = b"HdrS"
#: What files begin with that are looked into, kernels apart.
PACKED_MAGICS = (*STREAM_MAGICS, *ARCHIVE_MAGICS)
_GZIP_TRAILER_SIZE = 8
#: What is bigger when unpacked takes more scratch space than an update should.
MAX_PLAIN_SIZE = 256 * 1024 * 1024
#: Bits of a frame's descriptor (RFC 8878) of which one is set where its size stands in the header.
_ZSTD_SIZE_STATED = 0xE0
#: The header of a stream and the longest of a block.
_XZ_HEADERS_SIZE = 12 + 1024
_FORM_OF_RECODER = {"gzip": "gzip", "zlib": "gzip", "lz4": "lz4", "zstd": "zstd", "ext4": INODES_FORM}

# Offsets of the boot protocol.
_SETUP_SECTORS = 0x1F1
BOOT_MAGIC_AT = 0x202
_PAYLOAD = 0x248
_SECTOR_SIZE = 512


@dataclass(frozen=True, slots=True)
class PackedPart:
    """The compressed bytes of a file, and what they hold."""

    #: As `unpacking` names it.
    form: str
    begin: int
    end: int
    plain: bytes


def find_packed(data: bytes) -> PackedPart | None:
    """Return the compressed part of a file whose bytes are `data`, or None when there is none we look for."""
    if data.startswith(STREAM_MAGICS):
        return _part_at(data, 0, len(data))
    if data[BOOT_MAGIC_AT : BOOT_MAGIC_AT + len(BOOT_MAGIC)] == BOOT_MAGIC and len(data) > _PAYLOAD + 8:
        begin, size = struct.unpack_from("<II", data, _PAYLOAD)
        begin += ((data[_SETUP_SECTORS] or 4) + 1) * _SECTOR_SIZE
        return _part_at(data, begin, min(len(data), begin + size))
    behind = end_of_archives(data)
    return _part_at(data, behind, len(data)) if behind else None


def find_recoder(part: PackedPart, data: bytes) -> Recoder | None:
    """Return the recoder that makes just the packed bytes of `part` of file `data`, or None."""
    packed = memoryview(data)[part.begin : part.end]
    return next((recoder for recoder in _likely(part, packed) if _makes(recoder, part.plain, packed)), None)


def _likely(part: PackedPart, packed: memoryview) -> Iterable[Recoder]:
    """Return the recoders that may have made `packed`, likeliest first."""
    if part.form == "zstd":
        is_piped = not packed[len(_ZSTD_MAGIC)] & _ZSTD_SIZE_STATED
        return [one for one in RECODERS.values() if one.format == "zstd" and one.kind.endswith("piped") == is_piped]
    if part.form != "xz":
        return [one for one in RECODERS.values() if _FORM_OF_RECODER[one.format] == part.form]
    settings = settings_of(bytes(packed[:_XZ_HEADERS_SIZE]), len(part.plain))
    kinds = [one.kind for one in settings if one.memory_bytes(len(part.plain)) <= XZ_MEMORY_MAX]
    return [recoder for kind in kinds if (recoder := recoder_called(kind))]


class PlainBytes:
    """Bytes in memory as a recoder reads them."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int, /) -> bytes:
        """Return `size` bytes from `offset` on."""
        return self._data[offset : offset + size]


def _makes(recoder: Recoder, plain: bytes, packed: memoryview) -> bool:
    position = 0
    try:
        for piece in recoder.pack(PlainBytes(plain), Run(0, len(plain)), scratch=None):
            if packed[position : position + len(piece)] != piece:
                return False
            position += len(piece)
    except RecodingFailedError:
        return False
    return position == len(packed)


def _part_at(data: bytes, begin: int, limit: int) -> PackedPart | None:
    head = data[begin : begin + len(XZ_MAGIC)]
    if head.startswith(_GZIP_MAGIC):
        return _gzip_part(data, begin, limit)
    if head.startswith(_ZSTD_MAGIC):
        return _zstd_part(data, begin, limit)
    if head.startswith(LZ4_LEGACY_MAGIC):
        return _lz4_part(data, begin, limit)
    return _xz_part(data, begin, limit) if head == XZ_MAGIC else None


def _gzip_part(data: bytes, begin: int, limit: int) -> PackedPart | None:
    body = _end_of_gzip_header(data, begin)
    if body is None:
        return None
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = decoder.decompress(memoryview(data)[body:limit], MAX_PLAIN_SIZE)
    except zlib.error:
        return None
    end = limit - len(decoder.unused_data) + _GZIP_TRAILER_SIZE
    if not decoder.eof or end > limit:
        return None
    trailer = struct.pack("<II", zlib.crc32(plain), len(plain) & 0xFFFFFFFF)
    if not plain or data[end - _GZIP_TRAILER_SIZE : end] != trailer:
        return None
    return PackedPart("gzip", body, end, plain)


def _end_of_gzip_header(data: bytes, begin: int) -> int | None:
    """Return where the deflate stream of the member at `begin` begins; RFC 1952."""
    flags = data[begin + 3] if len(data) > begin + 10 else 0xFF
    position = begin + 10
    if flags & 0xE0:
        return None
    if flags & 0x04:
        if len(data) < position + 2:
            return None
        position += 2 + int.from_bytes(data[position : position + 2], "little")
    for flag in (0x08, 0x10):
        if flags & flag:
            position = data.find(b"\0", position) + 1
            if not position:
                return None
    return position + (2 if flags & 0x02 else 0)


def _zstd_part(data: bytes, begin: int, limit: int) -> PackedPart | None:
    decoder = ZstdDecompressor(options={DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX})
    try:
        plain = decoder.decompress(data[begin:limit], max_length=MAX_PLAIN_SIZE)
    except ZstdError:
        return None
    if not decoder.eof or not plain:
        return None
    return PackedPart("zstd", begin, limit - len(decoder.unused_data), plain)


def _lz4_part(data: bytes, begin: int, limit: int) -> PackedPart | None:
    end = begin + len(LZ4_LEGACY_MAGIC)
    try:
        # Its end is not marked: blocks go on as long as their sizes make sense.
        while 0 < (size := int.from_bytes(data[end : end + 4], "little")) <= lz4_block_bound():
            if end + 4 + size > limit:
                break
            end += 4 + size
        plain = b"".join(FORMS["lz4"]([data[begin:end]]))
    except (MalformedDeltaError, RecodingFailedError):
        return None
    return PackedPart("lz4", begin, end, plain) if 0 < len(plain) <= MAX_PLAIN_SIZE else None


def _xz_part(data: bytes, begin: int, limit: int) -> PackedPart | None:
    try:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_DECODER_MEMORY_MAX)
        plain = decoder.decompress(memoryview(data)[begin:limit], max_length=MAX_PLAIN_SIZE)
    except lzma.LZMAError:
        return None
    if not decoder.eof or not plain:
        return None
    return PackedPart("xz", begin, limit - len(decoder.unused_data), plain)
