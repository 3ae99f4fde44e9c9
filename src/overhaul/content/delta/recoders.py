"""Packing bytes again exactly as another program packed them, with the libraries this system has.

Files that are compressed inside an image (a kernel, an initial file system, documents) are the largest part of a
delta. Told from their unpacked bytes they nearly vanish, if the device can pack the result again bit for bit. That
hangs on the library: the same level gives other bytes in another version. So a recoder's name ends in a
*fingerprint*, the digest of what it makes of a fixed sample, and a device offers exactly the names it has worked out
on itself; no version is believed. What is packed again is compared with a signed digest before it is written.

    gzip-LEVEL         the deflate stream of the gzip program; its trailer follows, its header is not part of it
    zlib-LEVEL-MEMORY  the same of zlib
    lz4-LEVEL          blocks of 8 MiB in the legacy frame of lz4, as Linux kernels have them
    zstd-LEVEL         one frame of several-threaded zstd that knew the size, with a checksum, as `zstd -LEVEL FILE`
    zstd-LEVEL-piped   the same from a pipe, whose size nobody knew, as dracut packs an initial file system
    ext4-inodes        an inode table with its check sums; see `inodes`
    xz-...             a stream of xz, with the settings that `xz` writes into the name: there are too many for a table

The libraries of the running system are called by `ctypes` because an image was packed by such a library, and not by
the one inside a Python wheel. Only liblzma is Python's own: its encoder has made the same bytes for many years.
"""

import ctypes
import hashlib
import lzma
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Protocol

from overhaul.content.delta.inodes import pack_inodes
from overhaul.content.delta.segments import Run
from overhaul.content.delta.xz import XzSettings, pack_xz
from overhaul.content.delta.zstdmemory import ZstdAllocator, ZstdMemory
from overhaul.errors import DeviceError
from overhaul.host.processes import ProgramFailedError, ProgramMissingError
from overhaul.host.processes import run as run_program

_PIECE_SIZE = 1024 * 1024
_GZIP_HEADER_SIZE = 10
LZ4_BLOCK_SIZE = 8 * 1024 * 1024
LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_FINGERPRINT_DIGITS = 8
#: Big enough that coders which differ at all differ here: many deflate blocks, several zstd blocks.
_SAMPLE_SIZE = 768 * 1024


class PlainReader(Protocol):
    """The unpacked bytes, at any place."""

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on."""


class Pack(Protocol):
    """Packs bytes one way."""

    def __call__(self, plain: PlainReader, run: Run, *, scratch: Path | None) -> Iterator[bytes]:
        """Yield what `run` of `plain` is packed.

        What would take much memory lies in unnamed files in `scratch` meanwhile; None means the system's place.

        Raises:
            RecodingFailedError: The library or program is not there or refuses to work.
        """


@dataclass(frozen=True, slots=True)
class Recoder:
    """One way to pack bytes."""

    #: Without fingerprint.
    kind: str
    pack: Pack
    #: Memory it takes at most, about.
    memory_bytes: int

    @property
    def format(self) -> str:
        """What packed it, without the settings: `gzip`, `zlib`, `lz4`, `zstd`, `xz`, `ext4`."""
        return self.kind.partition("-")[0]


class RecodingFailedError(DeviceError):
    """A library or program that is not there or refuses to work."""

    def __init__(self, *, kind: str, reason: str) -> None:
        self.kind = kind
        self.reason = reason
        super().__init__(f"This system cannot pack by {kind}: {reason}.")


def _pack_gzip(plain: PlainReader, run: Run, *, scratch: Path | None, level: int) -> Iterator[bytes]:
    try:
        with NamedTemporaryFile(dir=scratch) as file:
            for piece in _pieces(plain, run):
                file.write(piece)
            file.flush()
            packed = run_program(["gzip", "--no-name", f"-{level}", "--stdout", file.name]).stdout
    except (ProgramMissingError, ProgramFailedError, OSError) as error:
        raise RecodingFailedError(kind=f"gzip-{level}", reason=str(error).rstrip(".")) from error
    # The header without a name is left out; the original's stands in the delta.
    yield packed[_GZIP_HEADER_SIZE:]


def _pack_zlib(plain: PlainReader, run: Run, *, scratch: Path | None, level: int, memory: int) -> Iterator[bytes]:
    del scratch  # it takes next to no memory
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, memory)
    check = 0
    for piece in _pieces(plain, run):
        check = zlib.crc32(piece, check)
        yield packer.compress(piece)
    yield packer.flush() + struct.pack("<II", check, run.size & 0xFFFFFFFF)


def _pack_lz4(plain: PlainReader, run: Run, *, scratch: Path | None, level: int) -> Iterator[bytes]:
    del scratch  # a block must be in memory whole
    library = lz4_library()
    room = ctypes.create_string_buffer(lz4_block_bound())
    yield LZ4_LEGACY_MAGIC
    for begin in range(run.offset, run.end, LZ4_BLOCK_SIZE):
        block = plain.read(begin, min(LZ4_BLOCK_SIZE, run.end - begin))
        packed = library.LZ4_compress_HC(block, room, len(block), len(room), level)
        if packed <= 0:
            raise RecodingFailedError(kind=f"lz4-{level}", reason="a block could not be packed")
        yield struct.pack("<I", packed)
        yield from _parts(room, packed)


def _pack_zstd(
    plain: PlainReader, run: Run, *, scratch: Path | None, level: int, is_piped: bool = False
) -> Iterator[bytes]:
    library = _zstd()
    with ZstdMemory(scratch) as memory:
        context = library.ZSTD_createCCtx_advanced(memory.functions)
        if not context:
            raise RecodingFailedError(kind=f"zstd-{level}", reason="there is no memory")
        try:
            for parameter, value in ((_ZSTD_LEVEL, level), (_ZSTD_CHECKSUM, 1), (_ZSTD_WORKERS, 1)):
                _zstd_checked(level, library.ZSTD_CCtx_setParameter(context, parameter, value))
            if not is_piped:
                _zstd_checked(level, library.ZSTD_CCtx_setPledgedSrcSize(context, run.size))
            room = ctypes.create_string_buffer(_PIECE_SIZE)
            out = _ZstdBuffer(ctypes.addressof(room), len(room), 0)
            for piece in _pieces(plain, run):
                into = _ZstdBuffer(ctypes.cast(ctypes.c_char_p(piece), ctypes.c_void_p).value, len(piece), 0)
                while into.position < into.size:
                    _zstd_checked(level, library.ZSTD_compressStream2(context, out, into, _ZSTD_CONTINUE))
                    if out.position:
                        yield ctypes.string_at(room, out.position)
                        out.position = 0
                memory.put_aside()
            nothing = _ZstdBuffer(None, 0, 0)
            left = 1
            while left:
                left = _zstd_checked(level, library.ZSTD_compressStream2(context, out, nothing, _ZSTD_END))
                yield ctypes.string_at(room, out.position)
                out.position = 0
        finally:
            library.ZSTD_freeCCtx(context)


def _pack_xz(plain: PlainReader, run: Run, *, scratch: Path | None, settings: XzSettings) -> Iterator[bytes]:
    if settings.memory_bytes(run.size) > XZ_MEMORY_MAX:
        raise RecodingFailedError(kind=settings.kind, reason="its dictionary takes too much memory")
    try:
        yield from pack_xz(settings, partial(_pieces, plain), run, scratch=scratch)
    except (lzma.LZMAError, MemoryError, OSError) as error:
        raise RecodingFailedError(kind=settings.kind, reason=str(error) or "there is no memory") from error


def _pack_inodes(plain: PlainReader, run: Run, *, scratch: Path | None) -> Iterator[bytes]:
    del scratch  # it takes a few MiB
    yield from pack_inodes(plain.read, run)


def _parts(room: "ctypes.Array[ctypes.c_char]", size: int) -> Iterator[bytes]:
    """Yield the first `size` bytes of a buffer, a piece at a time."""
    view = memoryview(room)
    for begin in range(0, size, _PIECE_SIZE):
        yield bytes(view[begin : min(begin + _PIECE_SIZE, size)])


def _pieces(plain: PlainReader, run: Run) -> Iterator[bytes]:
    for begin in range(run.offset, run.end, _PIECE_SIZE):
        yield plain.read(begin, min(_PIECE_SIZE, run.end - begin))


class _ZstdBuffer(ctypes.Structure):
    """ZSTD_inBuffer and ZSTD_outBuffer."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("position", ctypes.c_size_t))


# From zstd.h; these numbers are part of the library's binary interface.
_ZSTD_LEVEL = 100
_ZSTD_CHECKSUM = 201
_ZSTD_WORKERS = 400
_ZSTD_CONTINUE = 0
_ZSTD_END = 2


@cache
def _zstd() -> ctypes.CDLL:
    library = _library("zstd", "libzstd.so.1")
    library.ZSTD_createCCtx_advanced.argtypes = [ZstdAllocator]
    library.ZSTD_createCCtx_advanced.restype = ctypes.c_void_p
    library.ZSTD_freeCCtx.argtypes = [ctypes.c_void_p]
    library.ZSTD_CCtx_setParameter.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    library.ZSTD_CCtx_setParameter.restype = ctypes.c_size_t
    library.ZSTD_CCtx_setPledgedSrcSize.argtypes = [ctypes.c_void_p, ctypes.c_ulonglong]
    library.ZSTD_CCtx_setPledgedSrcSize.restype = ctypes.c_size_t
    buffer = ctypes.POINTER(_ZstdBuffer)
    library.ZSTD_compressStream2.argtypes = [ctypes.c_void_p, buffer, buffer, ctypes.c_int]
    library.ZSTD_compressStream2.restype = ctypes.c_size_t
    library.ZSTD_isError.argtypes = [ctypes.c_size_t]
    library.ZSTD_isError.restype = ctypes.c_uint
    library.ZSTD_getErrorName.argtypes = [ctypes.c_size_t]
    library.ZSTD_getErrorName.restype = ctypes.c_char_p
    return library


def _zstd_checked(level: int, answer: int) -> int:
    library = _zstd()
    if library.ZSTD_isError(answer):
        raise RecodingFailedError(kind=f"zstd-{level}", reason=library.ZSTD_getErrorName(answer).decode())
    return answer


@cache
def lz4_library() -> ctypes.CDLL:
    """Return the library of lz4, with its calls declared.

    Raises:
        RecodingFailedError: It is not there.
    """
    library = _library("lz4", "liblz4.so.1")
    library.LZ4_compressBound.argtypes = [ctypes.c_int]
    library.LZ4_compress_HC.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int,
    ]  # fmt: skip
    library.LZ4_decompress_safe.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
    return library


def lz4_block_bound() -> int:
    """Return how big a packed block can be."""
    bound: int = lz4_library().LZ4_compressBound(LZ4_BLOCK_SIZE)
    return bound


def _library(kind: str, name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise RecodingFailedError(kind=kind, reason=f"the library {name} is not there") from error


_MEBIBYTE = 1024 * 1024
#: In the order in which a publisher tries them; the settings that distributions use.
RECODERS: Mapping[str, Recoder] = {
    recoder.kind: recoder
    for recoder in (
        Recoder("zlib-9-8", partial(_pack_zlib, level=9, memory=8), _MEBIBYTE),
        Recoder("gzip-9", partial(_pack_gzip, level=9), 24 * _MEBIBYTE),
        Recoder("zlib-9-9", partial(_pack_zlib, level=9, memory=9), _MEBIBYTE),
        Recoder("zlib-6-8", partial(_pack_zlib, level=6, memory=8), _MEBIBYTE),
        Recoder("gzip-6", partial(_pack_gzip, level=6), 24 * _MEBIBYTE),
        Recoder("lz4-9", partial(_pack_lz4, level=9), 20 * _MEBIBYTE),
        Recoder("lz4-12", partial(_pack_lz4, level=12), 20 * _MEBIBYTE),
        Recoder("zstd-9", partial(_pack_zstd, level=9), 80 * _MEBIBYTE),
        Recoder("zstd-19", partial(_pack_zstd, level=19), 200 * _MEBIBYTE),
        Recoder("zstd-3", partial(_pack_zstd, level=3), 40 * _MEBIBYTE),
        Recoder("zstd-1", partial(_pack_zstd, level=1), 40 * _MEBIBYTE),
        Recoder("zstd-9-piped", partial(_pack_zstd, level=9, is_piped=True), 80 * _MEBIBYTE),
        Recoder("zstd-15-piped", partial(_pack_zstd, level=15, is_piped=True), 120 * _MEBIBYTE),
        Recoder("zstd-19-piped", partial(_pack_zstd, level=19, is_piped=True), 200 * _MEBIBYTE),
        Recoder("zstd-3-piped", partial(_pack_zstd, level=3, is_piped=True), 40 * _MEBIBYTE),
        Recoder("zstd-1-piped", partial(_pack_zstd, level=1, is_piped=True), 40 * _MEBIBYTE),
        Recoder("ext4-inodes", _pack_inodes, 4 * _MEBIBYTE),
    )
}


#: Dictionaries up to 4 MiB, which modules, firmware and the initial file systems of dracut stay below. A kernel's
#: 32 MiB would take 370 MiB, all of it looked at everywhere all the time.
XZ_MEMORY_MAX = 50 * _MEBIBYTE


def recoder_called(kind: str) -> Recoder | None:
    """Return the recoder `kind`, a name without fingerprint, or None when there is no such one."""
    settings = XzSettings.parse(kind)
    if settings is None:
        return RECODERS.get(kind)
    return Recoder(kind, partial(_pack_xz, settings=settings), XZ_MEMORY_MAX)


def packing_memory(kind: str, plain_size: int) -> int:
    """Return about how much memory the recoder `kind` takes for so many bytes."""
    settings = XzSettings.parse(kind)
    return RECODERS[kind].memory_bytes if settings is None else settings.memory_bytes(plain_size)


class _Sample:
    """Bytes that are the same everywhere: words that come again, and some that do not."""

    def __init__(self) -> None:
        made = bytearray()
        state = 1
        while len(made) < _SAMPLE_SIZE:
            # A linear congruential generator, written out: no library's may change what it draws.
            state = (state * 1103515245 + 12345) & 0x7FFFFFFF
            word = state >> 8
            made += b"%d " % (word % (1 << (word % 17)) + 1)
            if word % 61 == 0 and len(made) > 5000:
                begin = word % (len(made) - 4000)
                made += made[begin : begin + word % 3000]
        self._bytes = bytes(made[:_SAMPLE_SIZE])

    def read(self, offset: int, size: int, /) -> bytes:
        return self._bytes[offset : offset + size]


@cache
def _sample() -> _Sample:
    return _Sample()


@cache
def coder_name(kind: str) -> str:
    """Return the name, with fingerprint, of the recoder `kind` as this system has it.

    Raises:
        RecodingFailedError: It does not work here.
    """
    recoder = recoder_called(kind)
    if recoder is None:
        raise RecodingFailedError(kind=kind, reason="there is no such way")
    digest = hashlib.sha256()
    for piece in recoder.pack(_sample(), Run(0, _SAMPLE_SIZE), scratch=None):
        digest.update(piece)
    return f"{kind}.{digest.hexdigest()[:_FINGERPRINT_DIGITS]}"


def recoder_of(name: str) -> Recoder | None:
    """Return the recoder that `name` means, or None when this system does not have just that one."""
    recoder = recoder_called(name.partition(".")[0])
    if recoder is None:
        return None
    try:
        return recoder if coder_name(recoder.kind) == name else None
    except RecodingFailedError:
        return None


def proved(names: Iterable[str]) -> frozenset[str]:
    """Return those of `names` that this system has proved on itself."""
    return frozenset(name for name in names if recoder_of(name) is not None)
