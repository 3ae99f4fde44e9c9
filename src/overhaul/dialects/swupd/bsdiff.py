"""swupd's binary delta: the container around a bsdiff, read and written, with every number checked.

    magic 8 | offset of the first block u8 | control, diff and extra length | old size, new size | [mtime u64] |
    mode u32 | uid u32 | gid u32 | encodings u16 | control block | diff block | extra block

`BSDIFF4U` has 67 bytes of header with wide numbers, `BSDIFF4V` 32 bytes with narrow ones for small files, and
`FULLV20U` is only its magic: send the whole file. Numbers are little-endian. Each block is encoded by itself, and
`encodings` has one bit for each that says how. Control is a list of triples of signed 64 bit numbers: add so many
bytes of the diff block to old bytes, copy so many of the extra block, then move in the old file.

Reading needs nothing that a device does not have; whoever makes a delta brings what resembles what (`Cover`s).
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct

from overhaul.content.delta.covers import Cover, add_bytes, subtract_bytes
from overhaul.errors import TrustError

WIDE_MAGIC = b"BSDIFF4U"
NARROW_MAGIC = b"BSDIFF4V"
FULL_MAGIC = b"FULLV20U"
#: The largest file the original makes of a delta.
MAX_NEW_SIZE = 512 << 20
#: The largest it makes one from.
MAX_OLD_SIZE = MAX_NEW_SIZE

_WIDE = Struct("<8sBIQQQQQIIIH")
_NARROW = Struct("<8sBBHHHHIIIH")
_TRIPLE = Struct("<qqq")
_COUNT = Struct("<Q")

_NONE, _BZIP2, _GZIP, _XZ, _ZEROS = range(5)
_ENCODINGS = 5
_BLOCKS = 3
_CONTROL = 0
_UNKNOWN_BITS = 0x8000
#: Each triple makes at least one byte, apart from a first and a last one, so a longer control block is nonsense.
_IDLE_TRIPLES = 2
#: What a decoder of xz may take for its dictionary.
_XZ_MEMORY_MAX = 96 << 20
#: Below this the whole file is always cheaper for everybody.
MIN_NEW_SIZE = 200
#: A delta must be smaller than this part of the new file.
_WORTHWHILE = 0.9


class MalformedDeltaFileError(TrustError):
    """Bytes that are no delta, or none for this old file."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"A delta cannot be used: {reason}. The whole file must be fetched instead.")


class FullFileWantedError(MalformedDeltaFileError):
    """A marker in place of a delta: the publisher found that the whole file is cheaper."""

    def __init__(self) -> None:
        super().__init__("it only says that the whole file is to be sent")


@dataclass(frozen=True, kw_only=True)
class DeltaHeader:
    """What a delta says about itself."""

    old_size: int
    new_size: int
    #: The whole st_mode of the new file, and its owner.
    mode: int
    uid: int
    gid: int
    #: Offset and length of the control, diff and extra block.
    blocks: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    #: How each of them is encoded.
    encodings: tuple[int, int, int]


def read_delta_header(delta: bytes) -> DeltaHeader:
    """Return the checked header of a delta.

    Raises:
        FullFileWantedError: It is the marker for whole files.
        MalformedDeltaFileError: It is no delta, or breaks a limit.
    """
    magic = delta[:8]
    if magic == FULL_MAGIC:
        raise FullFileWantedError
    if magic == WIDE_MAGIC and len(delta) >= _WIDE.size:
        _, offset, control, diff, extra, old_size, new_size, _, mode, uid, gid, bits = _WIDE.unpack_from(delta)
        size = _WIDE.size
    elif magic == NARROW_MAGIC and len(delta) >= _NARROW.size:
        _, offset, control, diff, extra, old_size, new_size, mode, uid, gid, bits = _NARROW.unpack_from(delta)
        size = _NARROW.size
    else:
        raise MalformedDeltaFileError("it does not begin like one")
    if offset != size or offset + control + diff + extra != len(delta):
        raise MalformedDeltaFileError("its length contradicts its header")
    if old_size > MAX_OLD_SIZE or new_size > MAX_NEW_SIZE:
        raise MalformedDeltaFileError(f"it turns {old_size} bytes into {new_size}, and the limit is {MAX_NEW_SIZE}")
    return DeltaHeader(
        old_size=old_size,
        new_size=new_size,
        mode=mode,
        uid=uid,
        gid=gid,
        blocks=((offset, control), (offset + control, diff), (offset + control + diff, extra)),
        encodings=_read_encodings(bits),
    )


def _read_encodings(bits: int) -> tuple[int, int, int]:
    chosen = []
    for block in range(_BLOCKS):
        field = bits >> block * _ENCODINGS & (1 << _ENCODINGS) - 1
        if field.bit_count() != 1 or (block == _CONTROL and field == 1 << _ZEROS):
            raise MalformedDeltaFileError(f"it states the encodings {bits:#x}")
        chosen.append(field.bit_length() - 1)
    if bits & _UNKNOWN_BITS:
        raise MalformedDeltaFileError(f"it states the encodings {bits:#x}")
    return chosen[0], chosen[1], chosen[2]


def apply_delta(delta: bytes, old: bytes) -> bytes:
    """Return the new file; memory stays within a few times the sizes in the header, which is checked first.

    Raises:
        FullFileWantedError: It is the marker for whole files.
        MalformedDeltaFileError: It is damaged, hostile, or made for another old file.
    """
    header = read_delta_header(delta)
    if header.old_size != len(old):
        raise MalformedDeltaFileError(f"it is made for an old file of {header.old_size} bytes, not {len(old)}")
    triples_max = header.new_size + _IDLE_TRIPLES
    control = _decode(delta, header, 0, limit=triples_max * _TRIPLE.size)
    if len(control) % _TRIPLE.size:
        raise MalformedDeltaFileError("its control block is cut short")
    diff = _decode(delta, header, 1, limit=header.new_size)
    extra = _decode(delta, header, 2, limit=header.new_size)
    return _rebuild(control, diff, extra, old, header.new_size)


def _rebuild(control: bytes, diff: bytes, extra: bytes, old: bytes, new_size: int) -> bytes:
    bases: list[memoryview] = []
    view, rest = memoryview(old), memoryview(extra)
    place = added = copied = 0
    order: list[tuple[int, int]] = []
    for add, copy, move in _TRIPLE.iter_unpack(control):
        if min(add, copy) < 0 or added + add > len(diff) or copied + copy > len(extra) or place + add > len(old):
            raise MalformedDeltaFileError("its control block reaches outside of the files")
        bases.append(view[place : place + add])
        order.append((add, copy))
        added += add
        copied += copy
        place += add + move
        if not 0 <= place <= len(old):
            raise MalformedDeltaFileError("its control block leaves the old file")
    if added + copied != new_size or added != len(diff) or copied != len(extra):
        raise MalformedDeltaFileError("its blocks do not make up the new file")
    base = b"".join(bases)
    # All additions at once: the loop then moves pieces only.
    summed = memoryview(add_bytes(base, diff) if any_nonzero(diff) else base)
    joined: list[memoryview] = []
    at = taken = 0
    for add, copy in order:
        joined.append(summed[at : at + add])
        joined.append(rest[taken : taken + copy])
        at += add
        taken += copy
    return b"".join(joined)


def any_nonzero(data: bytes) -> bool:
    """Tell whether any byte is not zero, at the speed of memory."""
    return data.count(0) != len(data)


def _decode(delta: bytes, header: DeltaHeader, number: int, *, limit: int) -> bytes:
    begin, length = header.blocks[number]
    data = delta[begin : begin + length]
    if number == _CONTROL:
        # A triple that makes nothing is legal twice; a control block that only idles is an attack on memory.
        limit = min(limit, max(64 << 20, 64 * len(delta)))
    match header.encodings[number]:
        case 0:
            decoded = data
        case 1:
            decoded = _bounded(bz2.BZ2Decompressor(), data, limit)
        case 2:
            decoded = _inflate(data, limit)
        case 3:
            decoded = _bounded(lzma.LZMADecompressor(memlimit=_XZ_MEMORY_MAX), data, limit)
        case _:
            if len(data) != _COUNT.size or _COUNT.unpack(data)[0] > limit:
                raise MalformedDeltaFileError("a block of zeros is too long")
            decoded = bytes(_COUNT.unpack(data)[0])
    if len(decoded) > limit:
        raise MalformedDeltaFileError("a block is longer than the new file")
    return decoded


def _bounded(decoder: "bz2.BZ2Decompressor | lzma.LZMADecompressor", data: bytes, limit: int) -> bytes:
    try:
        decoded = decoder.decompress(data, limit + 1)
    except (OSError, ValueError, EOFError, lzma.LZMAError, MemoryError) as error:
        raise MalformedDeltaFileError("a block is damaged") from error
    if not decoder.eof or decoder.unused_data:
        raise MalformedDeltaFileError("a block is damaged or too long")
    return decoded


def _inflate(data: bytes, limit: int) -> bytes:
    # 47: both zlib and gzip headers, found out by zlib itself.
    decoder = zlib.decompressobj(47)
    try:
        decoded = decoder.decompress(data, limit + 1)
    except zlib.error as error:
        raise MalformedDeltaFileError("a block is damaged") from error
    if not decoder.eof or decoder.unused_data or decoder.unconsumed_tail:
        raise MalformedDeltaFileError("a block is damaged or too long")
    return decoded


def make_delta(
    old: bytes,
    new: bytes,
    *,
    mode: int,
    uid: int,
    gid: int,
    find_covers: Callable[[bytes, bytes], Sequence[Cover]],
) -> bytes | None:
    """Return a delta that makes `new`, which will have the given rights and owner; None when it would not pay.

    `find_covers(new, old)` says which pieces of the new bytes resemble which old ones, ascending in `new`.
    """
    if not old or len(new) < MIN_NEW_SIZE or max(len(old), len(new)) > MAX_NEW_SIZE:
        return None
    control, diff, extra = _blocks(old, new, find_covers(new, old))
    encoded = [_encode(control, may_be_zeros=False), _encode(diff), _encode(extra)]
    bits = sum(1 << block * _ENCODINGS + encoding for block, (encoding, _data) in enumerate(encoded))
    lengths = [len(data) for _encoding, data in encoded]
    is_narrow = max(len(old), len(new), lengths[1], lengths[2]) < 1 << 16 and lengths[0] < 1 << 8
    if is_narrow:
        head = _NARROW.pack(NARROW_MAGIC, _NARROW.size, *lengths, len(old), len(new), mode, uid, gid, bits)
    else:
        head = _WIDE.pack(WIDE_MAGIC, _WIDE.size, *lengths, len(old), len(new), 0, mode, uid, gid, bits)
    delta = b"".join([head, *(data for _encoding, data in encoded)])
    return delta if len(delta) < _WORTHWHILE * len(new) else None


def _blocks(old: bytes, new: bytes, covers: Sequence[Cover]) -> tuple[bytes, bytes, bytes]:
    first = covers[0] if covers else Cover(len(new), 0, 0)
    triples = [(0, first.new, first.old)]
    for cover, following in zip(covers, [*covers[1:], *([None] if covers else [])], strict=True):
        copy = (following.new if following else len(new)) - cover.new - cover.size
        triples.append((cover.size, copy, following.old - cover.old - cover.size if following else 0))
    if covers and not any(triples[0]):
        del triples[0]
    base = b"".join([old[cover.old : cover.old + cover.size] for cover in covers])
    wanted = b"".join([new[cover.new : cover.new + cover.size] for cover in covers])
    ends = [0, *(cover.new + cover.size for cover in covers)]
    begins = [*(cover.new for cover in covers), len(new)]
    extra = b"".join([new[end:begin] for end, begin in zip(ends, begins, strict=True)])
    diff = subtract_bytes(wanted, base) if wanted != base else bytes(len(wanted))
    return b"".join([_TRIPLE.pack(*triple) for triple in triples]), diff, extra


def _encode(data: bytes, *, may_be_zeros: bool = True) -> tuple[int, bytes]:
    """Return how a block is encoded best, and its bytes; the rules of the original, which rarely tries all in vain."""
    if not data:
        return _NONE, b""
    if may_be_zeros and not any_nonzero(data):
        return (_ZEROS, _COUNT.pack(len(data))) if len(data) > _COUNT.size else (_NONE, data)
    best, encoding = data, _NONE
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = packer.compress(data) + packer.flush()
    if len(packed) < len(best):
        best, encoding = packed, _GZIP
    if len(data) < 128:
        return encoding, best
    dictionary = max(4096, min(1 << (len(data) - 1).bit_length(), 64 << 20))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    packed = lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
    if len(packed) * 1.01 + 64 < len(best):
        best, encoding = packed, _XZ
    # Looking at blocks as large as this once more costs more than the few bytes it saves now and then.
    if len(data) <= 256 << 10:
        packed = bz2.compress(data)
        if len(packed) * 1.05 + 512 < len(best):
            best, encoding = packed, _BZIP2
    return encoding, best
