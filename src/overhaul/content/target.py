"""The bytes of slots and seeds: files or block devices, read and written at offsets.

An `ImageReader` reads a seed, or a slot that is only looked at. A `SlotTarget` is the slot an image is assembled
into. It promises that

* it never writes outside the image, never creates a slot that is not there, and never opens a block device that
  is mounted or otherwise held;
* ranges made zero become holes where the medium can have them, and ranges that are zero already are not written;
* after `sync`, a reader from `medium_reader` sees what the medium holds and not what the page cache remembers.

A regular file of size 0 is a slot that has not been given a size yet and takes the image's; any other slot keeps
its size.
"""

import ctypes
import errno
import fcntl
import os
import stat
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from overhaul.errors import DeviceError

#: Zeros to compare with and to write; as long as the longest piece that is looked at together.
ZEROS = bytes(1024 * 1024)
_UNREADABLE_PIECE = 4096
_BLOCK = 4096
#: _IO(0x12, 127) of linux/fs.h.
_BLKZEROOUT = 0x127F
_FALLOC_KEEP_SIZE_PUNCH_HOLE = 0x03
#: So much written data starts a flush beside the work, so that the last flush has little left to do and a power
#: cut costs little.
_FLUSH_BYTES = 64 * 1024 * 1024


class SlotUnusableError(DeviceError):
    """A slot cannot be opened, read or written."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The slot {path} cannot be used ({reason}); check the device and its configuration.")


class SlotTooSmallError(DeviceError):
    """The image does not fit."""

    def __init__(self, *, path: Path, size_bytes: int, image_bytes: int) -> None:
        self.path = path
        self.size_bytes = size_bytes
        self.image_bytes = image_bytes
        super().__init__(
            f"The slot {path} holds {size_bytes} bytes, but the image has {image_bytes}; "
            "enlarge the slot or choose a smaller image."
        )


class ImageReader:
    """Reads an image from a file or block device."""

    def __init__(self, path: Path, *, flags: int = os.O_RDONLY) -> None:
        self.path = path
        self._descriptor = _open(path, flags)
        #: Unlike the size in a directory entry this is right for block devices, too.
        self.size = os.lseek(self._descriptor, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)

    @property
    def descriptor(self) -> int:
        """The open file, for calls between two of them."""
        return self._descriptor

    def read(self, offset: int, size: int, /) -> bytes:
        """Return exactly `size` bytes from `offset` on.

        What lies behind the end, or on a part of the medium that cannot be read, comes as zeros: whoever reads a
        slot or a seed checks what came, and mends it from elsewhere.
        """
        try:
            data = os.pread(self._descriptor, size, offset)
        except OSError:
            return self._read_around(offset, size)
        while len(data) < size:
            more = os.pread(self._descriptor, size - len(data), offset + len(data))
            if not more:
                return data.ljust(size, b"\0")
            data += more
        return data

    def _read_around(self, offset: int, size: int) -> bytes:
        data = bytearray(size)
        for position in range(0, size, _UNREADABLE_PIECE):
            try:
                piece = os.pread(self._descriptor, min(_UNREADABLE_PIECE, size - position), offset + position)
            except OSError:
                continue
            data[position : position + len(piece)] = piece
        return bytes(data)

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset` on and return how many bytes there were before the end.

        Raises:
            OSError: The medium cannot be read here.
        """
        filled = 0
        # A direct read that begins at an unaligned end would be an error, so the end is not asked for.
        while filled < len(buffer) and offset + filled < self.size:
            amount = os.preadv(self._descriptor, [buffer[filled:]], offset + filled)
            if not amount:
                break
            filled += amount
        return filled

    def data_runs(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of what is not a hole between `start` and `end`, ascending."""
        position = start
        while position < end:
            try:
                begin = os.lseek(self._descriptor, position, os.SEEK_DATA)
                position = os.lseek(self._descriptor, begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:  # not "nothing but a hole from here on": it knows no holes
                    yield position, end
                return
            if begin < end:
                yield begin, min(position, end)


class MediumReader(ImageReader):
    """Reads past the page cache where the medium allows it.

    Offsets and buffers must then be aligned to 4096 bytes; `is_direct` tells.
    """

    def __init__(self, path: Path) -> None:
        try:
            super().__init__(path, flags=os.O_RDONLY | os.O_DIRECT)
            self.is_direct = True
        except SlotUnusableError as error:
            # File systems in memory, and some FUSE and network ones, have no direct reads.
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EINVAL:
                raise
            super().__init__(path)
            self.is_direct = False
            # What other descriptors left in the cache.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


class SlotTarget(ImageReader):
    """The slot an image of `image_size` bytes is assembled into.

    Raises:
        SlotTooSmallError: The image does not fit.
        SlotUnusableError: There is no such slot, or somebody uses it.
    """

    def __init__(self, path: Path, *, image_size: int) -> None:
        self._is_device = _is_device(path)
        # On a block device this refuses what is mounted or held by a loop, RAID or swap.
        super().__init__(path, flags=os.O_RDWR | (os.O_EXCL if self._is_device else 0))
        self.image_size = image_size
        self.bytes_written = 0
        self._flusher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="flush")
        self._flush: Future[None] | None = None
        self._unflushed_bytes = 0
        self._lock = threading.Lock()
        if self.size == 0 and not self._is_device:
            os.ftruncate(self._descriptor, image_size)
            self.size = image_size
        if self.size < image_size:
            self.close()
            raise SlotTooSmallError(path=path, size_bytes=self.size, image_bytes=image_size)

    def close(self) -> None:
        """Wait for a flush under way and give the slot back."""
        self._flusher.shutdown()
        super().close()

    def write(self, offset: int, data: bytes | memoryview, /) -> None:
        """Put `data` at `offset`."""
        view = memoryview(data)
        self._check_inside(offset, len(view))
        try:
            while view:
                amount = os.pwrite(self._descriptor, view, offset)
                offset += amount
                view = view[amount:]
        except OSError as error:
            raise self._unusable(error) from error
        self._count(len(data))

    def copy_from(self, source: ImageReader, source_offset: int, offset: int, size: int) -> None:
        """Put `size` bytes of `source` at `offset`, inside the kernel where it can do that."""
        self._check_inside(offset, size)
        left = size
        try:
            while left:
                amount = os.copy_file_range(
                    source.descriptor, self._descriptor, left, source_offset + size - left, offset + size - left
                )
                if not amount:
                    break
                left -= amount
        except OSError:
            # Devices, other file systems and unreadable places: what is left goes by hand, errors show there.
            pass
        self._count(size - left)
        while left:
            piece = min(left, len(ZEROS))
            self.write(offset + size - left, source.read(source_offset + size - left, piece))
            left -= piece

    def zero(self, offset: int, size: int) -> None:
        """Make a range zero where it is not."""
        self._check_inside(offset, size)
        buffer = bytearray(len(ZEROS))
        for begin, run_end in self.data_runs(offset, offset + size):
            dirty_from: int | None = None
            for position in range(begin, run_end, len(ZEROS)):
                if self._is_zero(memoryview(buffer)[: run_end - position], position):
                    if dirty_from is not None:
                        self._clear(dirty_from, position)
                        dirty_from = None
                elif dirty_from is None:
                    dirty_from = position
            if dirty_from is not None:
                self._clear(dirty_from, run_end)

    def _is_zero(self, buffer: memoryview, offset: int) -> bool:
        try:
            self.read_into(buffer, offset)
        except OSError:
            # Writing is what makes a medium replace a block it cannot read.
            return False
        return ZEROS.startswith(buffer)

    def sync(self) -> None:
        """Make everything written durable."""
        try:
            if self._flush is not None:
                self._flush.result()
                self._flush = None
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise self._unusable(error) from error

    def medium_reader(self) -> MediumReader:
        """Return a reader of what the medium holds; call `sync` first."""
        return MediumReader(self.path)

    def _clear(self, begin: int, end: int) -> None:
        inner_begin, inner_end = -(-begin // _BLOCK) * _BLOCK, end // _BLOCK * _BLOCK
        if inner_begin >= inner_end or not self._discard(inner_begin, inner_end - inner_begin):
            inner_begin = inner_end = begin
        for outer_begin, outer_end in ((begin, inner_begin), (max(begin, inner_end), end)):
            for position in range(outer_begin, outer_end, len(ZEROS)):
                self.write(position, memoryview(ZEROS)[: min(len(ZEROS), outer_end - position)])

    def _discard(self, offset: int, size: int) -> bool:
        """Let the medium make an aligned range zero by itself; say whether it could."""
        if self._is_device:
            try:
                fcntl.ioctl(self._descriptor, _BLKZEROOUT, struct.pack("QQ", offset, size))
            except OSError:
                return False
            return True
        return _punch_hole(self._descriptor, offset, size)

    def _count(self, amount: int) -> None:
        with self._lock:
            self.bytes_written += amount
            self._unflushed_bytes += amount
            if self._unflushed_bytes < _FLUSH_BYTES or (self._flush is not None and not self._flush.done()):
                return
            self._unflushed_bytes = 0
            earlier = self._flush
            self._flush = self._flusher.submit(os.fdatasync, self._descriptor)
        if earlier is not None:
            try:
                earlier.result()
            except OSError as error:
                raise self._unusable(error) from error

    def _check_inside(self, offset: int, size: int) -> None:
        if offset < 0 or offset + size > self.image_size:
            raise ValueError(f"{size} bytes at {offset} are not inside an image of {self.image_size} bytes")

    def _unusable(self, error: OSError) -> SlotUnusableError:
        return SlotUnusableError(path=self.path, reason=error.strerror or str(error))


def is_same_file(first: Path, second: Path) -> bool:
    """Tell whether two paths name one file or one block device."""
    one, other = first.stat(), second.stat()
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode):
        return one.st_rdev == other.st_rdev
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise SlotUnusableError(path=path, reason=error.strerror or str(error)) from error


def _is_device(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SlotUnusableError(path=path, reason=error.strerror or str(error)) from error
    if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
        raise SlotUnusableError(path=path, reason="it is neither a block device nor a regular file")
    return stat.S_ISBLK(mode)


def _punch_hole(descriptor: int, offset: int, size: int) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    call = getattr(library, "fallocate64", None) or library.fallocate
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return int(call(descriptor, _FALLOC_KEEP_SIZE_PUNCH_HOLE, offset, size)) == 0
