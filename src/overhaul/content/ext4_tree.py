"""A directory of an ext4 image with owners, permissions, links, attributes and contents, without mounting it.

`content.ext4` knows where bytes lie; this adds what an inode says of its object. It needs no rights and no loop
device, so whoever may read an image can publish it, and a device can look into its slots. Files are given with their
holes filled; what is allocated but not written reads as zeros, as the kernel has it.
"""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from overhaul.content.delta.errors import UnsuitableImageError
from overhaul.content.ext4 import ROOT_INODE, Ext4Reader, Ext4Refusal, ImageBytes, Inode

_USES_EXTENTS = 0x80000
_FAST_LINK_MAX = 60
_GOOD_OLD_INODE_SIZE = 128
_XATTR_MAGIC = 0xEA020000
_XATTR_ENTRY = struct.Struct("<BBHIII")
_XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
}
#: Tags of access control entries that name somebody.
_ACL_WITH_ID = frozenset({0x02, 0x08})
_ACL_NOBODY = 0xFFFFFFFF
_EXTENT_HEADER = struct.Struct("<HHHH4x")
_EXTENT = struct.Struct("<IHHI")
_EXTENT_INDEX = struct.Struct("<IIH2x")
_WRITTEN_MAX = 0x8000
_DEPTH_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ext4Object:
    """One object of an image."""

    #: Relative to the directory asked for, which is the empty path.
    path: bytes
    #: Type and permissions, as in st_mode.
    mode: int
    uid: int
    gid: int
    size: int
    inode: int
    #: Of a symbolic link.
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Ext4Folder:
    """One directory of an image, and everything below it.

    Raises:
        UnsuitableImageError: The image is not ext4, uses a feature not known here, or is damaged.
    """

    def __init__(self, data: ImageBytes, folder: bytes, *, image: str) -> None:
        self._image = image
        try:
            self._reader = _TreeReader(data)
            self.objects = {one.path: one for one in self._reader.objects(folder)}
        except Ext4Refusal as refusal:
            raise UnsuitableImageError(image=image, reason=str(refusal)) from refusal
        except struct.error as error:
            raise UnsuitableImageError(image=image, reason="an inode is damaged") from error

    def read(self, one: Ext4Object) -> bytes:
        """Return the content of a regular file.

        Raises:
            UnsuitableImageError: Its extents are damaged.
        """
        try:
            return self._reader.content(self._reader.inode(one.inode))
        except Ext4Refusal as refusal:
            raise UnsuitableImageError(image=self._image, reason=str(refusal)) from refusal


class _TreeReader(Ext4Reader):
    def objects(self, folder: bytes) -> Iterator[Ext4Object]:
        """Yield `folder` and what is below it; nothing when there is no such directory."""
        number: int | None = ROOT_INODE
        for part in folder.split(b"/"):
            parent = self.inode(number or 0)
            if not stat.S_ISDIR(parent.mode):
                return
            number = next((one for one, name in self.entries(parent) if name == part), None)
            if number is None:
                return
        met: set[int] = set()
        waiting = [(b"", number or 0)]
        while waiting:
            path, number = waiting.pop()
            inode = self.inode(number)
            yield self._object(path, number, inode)
            if not stat.S_ISDIR(inode.mode):
                continue
            if number in met:
                raise Ext4Refusal("a directory is inside itself")
            met.add(number)
            prefix = path + b"/" if path else b""
            waiting += [(prefix + name, child) for child, name in self.entries(inode)]
            # A loop is met before this; it bounds what a damaged image makes of hard links.
            self.spend(1)

    def content(self, inode: Inode) -> bytes:
        """Return the bytes of a file or a long link."""
        if inode.size > len(self.data):
            raise Ext4Refusal("a file is bigger than the image")
        if not inode.flags & _USES_EXTENTS:
            data = b"".join(self.data[offset : offset + size] for offset, size in self.extents(inode))
            if len(data) < inode.size:
                raise Ext4Refusal("a file in the old format has holes")
            return data[: inode.size]
        content = bytearray(inode.size)
        for logical, begin, count in self._leaves(inode.block, _DEPTH_MAX):
            self.spend(count)
            if not 0 < begin < begin + count <= self.blocks:
                raise Ext4Refusal(f"the blocks {begin} to {begin + count} of a file lie outside")
            place = logical * self.block_size
            end = min(place + count * self.block_size, inode.size)
            if place < end:
                offset = begin * self.block_size
                content[place:end] = self.data[offset : offset + end - place]
        return bytes(content)

    def _leaves(self, node: bytes, depth_max: int) -> Iterator[tuple[int, int, int]]:
        """Yield (block of the file, block of the image, count) of what is written."""
        magic, entries, _, depth = _EXTENT_HEADER.unpack_from(node)
        if magic != 0xF30A or depth > depth_max or (entries + 1) * _EXTENT.size > len(node):
            raise Ext4Refusal("an extent tree is damaged")
        items = node[_EXTENT_HEADER.size : (entries + 1) * _EXTENT.size]
        if depth:
            for _, low, high in _EXTENT_INDEX.iter_unpack(items):
                self.spend(1)
                yield from self._leaves(self.block(low | high << 32), depth - 1)
            return
        for logical, length, high, low in _EXTENT.iter_unpack(items):
            if 0 < length <= _WRITTEN_MAX:
                yield logical, low | high << 32, length

    def _object(self, path: bytes, number: int, inode: Inode) -> Ext4Object:
        group, place = divmod(number - 1, self.inodes_per_group)
        offset = self.inode_tables[group] + place * self.inode_size
        raw = self.data[offset : offset + self.inode_size]
        uid, gid = struct.unpack_from("<H", raw, 2)[0], struct.unpack_from("<H", raw, 24)[0]
        uid_high, gid_high = struct.unpack_from("<HH", raw, 120)
        target = b""
        if stat.S_ISLNK(inode.mode):
            is_fast = inode.size < _FAST_LINK_MAX and not inode.flags & _USES_EXTENTS
            target = inode.block[: inode.size] if is_fast else self.content(inode)
        return Ext4Object(
            path=path,
            mode=inode.mode,
            uid=uid | uid_high << 16,
            gid=gid | gid_high << 16,
            size=inode.size,
            inode=number,
            target=target,
            xattrs=tuple(sorted(self._xattrs(raw))),
        )

    def _xattrs(self, raw: bytes) -> Iterator[tuple[bytes, bytes]]:
        if len(raw) > _GOOD_OLD_INODE_SIZE:
            begin = _GOOD_OLD_INODE_SIZE + int(struct.unpack_from("<H", raw, _GOOD_OLD_INODE_SIZE)[0])
            if begin + 4 <= len(raw) and struct.unpack_from("<I", raw, begin)[0] == _XATTR_MAGIC:
                yield from _entries(raw[begin + 4 :], 0)
        block = int(struct.unpack_from("<I", raw, 104)[0]) | int(struct.unpack_from("<H", raw, 118)[0]) << 32
        if block:
            data = self.block(block)
            if struct.unpack_from("<I", data, 0)[0] != _XATTR_MAGIC:
                raise Ext4Refusal("a block of attributes is damaged")
            yield from _entries(data, 32)


def _entries(area: bytes, position: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the attributes of an area; values lie at offsets from its begin."""
    while position + _XATTR_ENTRY.size <= len(area):
        length, index, offset, elsewhere, size, _ = _XATTR_ENTRY.unpack_from(area, position)
        if not (length or index):
            return
        name = area[position + _XATTR_ENTRY.size : position + _XATTR_ENTRY.size + length]
        prefix = _XATTR_PREFIXES.get(index)
        if prefix is None or elsewhere or len(name) != length or offset + size > len(area):
            raise Ext4Refusal("it has attributes in a form not known here")
        value = area[offset : offset + size]
        yield prefix + name, _access_list(value) if index in {2, 3} else value
        position += (_XATTR_ENTRY.size + length + 3) & ~3


def _access_list(stored: bytes) -> bytes:
    """Return an access control list as the kernel shows it: every entry has an id there."""
    if struct.unpack_from("<I", stored)[0] != 1:
        raise Ext4Refusal("it has access control lists in a form not known here")
    shown = [struct.pack("<I", 2)]
    position = 4
    while position < len(stored):
        tag, rights = struct.unpack_from("<HH", stored, position)
        position += 4
        identity = _ACL_NOBODY
        if tag in _ACL_WITH_ID:
            (identity,) = struct.unpack_from("<I", stored, position)
            position += 4
        shown.append(struct.pack("<HHI", tag, rights, identity))
    return b"".join(shown)
