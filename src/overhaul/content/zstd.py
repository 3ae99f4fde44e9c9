"""zstd frames from strangers and for strangers: bounded decoding, and encoding that threads can share.

Decoding takes the size the result must have from the caller, who has it from signed data. A frame that states
another size, asks for a window beyond the bound, decodes to more or less, ends early or is followed by anything
is refused, and neither its header nor its blocks can make the decoder take more memory than the bound allows.
Whether the bytes are the right ones is the caller's business: digests are checked before and after.

Encoding keeps one compressor for each thread and level. Making one for each call costs as much as the work for a chunk,
and all that threads gain. The same bytes at the same level give the same frame whatever was encoded before.

The compressed format is RFC 8878; the library is the standard library's, or its backport before Python 3.14.
"""

import sys
import threading

from overhaul.errors import TrustError

if sys.version_info >= (3, 14):
    from compression.zstd import (
        CompressionParameter,
        DecompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdDict,
        ZstdError,
        get_frame_info,
    )
else:
    from backports.zstd import (
        CompressionParameter,
        DecompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdDict,
        ZstdError,
        get_frame_info,
    )

#: The library's own names are exported, too: only here is decided which library it is.
__all__ = [
    "FRAME_MAGIC",
    "CompressionParameter",
    "DecompressionParameter",
    "MalformedFrameError",
    "ZstdCompressor",
    "ZstdDecompressor",
    "ZstdDict",
    "ZstdError",
    "compress_frame",
    "compress_with_prefix",
    "decompress_frame",
    "decompress_with_prefix",
    "get_frame_info",
]

FRAME_MAGIC = b"\x28\xb5\x2f\xfd"

#: The library takes no smaller bound of a window than 1 KiB and none above 2 GiB.
_WINDOW_LOG_MIN = 10
_WINDOW_LOG_MAX = 31
#: The library takes no shorter prefix; nothing that short would help.
_PREFIX_SIZE_MIN = 8

Buffer = bytes | bytearray | memoryview


class MalformedFrameError(TrustError):
    """The bytes are not the zstd frame that the signed data promised."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"A zstd frame cannot be used: {reason}. Fetch it again, or publish its release again.")


class _Compressors(threading.local):
    def __init__(self) -> None:
        self.by_level: dict[int, ZstdCompressor] = {}


_compressors = _Compressors()


def compress_frame(data: Buffer, *, level: int) -> bytes:
    """Return one frame that holds `data` and states its size."""
    compressor = _compressors.by_level.get(level)
    if compressor is None:
        compressor = _compressors.by_level[level] = ZstdCompressor(level=level)
    return compressor.compress(data, ZstdCompressor.FLUSH_FRAME)


def decompress_frame(data: Buffer, *, size: int, window_size: int | None = None) -> bytes:
    """Return the `size` bytes that the frame `data` holds.

    A window of `window_size` bytes is allowed, or of `size` when nothing is said. Only frames of other encoders need
    more: one that did not know the size when it began asks for the full window of its level.

    Raises:
        MalformedFrameError: The bytes are not exactly one frame of that size within that window.
    """
    _check_header(data, size)
    options: dict[int, int] = {DecompressionParameter.window_log_max: _window_log(max(size, window_size or 0))}
    return _decode(ZstdDecompressor(options=options), data, size)


def compress_with_prefix(data: Buffer, prefix: Buffer, *, level: int) -> bytes:
    """Return one frame that holds `data` written in terms of `prefix`; it is decoded with the same prefix."""
    if len(prefix) < _PREFIX_SIZE_MIN:
        return compress_frame(data, level=level)
    options: dict[int, int] = {
        CompressionParameter.compression_level: level,
        CompressionParameter.window_log: _window_log(len(prefix) + len(data)),
        CompressionParameter.enable_long_distance_matching: 1,
    }
    compressor = ZstdCompressor(options=options, zstd_dict=ZstdDict(prefix, is_raw=True).as_prefix)
    return compressor.compress(data, ZstdCompressor.FLUSH_FRAME)


def decompress_with_prefix(data: Buffer, prefix: Buffer, *, size: int) -> bytes:
    """Return the `size` bytes that `data` holds in terms of `prefix`.

    Raises:
        MalformedFrameError: The bytes are not exactly one frame of that size within a window of both.
    """
    if len(prefix) < _PREFIX_SIZE_MIN:
        return decompress_frame(data, size=size)
    _check_header(data, size)
    options: dict[int, int] = {DecompressionParameter.window_log_max: _window_log(len(prefix) + size)}
    return _decode(ZstdDecompressor(options=options, zstd_dict=ZstdDict(prefix, is_raw=True).as_prefix), data, size)


def _window_log(size: int) -> int:
    """Return the logarithm of the smallest window that spans `size` bytes."""
    return min(max((size - 1).bit_length(), _WINDOW_LOG_MIN), _WINDOW_LOG_MAX)


def _check_header(data: Buffer, size: int) -> None:
    # The decoder also takes skippable frames, which hold anything and decode to nothing.
    if bytes(data[: len(FRAME_MAGIC)]) != FRAME_MAGIC:
        raise MalformedFrameError("it does not begin like one")
    try:
        stated = get_frame_info(data).decompressed_size
    except ZstdError as error:
        raise MalformedFrameError("its header is damaged") from error
    if stated is not None and stated != size:
        raise MalformedFrameError(f"it states {stated} bytes instead of {size}")


def _decode(decompressor: ZstdDecompressor, data: Buffer, size: int) -> bytes:
    try:
        decoded = decompressor.decompress(data, max_length=size)
        # With all bytes out, the decoder may still have to see the end of the frame.
        surplus = b"" if decompressor.eof else decompressor.decompress(b"", max_length=1)
    except ZstdError as error:
        raise MalformedFrameError("its blocks are damaged or need too large a window") from error
    if surplus:
        raise MalformedFrameError(f"it decodes to more than {size} bytes")
    if not decompressor.eof:
        raise MalformedFrameError("it ends before its last block")
    if len(decoded) != size:
        raise MalformedFrameError(f"it decodes to {len(decoded)} bytes instead of {size}")
    if decompressor.unused_data:
        raise MalformedFrameError(f"{len(decompressor.unused_data)} bytes follow it")
    return decoded
