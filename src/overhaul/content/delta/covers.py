"""The `covers` coder: new bytes as pieces of old ones, corrected byte by byte, with what is new put in between.

It is made for compiled code, where a moved function keeps its length and most of its bytes. A unit holds three
parts, numbers are u32 little-endian:

    control     number of covers n, number of corrections m, then the columns, each as four byte planes
                (all lowest bytes, then all second bytes...):
                n x extra bytes before the cover, n x distance in the window from the end of the cover before
                (modulo 2^32), n x length of the cover,
                m x bytes to leave as they are, m x bytes to correct
    difference  what is added, modulo 256, to the bytes to correct
    extra       the bytes that come from no cover; those behind the last cover come last

The corrections run over the bytes of all covers, joined. Without covers the unit is its extra bytes. The coder is
plain Python, yet runs at the speed of C: every loop is a join, a map or one addition of very long integers. Only
`correct_python` has a compiled twin, in `_kernel.pyx`, which takes its place when it was built.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain
from operator import add
from struct import Struct
from sys import byteorder
from typing import NamedTuple

from overhaul.content.delta.errors import MalformedDeltaError

_COUNTS = Struct("<II")
#: No unit has more covers or corrections; bounds what a decoder sets up for them.
MAX_ENTRIES = 1 << 17
_WORD = 4
_HALF = 1 << 31
#: Fewer unchanged bytes in a row cost less among the differences than as a number.
#: Spelled out, because a literal prefix is searched for much faster than a repetition.
_SAME = re.compile(rb"\0" * 16 + rb"\0*")
#: Keeps the lists of offsets and pieces small, whatever the number of corrections.
_CORRECTIONS_AT_ONCE = 4096
#: Long enough that the loop costs nothing, short enough to stay in the processor's nearest cache.
_ADDITION_SIZE = 8 * 1024
_LOW_BITS = int.from_bytes(b"\x7f" * _ADDITION_SIZE, "little")
_HIGH_BITS = int.from_bytes(b"\x80" * _ADDITION_SIZE, "little")


class Cover(NamedTuple):
    """A piece of new bytes that resembles a piece of the window of the same length."""

    new: int
    old: int
    size: int


class Parts(NamedTuple):
    """What a unit of this coder takes from the three streams of its segment."""

    control: bytes
    difference: bytes
    extra: bytes


def add_bytes(left: bytes, right: bytes) -> bytes:
    """Return the bytewise sum, modulo 256, of two strings of equal length."""
    return b"".join(map(_add_piece, _pieces(left), _pieces(right)))


def subtract_bytes(left: bytes, right: bytes) -> bytes:
    """Return the bytewise difference, modulo 256, of two strings of equal length."""
    return b"".join(map(_subtract_piece, _pieces(left), _pieces(right)))


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[begin : begin + _ADDITION_SIZE] for begin in range(0, len(data), _ADDITION_SIZE))


def _add_piece(left: bytes, right: bytes) -> bytes:
    # Seven bits of each byte are added where no carry can leave the byte; the eighth is an exclusive or.
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    return ((a & _LOW_BITS) + (b & _LOW_BITS) ^ (a ^ b) & _HIGH_BITS).to_bytes(len(left), "little")


def _subtract_piece(left: bytes, right: bytes) -> bytes:
    # The eighth bit is set before subtracting, so that no byte borrows from its neighbour, and put right after.
    a, b = int.from_bytes(left, "little"), int.from_bytes(right, "little")
    high = _HIGH_BITS & (1 << 8 * len(left)) - 1
    return ((a | high) - (b & _LOW_BITS) ^ (a ^ b ^ high) & high).to_bytes(len(left), "little")


def encode_covers(new: bytes, window: bytes, covers: Sequence[Cover]) -> Parts:
    """Return the parts from which `decode_covers` makes `new`; `covers` ascend in `new` and do not overlap there."""
    ends = [0, *(cover.new + cover.size for cover in covers)]
    extras = [cover.new - end for cover, end in zip(covers, ends, strict=False)]
    jumps = [cover.old - end for cover, end in zip(covers, [0, *(c.old + c.size for c in covers)], strict=False)]
    old = b"".join([window[cover.old : cover.old + cover.size] for cover in covers])
    wanted = b"".join([new[cover.new : cover.new + cover.size] for cover in covers])
    extra = b"".join([new[end : end + size] for end, size in zip(ends, [*extras, len(new)], strict=True)])
    kept, corrected, difference = _corrections(old, wanted)
    columns = (extras, [jump % (1 << 32) for jump in jumps], [cover.size for cover in covers], kept, corrected)
    control = _COUNTS.pack(len(covers), len(kept)) + b"".join(map(_write_column, columns))
    return Parts(control, difference, extra)


def _corrections(old: bytes, wanted: bytes) -> tuple[list[int], list[int], bytes]:
    if old == wanted:
        return [], [], b""
    difference = subtract_bytes(wanted, old)
    kept: list[int] = []
    corrected: list[int] = []
    pieces: list[bytes] = []
    position = 0
    same = 0
    for begin, end in chain((m.span() for m in _SAME.finditer(difference)), ((len(old), len(old)),)):
        if begin > position:
            kept.append(same)
            corrected.append(begin - position)
            pieces.append(difference[position:begin])
        same = end - begin
        position = end
    return kept, corrected, b"".join(pieces)


def _write_column(column: Sequence[int]) -> bytes:
    words = array("I", column)
    if byteorder == "big":
        words.byteswap()
    data = words.tobytes()
    return b"".join([data[place::_WORD] for place in range(_WORD)])


def decode_covers(parts: Sequence[bytes], window: bytes, size: int) -> bytes:
    """Return the `size` new bytes.

    Raises:
        MalformedDeltaError: The parts contradict themselves or reach outside the window. Whether they do never
            depends on the bytes in the window.
    """
    if len(parts) != len(Parts._fields):
        raise MalformedDeltaError(f"a unit of covers has {len(parts)} parts")
    control, difference, extra = parts
    extras, jumps, lengths, kept, corrected = _read_control(control)
    covered = size - len(extra)
    if sum(lengths) != covered or sum(extras) > len(extra):
        raise MalformedDeltaError("the covers of a unit do not make up its bytes")
    if sum(corrected) != len(difference) or sum(kept) + len(difference) > covered:
        raise MalformedDeltaError("the corrections of a unit do not fit its covers")
    signed = [jump - ((jump & _HALF) << 1) for jump in jumps]
    ends = list(accumulate(map(add, signed, lengths)))
    begins = [end - length for end, length in zip(ends, lengths, strict=True)]
    if begins and (min(begins) < 0 or max(ends) > len(window)):
        raise MalformedDeltaError("a cover lies outside its window")
    base = b"".join(map(window.__getitem__, map(slice, begins, ends)))
    if difference:
        base = correct(base, difference, kept, corrected)
    if not extra:
        return base
    return b"".join(_alternate(extra, extras, base, lengths))


def correct_python(base: bytes, difference: bytes, kept: "array[int]", corrected: "array[int]") -> bytes:
    """Return `base` with `difference` added: keep so many bytes, correct so many, and so on; the rest is kept.

    The columns are of equal length, and their sums fit `base` and `difference`; the caller has checked that.
    """
    done: list[bytes] = []
    position = used = 0
    for first in range(0, len(kept), _CORRECTIONS_AT_ONCE):
        keep, mend = kept[first : first + _CORRECTIONS_AT_ONCE], corrected[first : first + _CORRECTIONS_AT_ONCE]
        ends = list(accumulate(map(add, keep, mend), initial=position))
        begins = list(map(add, ends, keep))
        wrong = b"".join(map(base.__getitem__, map(slice, begins, ends[1:])))
        right = add_bytes(wrong, difference[used : used + len(wrong)])
        right_ends = list(accumulate(mend, initial=0))
        kept_pieces = map(base.__getitem__, map(slice, ends, begins))
        mended_pieces = map(right.__getitem__, map(slice, right_ends, right_ends[1:]))
        done.append(b"".join(chain.from_iterable(zip(kept_pieces, mended_pieces, strict=True))))
        position = ends[-1]
        used += len(wrong)
    done.append(base[position:])
    return b"".join(done)


try:
    from overhaul.content._kernel import correct as _correct_compiled
except ImportError:
    correct = correct_python
else:
    correct = _correct_compiled


def _alternate(first: bytes, firsts: Sequence[int], second: bytes, seconds: Sequence[int]) -> Iterable[bytes]:
    """Yield a piece of `first`, then one of `second`, and so on, and in the end what is left of `first`."""
    first_ends, second_ends = list(accumulate(firsts)), list(accumulate(seconds))
    pieces = zip(
        map(first.__getitem__, map(slice, chain((0,), first_ends), first_ends)),
        map(second.__getitem__, map(slice, chain((0,), second_ends), second_ends)),
        strict=True,
    )
    return chain(chain.from_iterable(pieces), (first[first_ends[-1] if first_ends else 0 :],))


def _read_control(control: bytes) -> "Iterator[array[int]]":
    if len(control) < _COUNTS.size:
        raise MalformedDeltaError("the control part of a unit is cut short")
    covers, corrections = _COUNTS.unpack_from(control)
    if max(covers, corrections) > MAX_ENTRIES:
        raise MalformedDeltaError(f"a unit has {covers} covers and {corrections} corrections")
    counts = (covers,) * 3 + (corrections,) * 2
    ends = [_COUNTS.size + _WORD * count for count in accumulate(counts)]
    if ends[-1] != len(control):
        raise MalformedDeltaError("the control part of a unit does not have its length")
    begins = [_COUNTS.size, *ends]
    return (_read_column(control[begin:end]) for begin, end in zip(begins, ends, strict=False))


def _read_column(planes: bytes) -> "array[int]":
    count = len(planes) // _WORD
    words = bytearray(len(planes))
    for place in range(_WORD):
        words[place::_WORD] = planes[place * count : (place + 1) * count]
    column = array("I", bytes(words))
    if byteorder == "big":
        column.byteswap()
    return column
