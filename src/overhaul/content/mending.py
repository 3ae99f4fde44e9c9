"""Mending a chunk of which a few blocks are wrong with little more than these blocks.

A seed that is damaged here and there has most of nearly every chunk. A pack's *mends* file holds, for each chunk of
the pack, a check sum of each of its blocks and, as RAID does it, sums over all of its blocks in GF(2^8): from the
blocks that are right and as many sums as there are wrong ones these follow. Blocks have 4 KiB and lie as they lay in
the image, because that is how media fail and file systems write. Layout, little-endian:

    header: magic 8 bytes "OVHMND01", number of sums u8, then for each chunk, in the order of the pack:
        first 8 bytes of the chunk id, size of the chunk u32, bytes of the image's block before its first byte u16
    for each chunk: CRC-32 u32 of each of its blocks, then sum number 0
    for each further sum: that of each chunk

Sum number j of the blocks D0, D1 ... is D0 + g^j D1 + g^2j D2 + ..., with g = 2 and the polynomial 0x11D; blocks that
begin or end with the chunk are filled up with zeros behind. Only the header has a signed digest: what is mended is a
chunk, and it is compared with its id before it is believed.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import NamedTuple, Self

from overhaul.content.index import CHUNK_SIZE_MAX
from overhaul.errors import TrustError

BLOCK_SIZE = 4096
#: No file has more sums of a chunk than this.
MAX_SUMS = 8
_MAGIC = b"OVHMND01"
_HEAD = struct.Struct("<8sB")
_ENTRY = struct.Struct("<8sIH")
_ID_SIZE = 8
_POLYNOMIAL = 0x11D
_PIECE_SIZE = 1024 * 1024


class MalformedMendsError(TrustError):
    """The bytes are not the header of a mends file."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The mends of a pack cannot be used: {reason}. Publish the release again.")


class Mends(NamedTuple):
    """What a mends file holds of one chunk."""

    chunk_id: bytes
    chunk_size: int
    #: Bytes of the image's block before the chunk's first byte.
    phase: int
    #: The check sums, packed, and the first sum.
    first: bytes
    others: tuple[bytes, ...]


def make_mends(data: bytes, *, chunk_id: bytes, phase: int, sums: int) -> Mends:
    """Return what mends the chunk `data`, which began `phase` bytes inside a block of its image."""
    blocks = _blocks(data, phase)
    checks = struct.pack(f"<{len(blocks)}I", *map(zlib.crc32, blocks))
    joined = b"".join(block.ljust(BLOCK_SIZE, b"\0") for block in blocks)
    first, *others = (_sum(joined, len(blocks), number) for number in range(sums))
    return Mends(chunk_id, len(data), phase, checks + first, tuple(others))


@dataclass(frozen=True, kw_only=True)
class WrittenMends:
    """What a release record says of a mends file."""

    size: int
    sha256: str
    header_size: int
    header_sha256: str


class MendsWriter:
    """Writes a mends file of `sums` sums a chunk; what is not in its place yet lies in unnamed files meanwhile."""

    def __init__(self, directory: Path, *, sums: int) -> None:
        self.sums = sums
        self._entries = bytearray()
        self._opened = ExitStack()
        self._parts = [
            self._opened.enter_context(TemporaryFile(dir=directory))  # noqa: SIM115 - closed when the block ends
            for _ in range(sums)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def add(self, mends: Mends) -> None:
        """Take in the mends of one more chunk."""
        self._entries += _ENTRY.pack(mends.chunk_id[:_ID_SIZE], mends.chunk_size, mends.phase)
        for part, data in zip(self._parts, (mends.first, *mends.others), strict=True):
            part.write(data)

    def finish(self, out: Path) -> WrittenMends:
        """Write the file, not synced, and return what it is."""
        header = _HEAD.pack(_MAGIC, self.sums) + bytes(self._entries)
        digest = hashlib.sha256(header)
        size = len(header)
        with out.open("wb") as stream:
            stream.write(header)
            for part in self._parts:
                part.seek(0)
                while data := part.read(_PIECE_SIZE):
                    stream.write(data)
                    digest.update(data)
                    size += len(data)
        return WrittenMends(
            size=size,
            sha256=digest.hexdigest(),
            header_size=len(header),
            header_sha256=hashlib.sha256(header).hexdigest(),
        )


@dataclass(frozen=True, slots=True)
class MendPlace:
    """Where the mends of one chunk lie in their file."""

    size: int
    phase: int
    #: Of the check sums and the first sum.
    offset: int
    #: Of the sum number 1; each further one lies `stride` bytes behind.
    others_offset: int
    stride: int
    sums: int

    @property
    def blocks(self) -> int:
        """How many blocks the chunk has."""
        return _block_count(self.size, self.phase)

    @property
    def first_end(self) -> int:
        """Where the first sum ends."""
        return self.offset + 4 * self.blocks + BLOCK_SIZE

    def sum_range(self, number: int) -> tuple[int, int]:
        """Return where a sum other than the first lies: begin and end."""
        begin = self.others_offset + (number - 1) * self.stride
        return begin, begin + BLOCK_SIZE


def read_mends_header(data: bytes) -> Mapping[bytes, MendPlace]:
    """Return where the mends of each chunk lie, by the first bytes of the chunk's id.

    Raises:
        MalformedMendsError: The bytes are no such header, or state impossible sizes.
    """
    if len(data) < _HEAD.size or (len(data) - _HEAD.size) % _ENTRY.size:
        raise MalformedMendsError("its header is cut off")
    magic, sums = _HEAD.unpack_from(data)
    if magic != _MAGIC or not 0 < sums <= MAX_SUMS:
        raise MalformedMendsError("it does not begin like a file of mends")
    entries = list(_ENTRY.iter_unpack(data[_HEAD.size :]))
    for _id, size, phase in entries:
        if not 0 < size <= CHUNK_SIZE_MAX or phase >= BLOCK_SIZE:
            raise MalformedMendsError(f"it states a chunk of {size} bytes, {phase} behind the begin of a block")
    offsets = list(
        accumulate((4 * _block_count(size, phase) + BLOCK_SIZE for _id, size, phase in entries), initial=len(data))
    )
    stride = len(entries) * BLOCK_SIZE
    return {
        identity: MendPlace(size, phase, offsets[number], offsets[-1] + number * BLOCK_SIZE, stride, sums)
        for number, (identity, size, phase) in enumerate(entries)
    }


def mends_key(chunk_id: bytes) -> bytes:
    """Return by what a chunk is found in a header."""
    return chunk_id[:_ID_SIZE]


def wrong_blocks(data: bytes, place: MendPlace, first: bytes) -> list[int]:
    """Return the numbers of the blocks of `data` that do not have their check sums."""
    checks = struct.unpack_from(f"<{place.blocks}I", first)
    return [number for number, block in enumerate(_blocks(data, place.phase)) if zlib.crc32(block) != checks[number]]


def mend(data: bytes, place: MendPlace, wrong: Sequence[int], sums: Sequence[bytes]) -> bytes:
    """Return `data` with its `wrong` blocks computed anew from the others and as many sums, number 0 first.

    What comes out is a guess until its id was compared.
    """
    blocks = _blocks(data, place.phase)
    sizes = list(map(len, blocks))
    for number in wrong:
        blocks[number] = b""
    joined = b"".join(block.ljust(BLOCK_SIZE, b"\0") for block in blocks)
    count = len(wrong)
    left = [_xor(sums[number], _sum(joined, len(blocks), number)) for number in range(count)]
    for solved, number in zip(_solve(left, wrong), wrong, strict=True):
        blocks[number] = solved[: sizes[number]]
    return b"".join(blocks)


def _block_count(size: int, phase: int) -> int:
    return -(-(phase + size) // BLOCK_SIZE)


def _blocks(data: bytes, phase: int) -> list[bytes]:
    first = BLOCK_SIZE - phase
    return [data[:first], *(data[begin : begin + BLOCK_SIZE] for begin in range(first, len(data), BLOCK_SIZE))]


def _sum(joined: bytes, count: int, number: int) -> bytes:
    """Return sum `number` over `count` whole blocks: halves are added up, the later one times its power."""
    while count > 1:
        half = -(-count // 2)
        later = joined[half * BLOCK_SIZE :].ljust(half * BLOCK_SIZE, b"\0")
        if number:
            later = later.translate(_times(_POWERS[number * half % 255]))
        joined = _xor(joined[: half * BLOCK_SIZE], later)
        count = half
    return joined


def _xor(one: bytes, other: bytes) -> bytes:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).to_bytes(len(one), "little")


def _solve(left: Sequence[bytes], wrong: Sequence[int]) -> list[bytes]:
    """Solve the equations sum over k of g^(j * wrong[k]) * X[k] = left[j], by elimination."""
    rows = [([_POWERS[number * place % 255] for place in wrong], value) for number, value in enumerate(left)]
    for column in range(len(rows)):
        # Of powers of different numbers no equation is empty here, but the order may matter.
        pivot = next(row for row in range(column, len(rows)) if rows[row][0][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = _scaled(rows[column], _inverse(rows[column][0][column]))
        for row, (factors, value) in enumerate(rows):
            factor = factors[column]
            if row != column and factor:
                scaled, other = _scaled(rows[column], factor)
                rows[row] = ([one ^ two for one, two in zip(factors, scaled, strict=True)], _xor(value, other))
    return [value for _factors, value in rows]


def _scaled(row: tuple[list[int], bytes], factor: int) -> tuple[list[int], bytes]:
    table = _times(factor)
    return [table[one] for one in row[0]], row[1].translate(table)


def _doubled(value: int) -> int:
    return value << 1 ^ (_POLYNOMIAL if value & 0x80 else 0)


def _powers() -> Iterable[int]:
    value = 1
    for _ in range(255):
        yield value
        value = _doubled(value)


#: The powers of 2 in the field; they repeat after 255.
_POWERS = tuple(_powers())


def _inverse(value: int) -> int:
    return _POWERS[-_POWERS.index(value) % 255]


@cache
def _times(factor: int) -> bytes:
    """Return the table that multiplies by `factor`."""
    logarithm = _POWERS.index(factor)
    table = bytearray(256)
    for power, value in enumerate(_POWERS):
        table[value] = _POWERS[(power + logarithm) % 255]
    return bytes(table)
