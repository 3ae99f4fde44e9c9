"""OSTree's objects: their names, and the metadata ones as values and bytes.

    dirtree   `(a(say)a(sayay))`              files and directories of one directory, each sorted by name bytes
    dirmeta   `(uuua(ayay))`                  owner, mode and extended attributes of a directory, big-endian
    commit    `(a{sv}aya(say)sstayay)`        metadata, parent, nothing, subject, body, time (big-endian), root

A metadata object is named by the SHA-256 of its bytes. File objects live in `filez.py`. Everything read here is
checked: names cannot leave their directory, checksums have 32 bytes, modes are those of the object's kind.
"""

import enum
import hashlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from overhaul.dialects.ostree.errors import MalformedOstreeDataError, WrongChecksumError
from overhaul.dialects.ostree.gvariant import Variant, big32, big64, decode, encode

CHECKSUM_SIZE = 32
#: OSTree's own limit of a metadata object.
MAX_METADATA_SIZE = 128 << 20

_DIRTREE_TYPE = "(a(say)a(sayay))"
_DIRMETA_TYPE = "(uuua(ayay))"
COMMIT_TYPE = "(a{sv}aya(say)sstayay)"
_MODE_BITS = 0o7777
_NAME_MAX = 255

#: Names without the trailing NUL they have on disk, in the order of their bytes.
Xattrs = tuple[tuple[bytes, bytes], ...]
#: What `a{sv}` holds.
Metadata = Mapping[str, Variant]


class ObjectType(enum.IntEnum):
    """Kinds of objects, numbered as in static deltas."""

    FILE = 1
    DIRTREE = 2
    DIRMETA = 3
    COMMIT = 4
    TOMBSTONE = 5
    COMMITMETA = 6

    @property
    def extension(self) -> str:
        """The suffix of its file in an archive repository."""
        return _EXTENSIONS[self]


_EXTENSIONS = {
    ObjectType.FILE: "filez",
    ObjectType.DIRTREE: "dirtree",
    ObjectType.DIRMETA: "dirmeta",
    ObjectType.COMMIT: "commit",
    ObjectType.TOMBSTONE: "commit-tombstone",
    ObjectType.COMMITMETA: "commitmeta",
}
OBJECT_TYPE_OF_EXTENSION = {extension: kind for kind, extension in _EXTENSIONS.items()}


class ObjectName(NamedTuple):
    """What names an object: its kind and its SHA-256."""

    type: ObjectType
    checksum: bytes

    def __str__(self) -> str:
        return f"{self.checksum.hex()}.{self.type.extension}"


class TreeFile(NamedTuple):
    """A file or symbolic link in a directory."""

    name: str
    checksum: bytes


class TreeDirectory(NamedTuple):
    """A directory in a directory."""

    name: str
    tree: bytes
    meta: bytes


@dataclass(frozen=True, slots=True)
class Dirtree:
    """The names in one directory."""

    files: tuple[TreeFile, ...] = ()
    directories: tuple[TreeDirectory, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirmeta:
    """What a directory is besides its names."""

    uid: int
    gid: int
    #: With S_IFDIR.
    mode: int
    xattrs: Xattrs = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """A tree with its history."""

    #: Seconds since 1970 UTC.
    timestamp: int
    root_tree: bytes
    root_meta: bytes
    subject: str = ""
    body: str = ""
    parent: bytes | None = None
    metadata: Metadata = field(default_factory=dict)

    @property
    def content_checksum(self) -> str:
        """What `ostree show` calls ContentChecksum: equal for commits of equal trees."""
        return hashlib.sha256(self.root_tree + self.root_meta).hexdigest()

    @property
    def version(self) -> str | None:
        """The `version` of its metadata."""
        return text_of(self.metadata, "version")

    @property
    def ref_bindings(self) -> tuple[str, ...] | None:
        """The refs it says it belongs to, None when it does not say."""
        held = self.metadata.get("ostree.ref-binding")
        return held.value if held is not None and held.type == "as" else None


def text_of(metadata: Metadata, key: str) -> str | None:
    """Return the string under `key`, or None when there is none."""
    held = metadata.get(key)
    return held.value if held is not None and held.type == "s" else None


def checksum_of(data: bytes | memoryview) -> bytes:
    """Return the name of a metadata object."""
    return hashlib.sha256(data).digest()


def check_object(name: ObjectName, data: bytes | memoryview) -> None:
    """Raise `WrongChecksumError` unless `data` is the metadata object `name`."""
    actual = checksum_of(data)
    if actual != name.checksum:
        raise WrongChecksumError(what=f"object {name}", expected=name.checksum.hex(), actual=actual.hex())


def parse_checksum(text: str, *, what: str) -> bytes:
    """Return the 32 bytes of 64 lower-case hexadecimal digits.

    Raises:
        MalformedOstreeDataError: It is none.
    """
    if len(text) != 2 * CHECKSUM_SIZE or not set(text) <= set("0123456789abcdef"):
        raise MalformedOstreeDataError(what=what, reason=f"{text[:80]!r} is no checksum")
    return bytes.fromhex(text)


def encode_dirtree(tree: Dirtree) -> bytes:
    """Return the bytes of a dirtree object; names are sorted here."""
    files = sorted(tree.files, key=_name_bytes)
    directories = sorted(tree.directories, key=_name_bytes)
    return encode(_DIRTREE_TYPE, (files, directories))


def _name_bytes(entry: TreeFile | TreeDirectory) -> bytes:
    return entry.name.encode()


def decode_dirtree(data: bytes, *, what: str = "dirtree") -> Dirtree:
    """Return the directory in `data`.

    Raises:
        MalformedOstreeDataError: It is none, or a name could leave the directory or stands there twice.
    """
    listed = _listed(data)
    # What is not in plain normal form is judged by the decoder that knows why.
    files, directories = decode(_DIRTREE_TYPE, data, what=what) if listed is None else listed
    tree = Dirtree(tuple(map(TreeFile._make, files)), tuple(map(TreeDirectory._make, directories)))
    for group in (tree.files, tree.directories):
        names = [_name_bytes(entry) for entry in group]
        if any(left >= right for left, right in pairwise(names)):
            raise MalformedOstreeDataError(what=what, reason="its names are not in ascending order")
    if {entry.name for entry in tree.files} & {entry.name for entry in tree.directories}:
        raise MalformedOstreeDataError(what=what, reason="a name is both file and directory")
    for name in (*(entry.name for entry in tree.files), *(entry.name for entry in tree.directories)):
        check_file_name(name, what=what)
    for checksum in (*(f.checksum for f in tree.files), *(c for d in tree.directories for c in (d.tree, d.meta))):
        check_checksum_size(checksum, what=what)
    return tree


def _listed(data: bytes) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes, bytes]]] | None:
    """Return what a dirtree in normal form lists, or None; a tree has thousands, so this is done without the codec."""
    width = _offset_width(len(data))
    table = len(data) - width
    if table < 0:
        return None
    cut = int.from_bytes(data[table:], "little")
    if cut > table:
        return None
    files = _members(data, 0, cut, checksums=1)
    directories = _members(data, cut, table, checksums=2)
    if files is None or directories is None:
        return None
    return [(name, sums) for name, sums in files], [(name, sums[:32], sums[32:]) for name, sums in directories]


def _members(  # noqa: PLR0911 - each is another way of not being plain
    data: bytes, begin: int, end: int, *, checksums: int
) -> list[tuple[str, bytes]] | None:
    """Return names and checksums of an array `a(say)` or `a(sayay)` in plain normal form, or None."""
    size = end - begin
    if not size:
        return []
    width = _offset_width(size)
    body = int.from_bytes(data[end - width : end], "little")
    count, rest = divmod(size - body, width)
    # Wider ends than needed, or a size between two widths: not plain.
    if body > size or rest or not count or _offset_width(body + count * width) != width:
        return None
    if width > 1 and body + count * (width // 2) < 1 << 8 * (width // 2):
        return None
    found = []
    position = begin
    for place in range(begin + body, end, width):
        stop = begin + int.from_bytes(data[place : place + width], "little")
        span = stop - position
        # Name, NUL, checksums, then the ends of all members but the last: each one byte in a short member.
        if not 2 + checksums * 33 <= span <= 255 or stop > begin + body:
            return None
        name_end = stop - checksums * 33
        ends = data[stop - checksums : stop]
        if ends[-1] != name_end - position or (checksums == 2 and ends[0] != name_end - position + 32):
            return None
        name = data[position:name_end]
        if name.find(0) != len(name) - 1:
            return None
        try:
            found.append((name[:-1].decode(), data[name_end : stop - checksums]))
        except UnicodeDecodeError:
            return None
        position = stop
    return found if position == begin + body else None


def _offset_width(size: int) -> int:
    return next(width for width in (1, 2, 4, 8) if size < 1 << 8 * width)


def check_file_name(name: str, *, what: str) -> None:
    """Raise `MalformedOstreeDataError` for a name that is no single component of a path."""
    if name in ("", ".", "..") or "/" in name or len(name.encode()) > _NAME_MAX:
        raise MalformedOstreeDataError(what=what, reason=f"{name[:80]!r} is no file name")


def check_checksum_size(checksum: bytes, *, what: str) -> None:
    """Raise `MalformedOstreeDataError` for a checksum that is not 32 bytes long."""
    if len(checksum) != CHECKSUM_SIZE:
        raise MalformedOstreeDataError(what=what, reason=f"a checksum has {len(checksum)} bytes")


def pack_xattrs(xattrs: Xattrs) -> list[tuple[bytes, bytes]]:
    """Return extended attributes as they are written: names end with NUL, in the order of their bytes."""
    return sorted((name + b"\0", value) for name, value in xattrs)


def unpack_xattrs(packed: Iterable[tuple[bytes, bytes]], *, what: str) -> Xattrs:
    """Return extended attributes from how they are written.

    Raises:
        MalformedOstreeDataError: A name is empty, or is not NUL-terminated.
    """
    found = []
    for name, value in packed:
        if len(name) < 2 or name.find(b"\0") != len(name) - 1:
            raise MalformedOstreeDataError(what=what, reason="the name of an extended attribute is none")
        found.append((name[:-1], value))
    return tuple(found)


def encode_dirmeta(meta: Dirmeta) -> bytes:
    """Return the bytes of a dirmeta object; also what `user.ostreemeta` holds in bare-user repositories."""
    return encode(_DIRMETA_TYPE, (big32(meta.uid), big32(meta.gid), big32(meta.mode), pack_xattrs(meta.xattrs)))


def decode_dirmeta(data: bytes, *, what: str = "dirmeta") -> Dirmeta:
    """Return the directory's metadata in `data`.

    Raises:
        MalformedOstreeDataError: It is none, or is not that of a directory.
    """
    uid, gid, mode, xattrs = decode(_DIRMETA_TYPE, data, what=what)
    meta = Dirmeta(uid=big32(uid), gid=big32(gid), mode=big32(mode), xattrs=unpack_xattrs(xattrs, what=what))
    if not stat.S_ISDIR(meta.mode) or meta.mode & ~(stat.S_IFDIR | _MODE_BITS):
        raise MalformedOstreeDataError(what=what, reason=f"{meta.mode:o} is no mode of a directory")
    return meta


def encode_metadata(metadata: Metadata) -> bytes:
    """Return the bytes of an `a{sv}`, in the order of `metadata`; also of a commitmeta object."""
    return encode("a{sv}", list(metadata.items()))


def decode_metadata(data: bytes, *, what: str) -> dict[str, Variant]:
    """Return what an `a{sv}` holds.

    Raises:
        MalformedOstreeDataError: It is none, or has a key twice.
    """
    return unique(decode("a{sv}", data, what=what), what=what)


def unique(pairs: Iterable[tuple[str, Variant]], *, what: str) -> dict[str, Variant]:
    """Return decoded dictionary entries as a dictionary.

    Raises:
        MalformedOstreeDataError: A key stands there twice, so that two readers could see two truths.
    """
    pairs = tuple(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedOstreeDataError(what=what, reason="a key stands there twice")
    return found


def commit_value(commit: Commit) -> tuple[object, ...]:
    """Return a commit as the tuple of its type."""
    return (
        list(commit.metadata.items()),
        commit.parent or b"",
        (),
        commit.subject,
        commit.body,
        big64(commit.timestamp),
        commit.root_tree,
        commit.root_meta,
    )


def encode_commit(commit: Commit) -> bytes:
    """Return the bytes of a commit object."""
    return encode(COMMIT_TYPE, commit_value(commit))


def decode_commit(data: bytes | memoryview, *, what: str = "commit") -> Commit:
    """Return the commit in `data`.

    Raises:
        MalformedOstreeDataError: It is none.
    """
    metadata, parent, _related, subject, body, timestamp, root_tree, root_meta = decode(COMMIT_TYPE, data, what=what)
    for checksum in (root_tree, root_meta, *((parent,) if parent else ())):
        check_checksum_size(checksum, what=what)
    return Commit(
        timestamp=big64(timestamp),
        root_tree=root_tree,
        root_meta=root_meta,
        subject=subject,
        body=body,
        parent=parent or None,
        metadata=unique(metadata, what=what),
    )
