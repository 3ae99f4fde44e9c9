"""A disk with a write cache that a power cut empties: what a guest did not flush survives in part, in any order.

Served to QEMU over NBD on a socket in the file system. What is written stays in memory, sector by sector, until the
guest flushes it or the cache is full. At a power cut every sector in it is kept or lost by chance, so that writes are
torn, lost and reordered as far as a real medium may do it; a sector itself is written wholly or not at all. Between
flushes only the newest content of a sector is known.
"""

import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

_Read = Callable[[int], bytes]

SECTOR = 512
#: As much as a small drive has.
_CACHE_BYTES = 8 << 20
_OPTION_MAGIC = 0x49484156454F5054
_REPLY_MAGIC = 0x3E889045565A9
_REQUEST = struct.Struct(">IHHQQI")
_REQUEST_MAGIC, _ANSWER_MAGIC = 0x25609513, 0x67446698
_EXPORT_NAME, _ABORT, _GO = 1, 2, 7
_ACK, _INFO, _UNSUPPORTED = 1, 3, 0x80000001
#: There are flags; flush and forced writes are understood.
_FLAGS = 1 | 4 | 8
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3
_FORCED = 1
_INVALID = 22


class VolatileDisk:
    """The disk in the file `path`; `address` is what QEMU is given. Use it as a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._size = os.fstat(self._file).st_size
        self._cache: dict[int, bytes] = {}
        self._socket_path = path.with_name(f"{path.name}.socket")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._socket_path))
        self._listener.listen(1)
        #: Nobody is connected, so nothing changes any more.
        self._idle = threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """What QEMU is told as the file of a drive."""
        return f"nbd+unix:///?socket={self._socket_path}"

    def cut(self, chance: random.Random) -> tuple[int, int]:
        """Lose what the power cut loses, once the machine is gone; return how many sectors were kept and lost."""
        assert self._idle.wait(60)
        # Between a drive that had written nearly everything and one that had begun nothing.
        share = chance.random()
        kept = {sector: data for sector, data in self._cache.items() if chance.random() < share}
        lost = len(self._cache) - len(kept)
        self._cache = kept
        self._write_back()
        return len(kept), lost

    def settle(self) -> None:
        """Write everything back, as the drive does when the machine was switched off in order."""
        assert self._idle.wait(60)
        self._write_back()

    def close(self) -> None:
        """Give the socket and the file back."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._socket_path.unlink()
        os.close(self._file)

    def __enter__(self) -> "VolatileDisk":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._idle.clear()
            try:
                with connection, connection.makefile("rb") as reader:
                    if self._negotiate(connection, reader.read):
                        self._answer(connection, reader.read)
            except (OSError, struct.error):
                # The machine lost its power in the middle of a request.
                pass
            finally:
                self._idle.set()

    def _negotiate(self, connection: socket.socket, read: _Read) -> bool:
        connection.sendall(b"NBDMAGIC" + struct.pack(">QH", _OPTION_MAGIC, 1 | 2))
        read(4)
        while True:
            _magic, option, size = struct.unpack(">QII", read(16))
            read(size)
            if option == _EXPORT_NAME:
                connection.sendall(struct.pack(">QH", self._size, _FLAGS))
                return True
            if option == _GO:
                connection.sendall(struct.pack(">QIIIHQH", _REPLY_MAGIC, option, _INFO, 12, 0, self._size, _FLAGS))
                connection.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, _ACK, 0))
                return True
            reply = _ACK if option == _ABORT else _UNSUPPORTED
            connection.sendall(struct.pack(">QIII", _REPLY_MAGIC, option, reply, 0))
            if option == _ABORT:
                return False

    def _answer(self, connection: socket.socket, read: _Read) -> None:
        while True:
            magic, flags, kind, handle, offset, size = _REQUEST.unpack(read(_REQUEST.size))
            assert magic == _REQUEST_MAGIC
            error, data = 0, b""
            if kind == _READ:
                data = self._read(offset, size)
            elif kind == _WRITE:
                self._write(offset, read(size), is_forced=bool(flags & _FORCED))
            elif kind == _FLUSH:
                self._write_back()
            elif kind == _DISCONNECT:
                return
            else:
                error = _INVALID
            connection.sendall(struct.pack(">IIQ", _ANSWER_MAGIC, error, handle) + data)

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file, size, offset)
        first, last = offset // SECTOR, (offset + size) // SECTOR
        cached = [sector for sector in range(first, last) if sector in self._cache] if self._cache else []
        if not cached:
            return data
        changed = bytearray(data)
        for sector in cached:
            changed[sector * SECTOR - offset : (sector + 1) * SECTOR - offset] = self._cache[sector]
        return bytes(changed)

    def _write(self, offset: int, data: bytes, *, is_forced: bool) -> None:
        if len(data) % SECTOR:
            # The machine lost its power while it sent them.
            raise ConnectionResetError
        for position in range(0, len(data), SECTOR):
            sector = (offset + position) // SECTOR
            # Written again is written later.
            self._cache.pop(sector, None)
            self._cache[sector] = data[position : position + SECTOR]
        if is_forced or len(self._cache) * SECTOR > _CACHE_BYTES:
            self._write_back()

    def _write_back(self) -> None:
        run_start, run = -1, bytearray()
        for sector in sorted(self._cache):
            if run and run_start + len(run) // SECTOR != sector:
                os.pwrite(self._file, run, run_start * SECTOR)
                run = bytearray()
            if not run:
                run_start = sector
            run += self._cache[sector]
        if run:
            os.pwrite(self._file, run, run_start * SECTOR)
        self._cache = {}
