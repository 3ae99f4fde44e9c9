"""The hash of an object: what a manifest knows it by, over its kind, rights, owner, size and content.

Two nested HMAC-SHA256. The inner one has 40 bytes of numbers as its key (mode, owner, group, device, size, each 64
bits, little-endian) and the extended attributes as its message; its result, as 64 hexadecimal digits, is the key of
the outer one, whose message is the content. Times, names and link counts are not covered, except that format 3 has
a directory's path for its content. Only builds with extended attributes put them in; elsewhere the inner message
is empty.
"""

import hmac
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from struct import Struct

#: The hash of what is not there.
NO_HASH = "0" * 64

_KEY = Struct("<QQQQQ")
_DIRECTORY = b"DIRECTORY"
#: OpenSSL takes the length of a whole message as a C int.
_WHOLE_MAX = (1 << 31) - 1
_READ_SIZE = 1 << 20

Xattrs = Sequence[tuple[bytes, bytes]]
Buffer = bytes | bytearray | memoryview


def hash_file(content: Buffer, *, mode: int, uid: int, gid: int, xattrs: Xattrs = ()) -> str:
    """Return the hash of a regular file; `mode` is the whole st_mode."""
    size = len(content)
    key = _meta_key(mode, uid, gid, size, xattrs)
    if size <= _WHOLE_MAX:
        return hmac.digest(key, content, "sha256").hex()
    hasher = hmac.new(key, digestmod="sha256")
    hasher.update(content)
    return hasher.hexdigest()


def hash_pieces(pieces: Iterable[Buffer], *, mode: int, uid: int, gid: int, size: int, xattrs: Xattrs = ()) -> str:
    """Return the hash of a regular file of `size` bytes whose content comes in pieces."""
    hasher = hmac.new(_meta_key(mode, uid, gid, size, xattrs), digestmod="sha256")
    for piece in pieces:
        hasher.update(piece)
    return hasher.hexdigest()


def hash_link(target: bytes, *, uid: int, gid: int, xattrs: Xattrs = ()) -> str:
    """Return the hash of a symbolic link; its mode counts as 0."""
    return hmac.digest(_meta_key(0, uid, gid, len(target), xattrs), target, "sha256").hex()


def hash_directory(*, mode: int, uid: int, gid: int, path: bytes | None = None, xattrs: Xattrs = ()) -> str:
    """Return the hash of a directory; `path` is its name in the manifest for format 3, and None for all others."""
    content = _DIRECTORY if path is None else path
    return hmac.digest(_meta_key(mode, uid, gid, 0, xattrs), content, "sha256").hex()


def hash_path(file: Path | bytes, *, path: bytes | None = None, with_xattrs: bool = False) -> str:
    """Return the hash of what lies at `file` (`NO_HASH` when nothing does); links are not followed.

    `path` is the name in the manifest for directories of format 3. Devices, sockets and pipes hash as nothing,
    as no manifest lists them.
    """
    try:
        status = os.lstat(file)
    except (FileNotFoundError, NotADirectoryError):
        return NO_HASH
    xattrs = read_xattrs(file) if with_xattrs else ()
    mode, uid, gid = status.st_mode, status.st_uid, status.st_gid
    if stat.S_ISDIR(mode):
        return hash_directory(mode=mode, uid=uid, gid=gid, path=path, xattrs=xattrs)
    if stat.S_ISLNK(mode):
        return hash_link(os.readlink(os.fsencode(file)), uid=uid, gid=gid, xattrs=xattrs)
    if not stat.S_ISREG(mode):
        return NO_HASH
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        pieces = iter(lambda: os.read(descriptor, _READ_SIZE), b"")
        if status.st_size <= _READ_SIZE:
            return hash_file(b"".join(pieces), mode=mode, uid=uid, gid=gid, xattrs=xattrs)
        return hash_pieces(pieces, mode=mode, uid=uid, gid=gid, size=status.st_size, xattrs=xattrs)
    finally:
        os.close(descriptor)


def read_xattrs(file: Path | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the extended attributes of `file` by name; links are not followed."""
    names = sorted(map(os.fsencode, os.listxattr(file, follow_symlinks=False)))
    return tuple((name, os.getxattr(file, name, follow_symlinks=False)) for name in names)


def _meta_key(mode: int, uid: int, gid: int, size: int, xattrs: Xattrs) -> bytes:
    # Only directories and files count their mode, and no object that is hashed has a device number.
    key = _KEY.pack(mode, uid, gid, 0, size)
    return hmac.digest(key, _xattr_blob(xattrs) if xattrs else b"", "sha256").hex().encode()


def _xattr_blob(xattrs: Xattrs) -> bytes:
    ordered = sorted(xattrs)
    names = b"".join(name + b"\0" for name, _value in ordered)
    return names + b"".join(value + b"\0" if value and not value.endswith(b"\0") else value for _name, value in ordered)
