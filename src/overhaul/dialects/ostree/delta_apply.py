"""Making objects of the operations in a static delta's part. No I/O of its own.

    S  whole object: metadata (length, offset), file (mode, xattrs, length, offset); a link's data is its target
    o  open a file (mode, xattrs, size)          w  write (length, offset) from the source, else from the data
    r  set the source (offset of its checksum)   R  no source any more
    B  patch the source (offset, length)         c  close the file

Numbers of operations are unsigned LEB128. A patch is a row of records, three sign-magnitude numbers of 8 bytes (bytes
to add to the source's, bytes to copy, distance to go in the source) and then those bytes. Nothing here is trusted:
offsets and sizes are checked before they are used, and every object is hashed while it is written; whoever takes it
(`DeltaObjects`) keeps it only when it is closed well.
"""

import hashlib
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from overhaul.content.delta.covers import correct
from overhaul.dialects.ostree.errors import MalformedOstreeDataError, WrongChecksumError
from overhaul.dialects.ostree.filez import FileHeader, checked_header, content_hash
from overhaul.dialects.ostree.gvariant import big32, decode
from overhaul.dialects.ostree.objects import (
    CHECKSUM_SIZE,
    MAX_METADATA_SIZE,
    ObjectName,
    ObjectType,
    check_object,
    unpack_xattrs,
)
from overhaul.dialects.ostree.static_delta import PAYLOAD_TYPE, DeltaPart

_PIECE_SIZE = 256 * 1024
_RECORD = struct.Struct("<QQQ")
#: A source up to this is held in memory while it is patched.
_HELD_SIZE = 8 << 20
#: Patches jump about, so reading far ahead would be in vain.
_AHEAD_SIZE = 16 * 1024
_FROM_THE_START = array("I", [0])
_SIGN = 1 << 63


class DeltaSource(Protocol):
    """An old file object's content, read at random."""

    @property
    def size(self) -> int:
        """Bytes of the content."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes from `offset`, which are there."""

    def close(self) -> None:
        """Let it go."""


class FileSink(Protocol):
    """Takes one file object's content, in order."""

    def write(self, data: bytes | memoryview) -> None:
        """Take the next bytes."""

    def finish(self) -> None:
        """Keep the object: its bytes are those its name promises."""

    def discard(self) -> None:
        """Forget what was written."""


class DeltaObjects(Protocol):
    """Where a delta's objects go to and come from."""

    def open_source(self, checksum: bytes) -> DeltaSource:
        """Open an old file's content; raise `DeltaSourceMissingError` when it is not here."""

    def put_metadata(self, name: ObjectName, data: bytes) -> None:
        """Keep a metadata object, which was checked."""

    def open_file(self, checksum: bytes, header: FileHeader, size: int) -> FileSink:
        """Begin to write a file object."""


class Payload(Protocol):
    """A part's payload, unpacked; its data may be large, so it need not be in memory."""

    #: (uid, gid, mode), big-endian as they came.
    modes: Sequence[tuple[int, int, int]]
    xattr_sets: Sequence[Sequence[tuple[bytes, bytes]]]
    operations: bytes
    data_size: int

    def read(self, offset: int, length: int) -> memoryview:
        """Return a piece of the data that is there."""


class MemoryPayload:
    """A payload that is in memory as a whole."""

    def __init__(self, payload: bytes, *, what: str) -> None:
        self.modes, self.xattr_sets, data, self.operations = decode(PAYLOAD_TYPE, payload, what=what)
        self._data = memoryview(data)
        self.data_size = len(data)

    def read(self, offset: int, length: int) -> memoryview:
        """Return a piece of the data that is there."""
        return self._data[offset : offset + length]


def apply_part(part: DeltaPart, payload: bytes | Payload, objects: DeltaObjects, *, what: str) -> None:
    """Carry out the operations in a part's `payload`; every object it lists is given to `objects`.

    Raises:
        MalformedOstreeDataError, WrongChecksumError: The operations are none, or make other objects.
        DeltaSourceMissingError: An old object is not here.
    """
    opened = MemoryPayload(payload, what=what) if isinstance(payload, bytes) else payload
    machine = _Machine(part, opened, objects, what)
    try:
        machine.run()
    finally:
        machine.close()


class _Machine:
    def __init__(self, part: DeltaPart, payload: Payload, objects: DeltaObjects, what: str) -> None:
        self._payload = payload
        self._modes = [tuple(map(big32, mode)) for mode in payload.modes]
        self._xattr_sets = [unpack_xattrs(packed, what=what) for packed in payload.xattr_sets]
        self._operations = iter(payload.operations)
        self._waiting: Iterator[ObjectName] = iter(part.objects)
        self._left = part.unpacked_size
        self._objects = objects
        self._what = what
        self._source: DeltaSource | None = None
        self._sink: FileSink | None = None
        self._name = ObjectName(ObjectType.FILE, b"")
        self._hash = hashlib.sha256()
        self._size = 0

    def run(self) -> None:
        steps = {
            ord("S"): self._splice,
            ord("o"): self._open,
            ord("w"): self._write,
            ord("r"): self._set_source,
            ord("R"): self._drop_source,
            ord("c"): self._close_file,
            ord("B"): self._patch,
        }
        for code in self._operations:
            step = steps.get(code)
            if step is None:
                raise self._error(f"it has the unknown operation {code}")
            step()
        if self._sink is not None or next(self._waiting, None) is not None:
            raise self._error("it ends before its last object")

    def close(self) -> None:
        """Let go of what is open."""
        self._drop_source()
        if self._sink is not None:
            self._sink.discard()
            self._sink = None

    def _error(self, reason: str) -> MalformedOstreeDataError:
        return MalformedOstreeDataError(what=self._what, reason=reason)

    def _number(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            byte: int | None = next(self._operations, None)
            if byte is None:
                break
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise self._error("a number of its operations does not end")

    def _piece(self, length: int, offset: int) -> memoryview:
        if offset + length > self._payload.data_size:
            raise self._error("an operation reaches outside its data")
        return self._payload.read(offset, length)

    def _next_object(self) -> ObjectName:
        name = next(self._waiting, None)
        if name is None:
            raise self._error("it has more objects than it says")
        return name

    def _header(self) -> FileHeader:
        mode, xattrs = self._number(), self._number()
        if mode >= len(self._modes) or xattrs >= len(self._xattr_sets):
            raise self._error("a file has no mode or extended attributes")
        uid, gid, bits = self._modes[mode]
        return FileHeader(uid=uid, gid=gid, mode=bits, xattrs=self._xattr_sets[xattrs])

    def _splice(self) -> None:
        self._expect_no_file()
        name = self._next_object()
        if name.type is not ObjectType.FILE:
            data = self._piece(self._number(), self._number())
            if len(data) > MAX_METADATA_SIZE:
                raise self._error("a metadata object is too big")
            check_object(name, data)
            self._objects.put_metadata(name, bytes(data))
            return
        header = self._header()
        content = self._piece(self._number(), self._number())
        if header.is_link:
            try:
                header = replace(header, target=bytes(content).decode())
            except UnicodeDecodeError as error:
                raise self._error("the target of a link is not UTF-8") from error
            content = content[:0]
        self._begin(name, checked_header(header, what=self._what), len(content))
        self._put(content)
        self._close_file()

    def _open(self) -> None:
        self._expect_no_file()
        name = self._next_object()
        if name.type is not ObjectType.FILE:
            raise self._error("a metadata object is opened as a file")
        header = checked_header(self._header(), what=self._what)
        self._begin(name, header, self._number())

    def _begin(self, name: ObjectName, header: FileHeader, size: int) -> None:
        if size > self._left:
            raise self._error("its files are bigger than it says")
        self._left -= size
        self._name = name
        self._size = size
        self._hash = content_hash(header)
        self._sink = self._objects.open_file(name.checksum, header, size)

    def _expect_no_file(self) -> None:
        if self._sink is not None:
            raise self._error("a file is begun inside another")

    def _put(self, data: bytes | memoryview) -> None:
        if self._sink is None or len(data) > self._size:
            raise self._error("it writes more than a file holds")
        self._size -= len(data)
        self._hash.update(data)
        self._sink.write(data)

    def _write(self) -> None:
        length, offset = self._number(), self._number()
        if self._source is None:
            self._put(self._piece(length, offset))
            return
        if offset + length > self._source.size or length > self._size:
            raise self._error("a copy reaches outside its source or file")
        while length:
            size = min(length, _PIECE_SIZE)
            self._put(self._source.read(offset, size))
            offset += size
            length -= size

    def _set_source(self) -> None:
        self._drop_source()
        checksum = bytes(self._piece(CHECKSUM_SIZE, self._number()))
        self._source = self._objects.open_source(checksum)

    def _drop_source(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    def _patch(self) -> None:
        offset, length = self._number(), self._number()
        patch = self._piece(length, offset)
        source = self._source
        if source is None:
            raise self._error("it patches without a source")
        window = _Window(source)
        # A source that fits is held: a record then costs no call at all.
        held = source.read(0, source.size) if source.size <= _HELD_SIZE else b""
        place = 0
        at = 0
        left = self._size
        # Records are short, so what they make is summed up in larger pieces: old bytes, and what is added to them.
        old, added = bytearray(), bytearray()
        while left:
            if at + _RECORD.size > len(patch):
                raise self._error("a patch is cut short")
            add, copy, seek = _RECORD.unpack_from(patch, at)
            at += _RECORD.size
            size = add + copy
            # The two sizes may not be negative, so with their sign they are far above any.
            if size > left or at + size > len(patch):
                raise self._error("a patch writes more than its file or itself holds")
            if not size and not seek:
                raise self._error("a patch stands still")
            left -= size
            if size <= _PIECE_SIZE:
                end = place + add
                old += held[place:end] if place >= 0 and end <= len(held) else window.read(place, add)
                old += bytes(copy)
                added += patch[at : at + size]
                if len(added) >= _PIECE_SIZE:
                    self._put(_sum(old, added))
                    old, added = bytearray(), bytearray()
            else:
                self._put(_sum(old, added))
                old, added = bytearray(), bytearray()
                for begin in range(0, add, _PIECE_SIZE):
                    end = min(begin + _PIECE_SIZE, add)
                    self._put(_sum(window.read(place + begin, end - begin), patch[at + begin : at + end]))
                self._put(patch[at + add : at + size])
            at += size
            place += add + _signed(seek)
        self._put(_sum(old, added))

    def _close_file(self) -> None:
        if self._sink is None or self._size:
            raise self._error("a file is closed before its end")
        self._drop_source()
        if self._hash.digest() != self._name.checksum:
            raise WrongChecksumError(
                what=f"object {self._name}", expected=self._name.checksum.hex(), actual=self._hash.hexdigest()
            )
        sink, self._sink = self._sink, None
        sink.finish()


class _Window:
    """A source read ahead: patches walk through it in many small steps."""

    def __init__(self, source: DeltaSource) -> None:
        self._source = source
        self._begin = 0
        self._held = b""

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset`; zeros where there is no old byte, like bspatch."""
        first, last = max(0, offset), min(offset + size, self._source.size)
        if first >= last:
            return bytes(size)
        if first < self._begin or last > self._begin + len(self._held):
            self._begin = first
            self._held = self._source.read(first, max(last - first, min(_AHEAD_SIZE, self._source.size - first)))
        found = self._held[first - self._begin : last - self._begin]
        return found if len(found) == size else bytes(first - offset) + found + bytes(offset + size - last)


def _sum(old: bytearray | bytes, added: bytearray | memoryview) -> bytes:
    """Return the bytewise sum, made without the interpreter's lock where the kernel was built."""
    return correct(bytes(old), bytes(added), _FROM_THE_START, array("I", [len(added)]))


def _signed(value: int) -> int:
    return -(value & ~_SIGN) if value & _SIGN else value
