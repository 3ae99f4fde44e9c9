"""OSTree's file objects: how their content is named, and the `.filez` form archive repositories keep.

    name      SHA-256 of: size of the header (u32 big-endian), four zero bytes, header `(uuuusa(ayay))`, content
    .filez    size of its header, four zero bytes, header `(tuuuusa(ayay))`, content as a raw DEFLATE stream

Both headers hold owner, mode, a zero (device number) and, for a symbolic link, its target; links have no content.
The second begins with the content's size. Numbers in headers are big-endian. Compressed bytes are not covered by the
name, so whoever unpacks must hash; `Filez.content` gives at most as many bytes as the header says.
"""

import hashlib
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from overhaul.dialects.ostree.errors import MalformedOstreeDataError
from overhaul.dialects.ostree.gvariant import big32, big64, decode, encode
from overhaul.dialects.ostree.objects import Xattrs, pack_xattrs, unpack_xattrs

_HEADER_TYPE = "(uuuusa(ayay))"
_ZHEADER_TYPE = "(tuuuusa(ayay))"
_FRAME = struct.Struct(">II")
#: OSTree itself bounds headers by the limit of metadata; extended attributes of a file fit in far less.
_MAX_HEADER_SIZE = 1 << 20
_PIECE_SIZE = 128 * 1024
_RAW_DEFLATE = -15
_MODE_BITS = 0o7777


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHeader:
    """What a file or symbolic link is besides its content and name."""

    uid: int
    gid: int
    #: With S_IFREG or S_IFLNK.
    mode: int
    #: Of a symbolic link, else empty.
    target: str = ""
    xattrs: Xattrs = ()

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.mode)


def framed_header(header: FileHeader) -> bytes:
    """Return what is hashed before a file's content."""
    data = encode(_HEADER_TYPE, _fields(header))
    return _FRAME.pack(len(data), 0) + data


def content_hash(header: FileHeader) -> "hashlib._Hash":
    """Return the SHA-256 that names a file object once it is fed the content."""
    return hashlib.sha256(framed_header(header))


def file_checksum(header: FileHeader, content: bytes | memoryview = b"") -> bytes:
    """Return the name of a file object whose content is in memory."""
    digest = content_hash(header)
    digest.update(content)
    return digest.digest()


def filez_header(header: FileHeader, size: int) -> bytes:
    """Return the beginning of a `.filez` whose content has `size` bytes unpacked."""
    data = encode(_ZHEADER_TYPE, (big64(size), *_fields(header)))
    return _FRAME.pack(len(data), 0) + data


def pack_filez(header: FileHeader, content: bytes | memoryview, *, level: int = 6) -> list[bytes]:
    """Return the pieces of a `.filez`; with level 6 they are the bytes that `ostree` itself writes."""
    if header.is_link:
        return [filez_header(header, 0)]
    packer = zlib.compressobj(level, zlib.DEFLATED, _RAW_DEFLATE)
    # Files of any size are compressed without the interpreter's lock, in one call that frees it once.
    return [filez_header(header, len(content)), packer.compress(content), packer.flush()]


def _fields(header: FileHeader) -> tuple[object, ...]:
    numbers = (big32(header.uid), big32(header.gid), big32(header.mode), 0)
    return (*numbers, header.target, pack_xattrs(header.xattrs))


@dataclass(frozen=True, slots=True)
class Filez:
    """A `.filez` that is being read."""

    header: FileHeader
    #: Of the content, unpacked.
    size: int
    _stream: BinaryIO
    _what: str

    def content(self) -> Iterator[bytes]:
        """Yield the content in pieces of bounded size; to be called once.

        Raises:
            MalformedOstreeDataError: The stream is damaged, cut short, or holds more or less than the header says.
        """
        left = self.size
        if self.header.is_link:
            self._end(self._stream.read(1))
            return
        unpacker = zlib.decompressobj(_RAW_DEFLATE)
        while not unpacker.eof:
            data = unpacker.unconsumed_tail or self._stream.read(_PIECE_SIZE)
            try:
                # One byte more than is left shows content that is too long.
                piece = unpacker.decompress(data, min(_PIECE_SIZE, left + 1))
            except zlib.error as error:
                raise MalformedOstreeDataError(what=self._what, reason="its content cannot be unpacked") from error
            if not data and not piece and not unpacker.eof:
                raise MalformedOstreeDataError(what=self._what, reason="it is cut short")
            left -= len(piece)
            if left < 0:
                break
            if piece:
                yield piece
        if left:
            raise MalformedOstreeDataError(what=self._what, reason=f"its content does not have {self.size} bytes")
        self._end(unpacker.unused_data or self._stream.read(1))

    def _end(self, rest: bytes) -> None:
        if rest:
            raise MalformedOstreeDataError(what=self._what, reason="bytes follow its end")


def open_filez(stream: BinaryIO, *, what: str) -> Filez:
    """Read the header of a `.filez`; `what` names it in errors.

    Raises:
        MalformedOstreeDataError: It is none, or is neither a file nor a symbolic link.
    """
    frame = stream.read(_FRAME.size)
    if len(frame) != _FRAME.size:
        raise MalformedOstreeDataError(what=what, reason="it is cut short")
    length, zero = _FRAME.unpack(frame)
    if length > _MAX_HEADER_SIZE or zero:
        raise MalformedOstreeDataError(what=what, reason=f"its header has {length} bytes")
    data = stream.read(length)
    if len(data) != length:
        raise MalformedOstreeDataError(what=what, reason="it is cut short")
    size, *fields = decode(_ZHEADER_TYPE, data, what=what)
    header = _header(tuple(fields), what=what)
    if header.is_link and size:
        raise MalformedOstreeDataError(what=what, reason="a symbolic link has content")
    return Filez(header, big64(size), stream, what)


def checked_header(header: FileHeader, *, what: str) -> FileHeader:
    """Return `header`, which came from outside.

    Raises:
        MalformedOstreeDataError: It is neither that of a regular file nor that of a symbolic link.
    """
    kind = stat.S_IFMT(header.mode)
    if kind not in (stat.S_IFREG, stat.S_IFLNK) or header.mode & ~(kind | _MODE_BITS):
        raise MalformedOstreeDataError(what=what, reason=f"{header.mode:o} is no mode of a file or symbolic link")
    if header.is_link != bool(header.target):
        raise MalformedOstreeDataError(what=what, reason="only a symbolic link has a target, and each has one")
    return header


def _header(fields: tuple[object, ...], *, what: str) -> FileHeader:
    uid, gid, mode, rdev, target, xattrs = fields
    assert isinstance(uid, int) and isinstance(gid, int) and isinstance(mode, int)  # noqa: S101, PT018
    assert isinstance(target, str) and isinstance(xattrs, tuple)  # noqa: S101, PT018
    if rdev:
        raise MalformedOstreeDataError(what=what, reason="it is a device node")
    header = FileHeader(
        uid=big32(uid), gid=big32(gid), mode=big32(mode), target=target, xattrs=unpack_xattrs(xattrs, what=what)
    )
    return checked_header(header, what=what)
