"""Members of cpio archives as initial file systems have them: where the bytes of each file lie. Pure.

Only the "newc" format is read (Linux kernel, Documentation/driver-api/early-userspace/buffer-format.rst). Nothing is
unpacked and no name is used as a path, so a damaged archive can do no more than end the list early.
"""

from collections.abc import Iterator
from typing import NamedTuple

ARCHIVE_MAGICS = (b"070701", b"070702")
_HEADER_SIZE = 110
_FIELD_SIZE = 8
_FILE_SIZE_FIELD = 6
_NAME_SIZE_FIELD = 11
_TRAILER = b"TRAILER!!!"


class Member(NamedTuple):
    """One file of an archive."""

    name: bytes
    #: Where its bytes begin, and how many there are.
    offset: int
    size: int


def members(data: bytes, begin: int = 0) -> Iterator[Member]:
    """Yield the members of the archives that lie one behind the other from `begin` on, trailers too."""
    position = begin
    while True:
        while position < len(data) and data[position] == 0:
            position += 1
        if data[position : position + 6] not in ARCHIVE_MAGICS or position + _HEADER_SIZE > len(data):
            return
        try:
            size, name_size = (
                int(data[start : start + _FIELD_SIZE], 16)
                for start in (position + 6 + _FIELD_SIZE * field for field in (_FILE_SIZE_FIELD, _NAME_SIZE_FIELD))
            )
        except ValueError:
            return
        name_begin = position + _HEADER_SIZE
        content = _aligned(name_begin + name_size)
        if name_size < 1 or content + size > len(data):
            return
        yield Member(data[name_begin : name_begin + name_size - 1], content, size)
        position = _aligned(content + size)


def end_of_archives(data: bytes) -> int:
    """Return where the first byte lies behind plain archives that `data` begins with; 0 when it does not."""
    end = 0
    for member in members(data):
        if member.name == _TRAILER:
            end = _aligned(member.offset)
    while end and end < len(data) and data[end] == 0:
        end += 1
    return end


def _aligned(position: int) -> int:
    return -(-position // 4) * 4
