"""Inode tables of ext4 without their check sums, which no delta can tell: the recoder and the form `ext4-inodes`.

Every inode that moved has another CRC-32C, and with it four bytes that resemble nothing. Left out they can be computed
again from the file system's seed and the number of the inode (Linux kernel, Documentation/filesystems/ext4 and
fs/ext4/inode.c). Plain bytes are, little-endian:

    table      inodes of 256 bytes; in place of a check sum stand zeros, and a one in its first byte where there is one
    seed u32, number of the first inode u32, zeros 8 bytes: only of a table that is to be packed

Bytes behind the last whole inode stay as they are. All inodes of a piece are worked on at once, a byte of each at a
time, by look-ups in and sums of very long integers, so that plain Python takes 15 ms a MiB.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from overhaul.content.delta.segments import Run

INODES_FORM = "ext4-inodes"
INODE_SIZE = 256
#: Where the two halves of a check sum lie, and the field that says whether an inode has the second.
_LOW = 124
_EXTRA_SIZE = 128
_HIGH = 130
_EXTRA_SIZE_MIN = 4
#: The generation goes into the sum before the inode does.
_GENERATION = 100
_TRAILER = struct.Struct("<II8x")
_INODES_AT_ONCE = 4096

_POLYNOMIAL = 0x82F63B78
_HAS_CHECKSUMS = 0x400
_STATES_SEED = 0x2000

_ONE_OR_ZERO = bytes((0, *[1] * 255))
_ALL_OR_NOTHING = bytes((0, *[255] * 255))
_HAS_HIGH = bytes(255 if value >= _EXTRA_SIZE_MIN else 0 for value in range(256))


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)  # noqa: PLW2901 - the register
        table.append(value)
    return tuple(table)


_CRC_TABLE = _crc_table()
#: The table's lowest bytes, its second ones, and so on: what `bytes.translate` takes.
_CRC_PLANES = tuple(bytes(value >> 8 * place & 0xFF for value in _CRC_TABLE) for place in range(4))


def crc32c(data: bytes, value: int = 0xFFFFFFFF) -> int:
    """Return the register of a CRC-32C after `data`, not inverted, as ext4 uses it."""
    for byte in data:
        value = _CRC_TABLE[(value ^ byte) & 0xFF] ^ value >> 8
    return value


def checksum_seed(superblock: bytes) -> int | None:
    """Return what check sums of a file system begin with, or None when it has none."""
    if not struct.unpack_from("<I", superblock, 0x64)[0] & _HAS_CHECKSUMS:
        return None
    if struct.unpack_from("<I", superblock, 0x60)[0] & _STATES_SEED:
        (stated,) = struct.unpack_from("<I", superblock, 0x270)
        return int(stated)
    return crc32c(superblock[0x68:0x78])


class _Columns(NamedTuple):
    """A byte of each inode of a piece."""

    inodes: bytes

    def at(self, place: int) -> bytes:
        return self.inodes[place::INODE_SIZE]

    @property
    def has_high(self) -> bytes:
        """All bits of those inodes that have the second half of a check sum."""
        return _or(self.at(_EXTRA_SIZE).translate(_HAS_HIGH), self.at(_EXTRA_SIZE + 1).translate(_ALL_OR_NOTHING))


def without_sums(table: bytes) -> bytes:
    """Return whole inodes with their check sums left out."""
    columns = _Columns(table)
    high = [_and(columns.at(_HIGH + byte), columns.has_high) for byte in range(2)]
    is_there = _or(_or(columns.at(_LOW), columns.at(_LOW + 1)), _or(*high))
    left = bytearray(table)
    left[_LOW::INODE_SIZE] = is_there.translate(_ONE_OR_ZERO)
    left[_LOW + 1 :: INODE_SIZE] = bytes(len(is_there))
    for byte in range(2):
        left[_HIGH + byte :: INODE_SIZE] = _xor(columns.at(_HIGH + byte), high[byte])
    return bytes(left)


def with_sums(plain: bytes, *, seed: int, first: int) -> bytes:
    """Return what `without_sums` was made of; the inodes of `plain` are numbered from `first` on."""
    columns = _Columns(plain)
    count = len(plain) // INODE_SIZE
    is_there = columns.at(_LOW).translate(_ALL_OR_NOTHING)
    register = [bytes((byte,)) * count for byte in seed.to_bytes(4, "little")]
    numbers = b"".join((number & 0xFFFFFFFF).to_bytes(4, "little") for number in range(first, first + count))
    for place in range(4):
        register = _fed(register, numbers[place::4])
    for place in range(4):
        register = _fed(register, columns.at(_GENERATION + place))
    for place in range(INODE_SIZE):
        register = _fed(register, bytes(count) if place == _LOW else columns.at(place))
    made = bytearray(plain)
    has_high = _and(columns.has_high, is_there)
    for byte in range(2):
        made[_LOW + byte :: INODE_SIZE] = _and(register[byte], is_there)
        made[_HIGH + byte :: INODE_SIZE] = _or(columns.at(_HIGH + byte), _and(register[2 + byte], has_high))
    return bytes(made)


def trailer(*, seed: int, first: int) -> bytes:
    """Return what stands behind a table that is to be packed."""
    return _TRAILER.pack(seed, first)


def pack_inodes(read: Callable[[int, int], bytes], run: Run) -> Iterator[bytes]:
    """Yield the table whose plain bytes lie in `run`, with its check sums."""
    end = max(run.offset, run.end - _TRAILER.size)
    seed, first = _TRAILER.unpack(read(end, run.end - end).ljust(_TRAILER.size, b"\0"))
    for offset in range(run.offset, end, _INODES_AT_ONCE * INODE_SIZE):
        piece = read(offset, min(_INODES_AT_ONCE * INODE_SIZE, end - offset))
        whole = len(piece) // INODE_SIZE * INODE_SIZE
        yield with_sums(piece[:whole], seed=seed, first=first) + piece[whole:]
        first += _INODES_AT_ONCE


def unpack_inodes(packed: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a table without its check sums."""
    held = b""
    for piece in packed:
        held += piece
        whole = len(held) // INODE_SIZE * INODE_SIZE
        yield without_sums(held[:whole])
        held = held[whole:]
    yield held


def _fed(register: list[bytes], column: bytes) -> list[bytes]:
    """Return the register of each inode after one more byte of each."""
    index = _xor(register[0], column)
    low, second, third, high = (index.translate(plane) for plane in _CRC_PLANES)
    return [_xor(register[1], low), _xor(register[2], second), _xor(register[3], third), high]


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")


def _and(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") & int.from_bytes(other, "little")).to_bytes(len(one), "little")


def _or(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") | int.from_bytes(other, "little")).to_bytes(len(one), "little")
