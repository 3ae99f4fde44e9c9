"""Finding the files of an ext4 image without mounting it: which bytes of the image belong to which path.

Reads images whose journal is empty: extents and classic block maps, linear and hashed directories, 64 bit and
flexible block groups. It is told nothing by the kernel and needs no rights; every number of the image is checked
before it is used, and work and memory stay in proportion to the image. What it does not know it refuses by name.
Layout: Linux kernel, Documentation/filesystems/ext4; numbers are little-endian.
"""

import stat
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from sys import byteorder
from typing import NamedTuple, Protocol

from overhaul.content.delta.errors import UnsuitableImageError

_SUPERBLOCK_OFFSET = 1024
ROOT_INODE = 2
_INODE = struct.Struct("<H2xI 24x I4x 60s 8x I")
_INODE_SIZE_MIN = 128
_EXTENT_HEADER = struct.Struct("<HHHH4x")
_EXTENT = struct.Struct("<IHHI")
_EXTENT_INDEX = struct.Struct("<IIH2x")
_EXTENT_MAGIC = 0xF30A
_EXTENT_DEPTH_MAX = 5
#: An extent longer than this is allocated but not written; the rest of its length counts.
_EXTENT_WRITTEN_MAX = 0x8000
_ENTRY = struct.Struct("<IHBB")
_DIRECT_BLOCKS = 12
_PATH_MAX = 4096

_INODE_USES_EXTENTS = 0x80000
_INODE_IS_INLINE = 0x10000000

_FEATURE_64BIT = 0x80
#: Incompatible features that change nothing of what is read here, or are understood.
_KNOWN_INCOMPATIBLE = 0x2 | 0x40 | _FEATURE_64BIT | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x20000
_NAME_OF_FEATURE = {
    0x1: "compression",
    0x4: "a journal that was not replayed",
    0x8: "a separate journal device",
    0x10: "meta_bg",
    0x1000: "dirdata",
    0x10000: "encryption",
}


class ImageBytes(Protocol):
    """The bytes of an image: a mapped file, or anything that reads them when it is asked."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, place: slice, /) -> bytes:
        """Return those between two of them."""


class Extent(NamedTuple):
    """Bytes that lie together in the image."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A regular file, or a directory; a file with several names stands under the first that is met."""

    path: bytes
    inode: int
    size: int
    #: Whole blocks in the order of the file, without its holes.
    extents: tuple[Extent, ...]

    @property
    def stored_size(self) -> int:
        """Bytes of all extents."""
        return sum(extent.size for extent in self.extents)


@dataclass(frozen=True)
class Ext4Files:
    """The regular files of an image, in the order of its directories, and these directories."""

    block_size: int
    files: Sequence[ImageFile]
    directories: Sequence[ImageFile]
    #: In the order of the inodes in them.
    inode_tables: Sequence[Extent]
    inode_size: int


class Ext4Refusal(Exception):
    """The reason why the image cannot be read; becomes an `UnsuitableImageError` that names the image."""


class Inode(NamedTuple):
    mode: int
    size: int
    flags: int
    block: bytes


class Ext4Reader:
    """One pass over one image."""

    def __init__(self, data: ImageBytes) -> None:
        if len(data) < _SUPERBLOCK_OFFSET * 2 or data[_SUPERBLOCK_OFFSET + 56 : _SUPERBLOCK_OFFSET + 58] != b"\x53\xef":
            raise Ext4Refusal("it is not an ext4 file system")
        self.data = data
        field = self._superblock_field
        log_block_size = field(24, "<I")
        incompatible = field(96, "<I") if field(76, "<I") else 0
        for bit in (1 << number for number in range(32)):
            if incompatible & bit & ~_KNOWN_INCOMPATIBLE:
                raise Ext4Refusal(f"it uses {_NAME_OF_FEATURE.get(bit, f'the unknown feature {bit:#x}')}")
        if log_block_size > 6:
            raise Ext4Refusal(f"it states a block size of 2^{10 + log_block_size}")
        self.block_size = 1024 << log_block_size
        self.blocks = field(4, "<I") | (field(336, "<I") << 32 if incompatible & _FEATURE_64BIT else 0)
        if not 0 < self.blocks * self.block_size <= len(data):
            raise Ext4Refusal(f"it is cut short: it states {self.blocks} blocks of {self.block_size} bytes")
        self.inodes = field(0, "<I")
        self.inodes_per_group = field(40, "<I")
        self.inode_size = field(88, "<H") if field(76, "<I") else _INODE_SIZE_MIN
        if not self.inodes_per_group or not _INODE_SIZE_MIN <= self.inode_size <= self.block_size:
            raise Ext4Refusal("its superblock is damaged")
        self.inode_tables = self._read_inode_tables(wide=bool(incompatible & _FEATURE_64BIT))
        #: Blocks that may still be mapped; an image cannot hold more, so more is a loop.
        self.budget = 2 * self.blocks

    def _superblock_field(self, offset: int, layout: str) -> int:
        return self._number(layout, _SUPERBLOCK_OFFSET + offset)

    def _number(self, layout: str, offset: int) -> int:
        return int(struct.unpack(layout, self.data[offset : offset + struct.calcsize(layout)])[0])

    def _read_inode_tables(self, *, wide: bool) -> list[int]:
        field = self._superblock_field
        descriptor_size = field(254, "<H") if wide else 32
        if descriptor_size < (64 if wide else 32):
            raise Ext4Refusal(f"its group descriptors have {descriptor_size} bytes")
        groups = -(-self.inodes // self.inodes_per_group)
        begin = (field(20, "<I") + 1) * self.block_size
        if begin + groups * descriptor_size > len(self.data):
            raise Ext4Refusal("its group descriptors lie outside")
        tables = []
        for offset in range(begin, begin + groups * descriptor_size, descriptor_size):
            table = self._number("<I", offset + 8)
            if wide:
                table |= self._number("<I", offset + 40) << 32
            tables.append(table * self.block_size)
        return tables

    def inode(self, number: int) -> Inode:
        if not 0 < number <= self.inodes:
            raise Ext4Refusal(f"inode {number} does not exist")
        group, place = divmod(number - 1, self.inodes_per_group)
        offset = self.inode_tables[group] + place * self.inode_size
        if offset + self.inode_size > len(self.data):
            raise Ext4Refusal(f"inode {number} lies outside")
        mode, size_low, flags, block, size_high = _INODE.unpack_from(self.data[offset : offset + self.inode_size])
        return Inode(mode, size_low | size_high << 32, flags, block)

    def block(self, number: int) -> bytes:
        if not 0 < number < self.blocks:
            raise Ext4Refusal(f"block {number} lies outside")
        return self.data[number * self.block_size : (number + 1) * self.block_size]

    def spend(self, blocks: int) -> None:
        self.budget -= blocks
        if self.budget < 0:
            raise Ext4Refusal("its files claim more blocks than it has")

    def extents(self, inode: Inode) -> tuple[Extent, ...]:
        """Return where the blocks of a file or directory lie, in its order, neighbours joined."""
        if inode.flags & _INODE_IS_INLINE:
            return ()
        uses_extents = inode.flags & _INODE_USES_EXTENTS
        runs = self._tree_runs(inode.block, _EXTENT_DEPTH_MAX) if uses_extents else self._map_runs(inode)
        joined: list[tuple[int, int]] = []
        for begin, count in runs:
            self.spend(count)
            if not 0 < begin < begin + count <= self.blocks:
                raise Ext4Refusal(f"the blocks {begin} to {begin + count} of a file lie outside")
            if joined and sum(joined[-1]) == begin:
                joined[-1] = (joined[-1][0], joined[-1][1] + count)
            else:
                joined.append((begin, count))
        return tuple(Extent(begin * self.block_size, count * self.block_size) for begin, count in joined)

    def _tree_runs(self, node: bytes, depth_max: int) -> Iterator[tuple[int, int]]:
        magic, entries, _, depth = _EXTENT_HEADER.unpack_from(node)
        if magic != _EXTENT_MAGIC or depth > depth_max or (entries + 1) * _EXTENT.size > len(node):
            raise Ext4Refusal("an extent tree is damaged")
        items = node[_EXTENT_HEADER.size : (entries + 1) * _EXTENT.size]
        if depth:
            for _, low, high in _EXTENT_INDEX.iter_unpack(items):
                self.spend(1)
                yield from self._tree_runs(self.block(low | high << 32), depth - 1)
            return
        for _, length, high, low in _EXTENT.iter_unpack(items):
            yield low | high << 32, length if length <= _EXTENT_WRITTEN_MAX else length - _EXTENT_WRITTEN_MAX

    def _map_runs(self, inode: Inode) -> Iterator[tuple[int, int]]:
        """Follow a classic map: twelve blocks, then blocks of numbers one, two and three levels deep."""
        numbers = _words(inode.block)
        yield from ((number, 1) for number in numbers[:_DIRECT_BLOCKS] if number)
        for level, number in enumerate(numbers[_DIRECT_BLOCKS:], 1):
            if number:
                yield from self._indirect_runs(number, level)

    def _indirect_runs(self, number: int, level: int) -> Iterator[tuple[int, int]]:
        self.spend(1)
        for below in _words(self.block(number)):
            if below and level > 1:
                yield from self._indirect_runs(below, level - 1)
            elif below:
                yield below, 1

    def entries(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """Yield inode number and name of what a directory holds, without itself and its parent.

        The index blocks of a hashed directory look like blocks with one empty entry, so all blocks read alike.
        """
        if inode.flags & _INODE_IS_INLINE:
            raise Ext4Refusal("it has directories inside inodes (inline_data)")
        for extent in self.extents(inode):
            for offset in range(extent.offset, extent.offset + extent.size, self.block_size):
                yield from self._block_entries(self.data[offset : offset + self.block_size])

    def _block_entries(self, block: bytes) -> Iterator[tuple[int, bytes]]:
        position = 0
        while position + _ENTRY.size <= len(block):
            number, length, name_length, _ = _ENTRY.unpack_from(block, position)
            if length == 0xFFFF or (length == 0 and len(block) == 0x10000):  # how 64 KiB is written in 16 bits
                length = 0x10000
            if length < _ENTRY.size or position + length > len(block) or _ENTRY.size + name_length > length:
                raise Ext4Refusal("a directory is damaged")
            name = block[position + _ENTRY.size : position + _ENTRY.size + name_length]
            if number and name not in {b".", b".."}:
                if not name or b"/" in name or b"\0" in name:
                    raise Ext4Refusal("a directory holds an impossible name")
                yield number, name
            position += length

    def walk(self) -> Iterator[tuple[ImageFile, bool]]:
        """Yield every directory and regular file, and whether it is a directory."""
        met = {ROOT_INODE}
        waiting = [(b"", ROOT_INODE)]
        while waiting:
            directory, directory_number = waiting.pop()
            inode = self.inode(directory_number)
            if not stat.S_ISDIR(inode.mode):
                raise Ext4Refusal("a directory is damaged")
            yield ImageFile(directory, directory_number, inode.size, self.extents(inode)), True
            for number, name in self.entries(inode):
                if number in met:
                    continue
                met.add(number)
                path = directory + b"/" + name
                if len(path) > _PATH_MAX:
                    raise Ext4Refusal(f"its directories are nested too deeply at {path[:80]!r}")
                child = self.inode(number)
                if stat.S_ISDIR(child.mode):
                    waiting.append((path, number))
                elif stat.S_ISREG(child.mode):
                    yield ImageFile(path, number, child.size, self.extents(child)), False


def _words(data: bytes) -> Sequence[int]:
    words = array("I", data)
    if byteorder == "big":
        words.byteswap()
    return words


def read_ext4(data: ImageBytes, *, image: str) -> Ext4Files:
    """Return the files and directories of the ext4 file system in `data`; `image` names it in errors.

    Raises:
        UnsuitableImageError: It is not ext4, uses a feature not known here, or is damaged.
    """
    try:
        reader = Ext4Reader(data)
        found = list(reader.walk())
    except Ext4Refusal as refusal:
        raise UnsuitableImageError(image=image, reason=str(refusal)) from refusal
    return Ext4Files(
        reader.block_size,
        files=[one for one, is_directory in found if not is_directory],
        directories=[one for one, is_directory in found if is_directory],
        inode_tables=[Extent(offset, reader.inodes_per_group * reader.inode_size) for offset in reader.inode_tables],
        inode_size=reader.inode_size,
    )
