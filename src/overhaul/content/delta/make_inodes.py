"""Telling inode tables without their check sums when a release is published."""

from collections.abc import Iterator

from overhaul.content.delta.bytesource import ImageBytes
from overhaul.content.delta.compressed import PackedPart, find_recoder
from overhaul.content.delta.grouping import PackedFile
from overhaul.content.delta.inodes import INODE_SIZE, INODES_FORM, checksum_seed, trailer, without_sums
from overhaul.content.delta.pairing import Pair
from overhaul.content.delta.pieces import Claims
from overhaul.content.ext4 import Ext4Files, Extent, ImageFile

_SUPERBLOCK = 1024
#: Check sums of fewer inodes do not pay for a group.
_SIZE_MIN = 256 * 1024


def pack_inode_tables(
    old_files: Ext4Files, new_files: Ext4Files, claims: Claims, old: ImageBytes, new: ImageBytes
) -> list[PackedFile]:
    """Claim the inode tables that changed and return them as what is packed again; as files they have no path."""
    seed = checksum_seed(new.read(_SUPERBLOCK, _SUPERBLOCK))
    if seed is None or {old_files.inode_size, new_files.inode_size} != {INODE_SIZE}:
        return []
    tables = list(_changed_tables(old_files, new_files, old, new, seed=seed))
    if sum(table.pair.new.size for table in tables) < _SIZE_MIN:
        return []
    return [table for table in tables if claims.take(table.pair.new.extents)]


def _changed_tables(
    old_files: Ext4Files, new_files: Ext4Files, old: ImageBytes, new: ImageBytes, *, seed: int
) -> Iterator[PackedFile]:
    first = 1
    for number, table in enumerate(new_files.inode_tables):
        data = _used(new, table, new_files.block_size)
        reference, old_data = None, b""
        if number < len(old_files.inode_tables):
            reference = old_files.inode_tables[number]
            old_data = _used(old, reference, old_files.block_size)
        if data and (reference is None or (reference.offset, old_data) != (table.offset, data)):
            part = PackedPart(INODES_FORM, 0, len(data), without_sums(data) + trailer(seed=seed, first=first))
            recoder = find_recoder(part, data)
            old_part = None
            if old_data:
                old_part = PackedPart(INODES_FORM, 0, len(old_data), without_sums(old_data))
            if recoder is not None:
                pair = Pair(_file(table, data), _file(reference, old_data) if reference else None, is_same=False)
                yield PackedFile(pair, part, recoder, old_part, head=b"", tail=b"")
        first += table.size // INODE_SIZE


def _used(image: ImageBytes, table: Extent, block_size: int) -> bytes:
    """Return the blocks of a table up to the last one that holds more than zeros."""
    data = image.read(*table)
    return data[: -(-len(data.rstrip(b"\0")) // block_size) * block_size]


def _file(table: Extent, data: bytes) -> ImageFile:
    return ImageFile(b"", 0, len(data), (Extent(table.offset, len(data)),) if data else ())
