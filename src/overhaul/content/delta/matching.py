"""Telling new bytes from old ones: finding the covers of a unit, with HDiffPatch as the matcher.

HDiffPatch sorts all suffixes of the window, which finds moved code that a compressor's hash tables miss, at a cost
that pays only where there is something to find. Bytes that are compressed already are told by zstd with the window
as prefix when that shows that little of them can be found.

Of HDiffPatch's output only the covers are used. Its format (`HDIFF13`, HDiffPatch's patch_types.h and patch.cpp):
the name, `&`, the name of a compressor, a zero byte, eleven numbers, of which the third counts the covers and the
fourth is the size of their list, which follows: for each cover its distance in the old bytes from the end of the
one before (with a sign bit on top), its distance in the new bytes, and its length. Numbers have seven bits a byte,
highest first, high bit means more.
"""

import zlib

from overhaul.content.delta.covers import Cover, Parts, encode_covers
from overhaul.content.delta.errors import MatcherMissingError
from overhaul.content.zstd import compress_with_prefix

_MAGIC = b"HDIFF13&"
_NUMBERS = 11
_SIGN = 0x80
_SIGNED_MORE = 0x40

_PROBE_SIZE = 64 * 1024
#: What a fast compressor leaves of bytes that are compressed already.
_INCOMPRESSIBLE = 0.97
_TRIAL_LEVEL = 9
#: A trial that leaves more than this of them says that the window has little to offer.
_STRANGE = 0.85


def is_incompressible(data: bytes) -> bool:
    """Tell from a sample whether `data` is compressed already."""
    begin = max(0, (len(data) - _PROBE_SIZE) // 2)
    sample = data[begin : begin + _PROBE_SIZE]
    return bool(sample) and len(zlib.compress(sample, 1)) > _INCOMPRESSIBLE * len(sample)


def tell_by_prefix(new: bytes, window: bytes) -> bytes | None:
    """Return a zstd frame for compressed bytes of which the window holds little; None for all others."""
    if not is_incompressible(new):
        return None
    frame = compress_with_prefix(new, window, level=_TRIAL_LEVEL)
    return frame if len(frame) > _STRANGE * len(new) else None


def tell_by_covers(new: bytes, window: bytes) -> Parts:
    """Return the parts of a `covers` unit that makes `new` from `window`."""
    return encode_covers(new, window, find_covers(new, window))


def find_covers(new: bytes, window: bytes) -> list[Cover]:
    """Return which pieces of `new` resemble which pieces of `window`, ascending in `new`.

    Raises:
        MatcherMissingError: HDiffPatch is not installed.
    """
    if not window or not new:
        return []
    try:
        import hdiffpatch  # only a publisher has it
    except ModuleNotFoundError as error:
        raise MatcherMissingError from error
    # The larger cache changes no byte of the result and saves up to half of the time.
    return _parse_covers(hdiffpatch.diff(window, new, compression=None, validate=False, big_cache_match=True))


def _parse_covers(diff: bytes) -> list[Cover]:
    begin = diff.find(b"\0") + 1
    if not diff.startswith(_MAGIC) or begin != len(_MAGIC) + 1:
        raise ValueError(f"HDiffPatch wrote {diff[:16]!r}, which is not its uncompressed format 13")
    numbers = []
    for _ in range(_NUMBERS):
        number, begin = _number(diff, begin, 0)
        numbers.append(number)
    covers: list[Cover] = []
    old = new = 0
    for _ in range(numbers[2]):
        first = diff[begin]
        distance, begin = first & _SIGNED_MORE - 1, begin + 1
        if first & _SIGNED_MORE:
            distance, begin = _number(diff, begin, distance)
        gap, begin = _number(diff, begin, 0)
        size, begin = _number(diff, begin, 0)
        old += -distance if first & _SIGN else distance
        new += gap
        covers.append(Cover(new, old, size))
        old += size
        new += size
    return covers


def _number(data: bytes, position: int, value: int) -> tuple[int, int]:
    while True:
        byte = data[position]
        position += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, position
