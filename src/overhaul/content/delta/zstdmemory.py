"""Memory for a zstd compressor that need not stay in memory.

Several-threaded zstd keeps up to 64 MiB of what it has read in one buffer, and walks through it from front to back.
Here such a buffer is the mapping of an unnamed file. A thread takes its pages out of this process many times a second;
the few that are still looked at come back from the file. The library's answers are the same, and the process stays
small. Its tables are looked at everywhere all the time: they stay, for taking them out costs a minute of page faults
and saves nothing.
"""

import ctypes
import mmap
import os
import threading
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

#: Buffers from this size on lie in files; the tables of the levels that distributions use are smaller.
_MAPPED_FROM = 24 * 1024 * 1024
_PUT_ASIDE_EVERY_S = 0.005

_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)


class ZstdAllocator(ctypes.Structure):
    """ZSTD_customMem."""

    _fields_ = (("allocate", _Allocate), ("free", _Free), ("opaque", ctypes.c_void_p))


class ZstdMemory:
    """The memory of one compressor, until the block ends; its files lie in `scratch`, None being the system's place."""

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._mapped: dict[int, mmap.mmap] = {}
        # The library allocates and frees in threads of its own.
        self._lock = threading.Lock()
        self._libc = ctypes.CDLL(None)
        self._libc.malloc.argtypes = [ctypes.c_size_t]
        self._libc.malloc.restype = ctypes.c_void_p
        self._libc.free.argtypes = [ctypes.c_void_p]
        self._ended = threading.Event()
        self._caller = threading.get_ident()
        self._thread = threading.Thread(target=self._keep_putting_aside, daemon=True)
        #: What the library takes by value; it must not outlive this object.
        self.functions = ZstdAllocator(_Allocate(self._allocate), _Free(self._free), None)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _allocate(self, _opaque: int | None, size: int) -> int | None:
        # The buffer is made by whoever hands over what is read, tables by the library's own threads.
        if size < _MAPPED_FROM or threading.get_ident() != self._caller:
            small: int | None = self._libc.malloc(size)
            return small
        try:
            with TemporaryFile(dir=self._scratch) as file:
                # A hole would kill the process when the disk is full by the time it is written to.
                os.posix_fallocate(file.fileno(), 0, size)
                area = mmap.mmap(file.fileno(), size)
        except OSError:
            return None
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        with self._lock:
            self._mapped[address] = area
        return address

    def _free(self, _opaque: int | None, address: int | None) -> None:
        with self._lock:
            area = None if address is None else self._mapped.pop(address, None)
        if area is None:
            self._libc.free(address)

    def put_aside(self) -> None:
        """Take the pages of the big buffers out of this process; worth calling after each piece that was handed over.

        A piece is copied into a buffer much faster than it is compressed, so a thread that looks now and then would
        find a whole job's worth of pages.
        """
        with self._lock:
            for area in self._mapped.values():
                area.madvise(mmap.MADV_DONTNEED)

    def _keep_putting_aside(self) -> None:
        while not self._ended.wait(_PUT_ASIDE_EVERY_S):
            self.put_aside()
