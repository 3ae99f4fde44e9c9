"""Reading the tars of a repository as if their makers were hostile.

Nothing is extracted by a member's own name. A reader yields members with checked types, and its users write those
whose names are exactly what they expect, into directories of their own. The kinds of compression are told by their
first bytes; what they expand to is bounded, and so is what a header may take.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import unquote_to_bytes

from overhaul.dialects.swupd.device.errors import BadArchiveError

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PIECE = 128 * 1024
#: An xz stream of the highest preset needs 65 MiB.
_XZ_MEMORY = 96 << 20
#: Long names and extended headers are read into memory.
_HEADER_MAX = 1 << 20
_XATTR = "SCHILY.xattr."
_XATTR_ENCODED = "LIBARCHIVE.xattr."
_HEADER_TYPES = frozenset(
    {
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    }
)


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


@dataclass(frozen=True)
class Member:
    """One member of a tar: a file (`F`), link (`L`), directory (`D`) or another name of an earlier member (`H`)."""

    name: str
    kind: str
    #: The whole st_mode; 0 for links.
    mode: int
    uid: int
    gid: int
    size: int
    #: Where a link leads; the name of the earlier member for `H`.
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    _content: IO[bytes] | None = field(default=None, repr=False)

    def pieces(self) -> Iterator[bytes]:
        """Yield the content of a file, once, before the next member is asked for."""
        left = self.size
        while left and self._content is not None:
            piece = self._content.read(min(left, _PIECE))
            if not piece:
                raise EOFError("a member ends early")
            left -= len(piece)
            yield piece


def read_archive(path: Path, *, name: str, limit_bytes: int) -> Iterator[Member]:
    """Yield the members of the tar at `path`; `name` is what errors call it.

    Raises:
        BadArchiveError: It is damaged, expands to more than `limit_bytes`, or holds what no object can be.
    """
    # Every error of reading is raised inside this block, those while a member's content is read, too.
    with (
        path.open("rb") as stream,
        _one_error(name),
        tarfile.open(
            fileobj=_Bounded(_expanded(stream), limit_bytes),  # type: ignore[call-overload] # only read() is used
            mode="r|",
            tarinfo=_CheckedInfo,
            encoding="utf-8",
            errors="surrogateescape",
        ) as tar,
    ):
        while (info := tar.next()) is not None:
            yield _member(tar, info)
            # What was passed is kept by the library for random access, which nobody wants here.
            tar.members.clear()


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what reading a member's content may raise into `BadArchiveError`."""
    with _one_error(name):
        yield


@contextmanager
def _one_error(name: str) -> Iterator[None]:
    from backports.zstd import ZstdError

    try:
        yield
    except BadArchiveError as error:
        raise BadArchiveError(archive=name, reason=error.reason) from error
    except (tarfile.TarError, lzma.LZMAError, zlib.error, ZstdError, EOFError) as error:
        raise BadArchiveError(archive=name, reason=str(error) or "it is damaged") from error
    except (ValueError, OverflowError, RecursionError, IndexError) as error:
        raise BadArchiveError(archive=name, reason=f"its headers make no sense ({error})") from error
    except OSError as error:
        # The decoders of gzip and bzip2 say so, too, and only the system has numbers for its errors.
        if error.errno is not None:
            raise
        raise BadArchiveError(archive=name, reason=str(error)) from error


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    if min(info.uid, info.gid, info.size, info.mode) < 0 or max(info.uid, info.gid) >= 1 << 32:
        raise BadArchiveError(archive="", reason=f"{info.name[:120]!r} has an impossible owner or size")
    rights = info.mode & 0o7777
    xattrs = _xattrs(info.pax_headers)
    if info.isreg():
        content = tar.extractfile(info)
        return Member(info.name, "F", 0o100000 | rights, info.uid, info.gid, info.size, b"", xattrs, content)
    if info.isdir():
        return Member(info.name.rstrip("/"), "D", 0o040000 | rights, info.uid, info.gid, 0, b"", xattrs)
    target = info.linkname.encode("utf-8", "surrogateescape")
    if info.issym():
        return Member(info.name, "L", 0, info.uid, info.gid, len(target), target, xattrs)
    if info.islnk():
        return Member(info.name, "H", 0, info.uid, info.gid, 0, target)
    raise BadArchiveError(archive="", reason=f"{info.name[:120]!r} is neither file, link nor directory")


def _xattrs(headers: Mapping[str, str]) -> tuple[tuple[bytes, bytes], ...]:
    if not headers:
        return ()
    found: dict[bytes, bytes] = {}
    for key, value in headers.items():
        if key.startswith(_XATTR):
            found[key.removeprefix(_XATTR).encode("utf-8", "surrogateescape")] = value.encode(
                "utf-8", "surrogateescape"
            )
        elif key.startswith(_XATTR_ENCODED):
            padded = value + "=" * (-len(value) % 4)
            found.setdefault(unquote_to_bytes(key.removeprefix(_XATTR_ENCODED)), b64decode(padded, validate=True))
    return tuple(sorted(found.items()))


class _CheckedInfo(tarfile.TarInfo):
    """A header whose extended parts are bounded before they are read into memory."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _HEADER_TYPES and not 0 <= self.size <= _HEADER_MAX:
            raise tarfile.ReadError(f"an extended header has {self.size} bytes")
        # The hook that the library calls for every header; it has no public name.
        member: tarfile.TarInfo = super()._proc_member(tar)  # type: ignore[misc]
        return member


class _Bounded:
    """Reads no more than a limit."""

    def __init__(self, stream: BinaryIO | io.RawIOBase, limit_bytes: int) -> None:
        self._stream = stream
        self._left = limit_bytes
        self._limit = limit_bytes

    def read(self, size: int) -> bytes:
        data = self._stream.read(size) or b""
        self._left -= len(data)
        if self._left < 0:
            raise BadArchiveError(archive="", reason=f"it expands to more than the {self._limit} bytes it may have")
        return data


def _expanded(stream: BinaryIO) -> BinaryIO | io.RawIOBase:
    magic = stream.read(6)
    stream.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=stream)  # type: ignore[return-value] # it reads as one
    if magic.startswith(b"BZh"):
        return io.BufferedReader(_Expanding(stream, "bzip2"), _PIECE)
    if magic == b"\xfd7zXZ\0":
        return io.BufferedReader(_Expanding(stream, "xz"), _PIECE)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_Expanding(stream, "zstd"), _PIECE)
    return stream


class _Expanding(io.RawIOBase):
    """The content of a compressed stream, or of several in a row."""

    def __init__(self, stream: BinaryIO, kind: str) -> None:
        self._stream = stream
        self._kind = kind
        self._decoder: _Decoder = self._new()
        self._input = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer", /) -> int:
        view = memoryview(buffer)
        while True:
            if self._decoder.eof:
                self._input = self._decoder.unused_data or self._stream.read(_PIECE)
                if not self._input.strip(b"\0"):
                    return 0
                self._decoder = self._new()
            elif self._decoder.needs_input and not self._input:
                self._input = self._stream.read(_PIECE)
                if not self._input:
                    raise EOFError("it is cut short")
            data = self._decoder.decompress(self._input, len(view))
            self._input = b""
            if data:
                view[: len(data)] = data
                return len(data)

    def _new(self) -> _Decoder:
        if self._kind == "xz":
            return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        if self._kind == "bzip2":
            return bz2.BZ2Decompressor()
        from backports.zstd import DecompressionParameter, ZstdDecompressor

        options: dict[int, int] = {DecompressionParameter.window_log_max: 26}
        return ZstdDecompressor(options=options)
