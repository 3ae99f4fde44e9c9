"""A kit: what a device needs of a repository, in a directory (a USB stick) or in one file, without a network.

A kit is laid out as the public tree is, so a device reads it through the same code and believes it for the same
reasons; nothing here is trusted because of where it lies.

```
kit.json                 what was put in and until when it can be used; informs people, decides nothing
metadata/...  targets/...  content/...      as published
receipts/ID.json         what devices tell of their installations (written by devices)
```

As one file it is a GNU tar of plain files, which any tar lists and unpacks. It is read by this module's own reader,
since Python's keeps extended headers of any size in memory: a name is at most 1 KiB, members are at most 65 536, and
everything but plain files is refused. A receipt is written over the two zero blocks at the end; a device that loses
its power there leaves a torn last receipt, and every reader ends before it.

`KitFetcher` answers requests from a kit. It serves ranges, has no validators, and says 404 for what is not there.
"""

import os
import stat
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import msgspec

from overhaul.errors import InputError
from overhaul.release.names import Name, Size, Text, Token
from overhaul.transfer.fetcher import InterruptedTransferError, Request, Response

KIT_FORMAT = 1
MANIFEST = "kit.json"
RECEIPTS = "receipts/"
#: Addresses of a kit's files begin so; they only appear in messages.
KIT_URL = "kit:/"
MANIFEST_LIMIT_BYTES = 1 << 20
#: A receipt is one report; longer ones are not read.
RECEIPT_LIMIT_BYTES = 16 << 10

_READ_BYTES = 256 << 10
_BLOCK = 512
_MAX_MEMBERS = 65_536
_MAX_NAME_BYTES = 1024
_PLAIN = {b"0", b"\0"}
_LONG_NAME = b"L"
_FOLDER = b"5"


class KitUnusableError(InputError):
    """Something that should be a kit and is none, or a damaged one."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} is no usable kit: {reason}. Make it again with `overhaul kit export`.")


class KitRelease(msgspec.Struct, frozen=True, kw_only=True):
    """A release that a kit can install."""

    variant: Name
    arch: Name
    version: Token
    build_id: Token


class KitManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `kit.json` says. Nothing is decided by it but where a receipt belongs."""

    format: int = KIT_FORMAT
    #: Random; receipts name it.
    kit_id: Token
    #: Key of the receipts' MAC, hexadecimal.
    receipt_key: Text
    product: Name
    channel: Name
    releases: tuple[KitRelease, ...]
    #: Releases it was made for; empty: any.
    sources: tuple[KitRelease, ...] = ()
    #: Seconds since 1970 UTC: when it was made, and from when on devices refuse it.
    made_at: Size
    usable_until: Size


class Kit(Protocol):
    """The files of a kit."""

    path: Path

    def size(self, name: str) -> int | None:
        """Return the size of a file, or None when there is none."""

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a file from `start` to `end`, fewer when it ends before."""

    def names(self, prefix: str) -> list[str]:
        """Return the names of the files that begin with `prefix`, sorted."""


def open_kit(path: Path) -> Kit:
    """Return the kit at `path`, a directory or a file.

    Raises:
        KitUnusableError: It is neither, or its file is no tar of plain files.
    """
    if path.is_dir():
        return DirectoryKit(path)
    return FileKit(path)


def read_manifest(kit: Kit) -> KitManifest:
    """Return what the kit says of itself; raise `KitUnusableError` when it says nothing readable."""
    size = kit.size(MANIFEST)
    if size is None:
        raise KitUnusableError(path=kit.path, reason=f"it holds no {MANIFEST}")
    if size > MANIFEST_LIMIT_BYTES:
        raise KitUnusableError(path=kit.path, reason=f"its {MANIFEST} has {size} bytes")
    try:
        manifest = msgspec.json.decode(b"".join(kit.read(MANIFEST, 0, size)), type=KitManifest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise KitUnusableError(path=kit.path, reason=f"its {MANIFEST} cannot be read ({error})") from error
    except OSError as error:
        raise KitUnusableError(path=kit.path, reason=error.strerror or str(error)) from error
    if manifest.format != KIT_FORMAT:
        raise KitUnusableError(path=kit.path, reason=f"it has format {manifest.format}, and {KIT_FORMAT} is known here")
    return manifest


class DirectoryKit:
    """A kit whose files lie below a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self, name: str) -> int | None:
        """Return the size of a file, or None when there is none."""
        with self._opened(name) as opened:
            return None if opened is None else os.fstat(opened).st_size

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a file from `start` to `end`, fewer when it ends before."""
        with self._opened(name) as opened:
            if opened is not None:
                yield from _pieces(opened, start, end)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the files that begin with `prefix`, sorted."""
        folder = prefix.rpartition("/")[0]
        found = (
            path.relative_to(self.path)
            for path in (self.path / folder).rglob("*")
            if path.is_file() and not path.is_symlink()
        )
        return sorted(name for path in found if (name := path.as_posix()).startswith(prefix) and _is_name(name))

    @contextmanager
    def _opened(self, name: str) -> Iterator[int | None]:
        try:
            # A pipe or a device in the place of a file must not make us wait.
            descriptor = os.open(self.path / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if isinstance(error, FileNotFoundError | NotADirectoryError) or not _is_name(name):
                yield None
                return
            raise KitUnusableError(path=self.path, reason=f"{name}: {error.strerror or error}") from error
        try:
            yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) and _is_name(name) else None
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Member:
    offset: int
    size: int


class FileKit:
    """A kit in one tar file. Its members are looked up once, when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self._members, self._end = _read_members(path, stream.fileno())
        except OSError as error:
            raise KitUnusableError(path=path, reason=error.strerror or str(error)) from error

    def size(self, name: str) -> int | None:
        """Return the size of a file, or None when there is none."""
        member = self._members.get(name)
        return None if member is None else member.size

    def read(self, name: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes of a file from `start` to `end`, fewer when it ends before."""
        member = self._members.get(name)
        if member is None:
            return
        with self.path.open("rb") as stream:
            stop = member.offset + min(end, member.size)
            yield from _pieces(stream.fileno(), member.offset + start, stop)

    def names(self, prefix: str) -> list[str]:
        """Return the names of the files that begin with `prefix`, sorted."""
        return sorted(name for name in self._members if name.startswith(prefix))

    @property
    def end(self) -> int:
        """Where the next member belongs."""
        return self._end


class KitFetcher:
    """Answers requests from a kit; every address that begins with `KIT_URL` is one of its files."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Return the file that `request` names, as a web server would."""
        name = unquote(request.url.removeprefix(KIT_URL).lstrip("/"))
        try:
            size = self._kit.size(name) if _is_name(name) else None
        except OSError as error:
            raise self._broken(request, error) from error
        if size is None:
            yield Response(url=request.url, status=404, headers={"content-length": "0"}, body=iter(()))
            return
        start, end = request.start, size if request.end is None else min(request.end, size)
        headers = {"content-length": str(max(0, end - start))}
        if start == 0 and request.end is None:
            status = 200
        elif start >= size:
            yield Response(url=request.url, status=416, headers={"content-range": f"bytes */{size}"}, body=iter(()))
            return
        else:
            status = 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
        yield Response(url=request.url, status=status, headers=headers, body=self._body(request, name, start, end))

    def _body(self, request: Request, name: str, start: int, end: int) -> Iterator[bytes]:
        received = 0
        try:
            for piece in self._kit.read(name, start, end):
                received += len(piece)
                yield piece
        except OSError as error:
            raise self._broken(request, error, received=received) from error
        if received != end - start:
            raise InterruptedTransferError(url=request.url, received_bytes=received, reason="the kit's file ends there")

    def _broken(self, request: Request, error: OSError, *, received: int = 0) -> InterruptedTransferError:
        reason = f"{self._kit.path}: {error.strerror or error}"
        return InterruptedTransferError(url=request.url, received_bytes=received, reason=reason)


def tar_header(name: str, size: int) -> bytes:
    """Return the header blocks of a plain file in a GNU tar; equal arguments give equal bytes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    return info.tobuf(tarfile.GNU_FORMAT)


def padding(size: int) -> bytes:
    """Return the zeros that follow `size` bytes of content in a tar."""
    return bytes(-size % _BLOCK)


def _pieces(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        piece = os.pread(descriptor, min(_READ_BYTES, end - start), start)
        if not piece:
            return
        start += len(piece)
        yield piece


def _is_name(name: str) -> bool:
    """Say whether `name` can be that of a kit's file: relative, of plain parts, none of them hidden."""
    return "\0" not in name and all(part and not part.startswith(".") for part in name.split("/"))


def _read_members(path: Path, descriptor: int) -> tuple[Mapping[str, _Member], int]:
    """Return the plain files of a tar by name, and where the next one belongs."""
    length = os.fstat(descriptor).st_size
    members: dict[str, _Member] = {}
    position = begin = 0
    long_name: str | None = None
    while position + _BLOCK <= length:
        header = os.pread(descriptor, _BLOCK, position)
        if not any(header):
            break
        parsed = _parse_header(header)
        if parsed is None:
            # The exporter writes the manifest last: behind it come only receipts, and the last may be torn.
            if MANIFEST in members:
                break
            raise KitUnusableError(path=path, reason=f"byte {position} begins no member of a tar")
        name, size, kind = parsed
        data = position + _BLOCK
        following = data + size + len(padding(size))
        if kind == _LONG_NAME:
            if size > _MAX_NAME_BYTES:
                raise KitUnusableError(path=path, reason=f"a name has {size} bytes")
            long_name = os.pread(descriptor, size, data).rstrip(b"\0").decode("utf-8", "replace")
            position = following
            continue
        name, long_name = (long_name or name), None
        if data + size > length:
            if name.startswith(RECEIPTS):
                break
            raise KitUnusableError(path=path, reason=f"it ends inside {name}; it was not copied wholly")
        if kind != _FOLDER:
            if kind not in _PLAIN:
                raise KitUnusableError(path=path, reason=f"{name} is no plain file")
            if len(members) >= _MAX_MEMBERS:
                raise KitUnusableError(path=path, reason=f"it has more than {_MAX_MEMBERS} files")
            # The first one counts: nothing that is written behind it can take its place.
            members.setdefault(name.removeprefix("./"), _Member(data, size))
        position = begin = following
    if not members:
        raise KitUnusableError(path=path, reason="it is no tar, or an empty one")
    return members, begin


def _parse_header(header: bytes) -> tuple[str, int, bytes] | None:
    """Return name, size and kind, or None when the block is no header."""
    blank = header[:148] + b" " * 8 + header[156:]
    try:
        stated = int(header[148:156].strip(b" \0") or b"0", 8)
        size = int.from_bytes(header[125:136]) if header[124] & 0x80 else int(header[124:136].strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    if sum(blank) != stated or size < 0:
        return None
    name = header[:100].rstrip(b"\0")
    prefix = header[345:500].rstrip(b"\0") if header[257:263] == b"ustar\0" else b""
    whole = prefix + b"/" + name if prefix else name
    return whole.decode("utf-8", "replace"), size, header[156:157]
