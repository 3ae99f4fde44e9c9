"""Packing the content of new file objects: raw DEFLATE, by the fastest means there is.

libdeflate (the package `deflate`) takes a third of zlib's time at the same level and writes a little less; any DEFLATE
stream will do, because an object's name does not cover its packed bytes. It packs in one call from memory to memory,
so zlib, in slices, takes files beyond 64 MiB, and everything where the package is not installed.
"""

import importlib
import zlib
from collections.abc import Callable, Iterator

#: zlib's scale; OSTree itself uses 6 of zlib.
DEFAULT_LEVEL = 6
_RAW_DEFLATE = -15
_ONE_CALL_MAX = 64 << 20
_SLICE_SIZE = 8 << 20

_Whole = Callable[[bytes | memoryview, int], bytes]


def _load() -> _Whole | None:
    try:
        module = importlib.import_module("deflate")
    except ModuleNotFoundError:
        return None
    compress: _Whole = module.deflate_compress
    return compress


_compress_whole = _load()
#: Which library packs files of usual size.
PACKER = "zlib" if _compress_whole is None else "libdeflate"


def deflated(content: bytes | memoryview, *, level: int = DEFAULT_LEVEL) -> Iterator[bytes | memoryview]:
    """Yield the pieces of the raw DEFLATE stream of `content`."""
    if _compress_whole is not None and len(content) <= _ONE_CALL_MAX:
        yield _compress_whole(content, level)
        return
    packer = zlib.compressobj(level, zlib.DEFLATED, _RAW_DEFLATE)
    for begin in range(0, len(content), _SLICE_SIZE):
        yield packer.compress(content[begin : begin + _SLICE_SIZE])
    yield packer.flush()
