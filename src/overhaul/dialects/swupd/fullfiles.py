"""Full files: one object in a tar of its own, made from a tree and read back, each known by its hash."""

import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from overhaul.content.tree import TreeEntry
from overhaul.dialects.swupd.hash import hash_directory, hash_file, hash_link
from overhaul.dialects.swupd.names import fullfile_path
from overhaul.dialects.swupd.packing import Compression, MalformedCompressionError, compress, decompress
from overhaul.dialects.swupd.tars import END, MalformedTarError, Member, encode_header, padding, read_tar
from overhaul.errors import TrustError

#: Nothing larger is made, because clients hold sizes in numbers and disks in pieces far below it.
MAX_OBJECT_BYTES = 1 << 36
_HEAD_ROOM = 1 << 20


class DamagedFullfileError(TrustError):
    """A published full file that does not hold the object it is named after."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The full file {path} is damaged: {reason}. Restore it, or build its version again.")


@dataclass(frozen=True)
class PackedObject:
    """An object as it lies in an archive: its header, and its content if it is a file."""

    member: Member
    content: bytes

    def as_member(self, name: str) -> bytes:
        """Return it as a member called `name` of an uncompressed archive."""
        member = msgspec.structs.replace(self.member, name=name)
        return b"".join([encode_header(member), self.content, padding(len(self.content))])


def member_of(entry: TreeEntry, object_hash: str, *, with_xattrs: bool) -> Member:
    """Return the header of an object of a tree."""
    return Member(
        name=object_hash,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        size=entry.size if entry.is_file else 0,
        mtime=entry.mtime_ns // 1_000_000_000,
        target=entry.target or b"",
        xattrs=entry.xattrs if with_xattrs else (),
    )


def hash_entry(entry: TreeEntry, content: bytes | memoryview, *, path: bytes | None, with_xattrs: bool) -> str:
    """Return the hash of an object of a tree; `path` is the name of a directory where the format hashes it."""
    return hash_member(member_of(entry, "", with_xattrs=with_xattrs), content, path=path)


def hash_member(member: Member, content: bytes | memoryview, *, path: bytes | None = None) -> str:
    """Return the hash of an object in an archive."""
    mode, uid, gid, xattrs = member.mode, member.uid, member.gid, member.xattrs
    if stat.S_ISREG(mode):
        return hash_file(content, mode=mode, uid=uid, gid=gid, xattrs=xattrs)
    if stat.S_ISLNK(mode):
        return hash_link(member.target, uid=uid, gid=gid, xattrs=xattrs)
    return hash_directory(mode=mode, uid=uid, gid=gid, path=path, xattrs=xattrs)


def encode_fullfile(member: Member, content: bytes | memoryview, *, how: Compression, level: int) -> bytes:
    """Return the bytes of a full file."""
    archive = b"".join([encode_header(member), content, padding(len(content)), END])
    # What is no file is mostly zeros: nothing beats gzip there.
    way = how if stat.S_ISREG(member.mode) or how == "none" else "gzip"
    return compress(archive, how=way, level=level)


def decode_fullfile(data: bytes, object_hash: str, *, place: Path, path: bytes | None = None) -> PackedObject:
    """Return the object in a full file after its hash was found right.

    `path` is the directory's name where the format hashes it; without one, directories of format 3 are taken by
    their name only.

    Raises:
        DamagedFullfileError: It holds something else.
    """
    try:
        archive = decompress(data, name=place.name, limit=MAX_OBJECT_BYTES + _HEAD_ROOM)
        members = list(read_tar(archive, name=place.name))
    except (MalformedCompressionError, MalformedTarError) as error:
        raise DamagedFullfileError(path=place, reason=error.reason) from error
    if len(members) != 1 or members[0][0].name != object_hash:
        raise DamagedFullfileError(path=place, reason="it does not hold exactly the object of its name")
    member, view = members[0]
    content = bytes(view)
    if hash_member(member, content, path=path) != object_hash:
        raise DamagedFullfileError(path=place, reason="the hash of its object is another one")
    return PackedObject(member, content)


@dataclass(frozen=True)
class FullfileStore:
    """Full files where they are published, and those of a version that is being made."""

    web: Path
    #: Version directories that have another name while they are made.
    making: dict[int, Path]

    def place(self, version: int, object_hash: str) -> Path:
        """Return where the full file of a version lies or will lie."""
        if version in self.making:
            return self.making[version] / "files" / f"{object_hash}.tar"
        return self.web / fullfile_path(version, object_hash)

    def read(self, version: int, object_hash: str, *, path: bytes | None = None) -> PackedObject:
        """Return an object, checked.

        Raises:
            DamagedFullfileError: It is missing or damaged.
        """
        place = self.place(version, object_hash)
        try:
            data = place.read_bytes()
        except OSError as error:
            raise DamagedFullfileError(path=place, reason=str(error.strerror)) from error
        return decode_fullfile(data, object_hash, place=place, path=path)

    def size(self, version: int, object_hash: str) -> int:
        """Return the bytes of a full file as it is published."""
        return self.place(version, object_hash).stat().st_size

    def hold(self, version: int, object_hash: str, data: bytes) -> None:
        """Write a full file of the version that is being made; it is whole or not there, and not synced."""
        with self.holding(version, object_hash, data) as name_it:
            name_it()

    @contextmanager
    def holding(self, version: int, object_hash: str, data: bytes) -> Iterator[Callable[[], None]]:
        """Write a full file that is there only if the block calls what it is given."""
        place = os.fspath(self.place(version, object_hash))
        temporary = f"{place}.{os.getpid()}-{threading.get_ident()}.part"
        named = False

        def name_it() -> None:
            nonlocal named
            os.rename(temporary, place)
            named = True

        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(descriptor, left) :]
        finally:
            os.close(descriptor)
        yield name_it
        if not named:
            os.unlink(temporary)

    def holds_right(self, version: int, object_hash: str, *, mtime: int, path: bytes | None = None) -> bool:
        """Tell whether a full file with this time is there already and right, as one that a killed run left."""
        with suppress(DamagedFullfileError):
            return self.read(version, object_hash, path=path).member.mtime == max(mtime, 0)
        return False

    def keep_only(self, version: int, wanted: Sequence[str]) -> None:
        """Remove whatever else a run that died left among the full files of a version."""
        directory = self.place(version, "x").parent
        names = {f"{object_hash}.tar" for object_hash in wanted}
        for name in os.listdir(directory):
            if name not in names:
                os.unlink(directory / name)
