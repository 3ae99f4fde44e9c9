"""Getting objects: out of the cache, packs, deltas against installed files, and single full files.

Whatever way an object came, it is kept under its hash only after its hash was computed over what was written, so a
bad pack, delta or mirror makes things slower and never wrong. A run that is killed keeps what it has.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overhaul.dialects.swupd.device.archives import Member, read_archive, reading
from overhaul.dialects.swupd.device.errors import BadArchiveError, BadContentError, DownloadError
from overhaul.dialects.swupd.device.repository import Bundle, Repository
from overhaul.dialects.swupd.hash import hash_directory, hash_file, hash_link, hash_path, hash_pieces, read_xattrs
from overhaul.dialects.swupd.manifest import MAX_CONTENT_SIZE, Entry
from overhaul.dialects.swupd.names import fullfile_path, pack_path, parse_delta_name
from overhaul.progress import Progress

#: A delta is applied in memory; above this the whole file is fetched, which streams.
_DELTA_MEMORY = 64 << 20
_DELTA_BYTES = 32 << 20
#: Objects up to this size are hashed in one piece.
_WHOLE = 1 << 20
#: What tar and compression may add to the content of one object.
_OBJECT_OVERHEAD = 8192
_ARCHIVE_OVERHEAD = 1 << 20
#: What builds of format 25 state when the true size does not fit.
_CAPPED_CONTENT_SIZE = 1_999_999_999


@dataclass(frozen=True)
class PackRef:
    """A pack: what leads from one version of a bundle (0: from nothing) to another."""

    bundle: str
    old: int
    version: int
    #: Bytes of its content at most.
    limit_bytes: int


@dataclass
class Gathered:
    """How the objects of a run came."""

    from_cache: int = 0
    from_packs: int = 0
    from_deltas: int = 0
    from_fullfiles: int = 0
    #: Packs that could not be used, and why.
    bad_packs: dict[str, str] = field(default_factory=dict)
    #: Hashes of objects that could not be had, and why; only where that is tolerated.
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Objects:
    """The objects of one repository."""

    repository: Repository
    #: Whether directories hash their path (format 3).
    hashes_paths: bool
    with_xattrs: bool
    #: More local caches, such as one on an installation medium; read only.
    other_caches: tuple[Path, ...] = ()

    @property
    def directory(self) -> Path:
        """Where objects lie under their hashes."""
        return self.repository.cache.staged

    def gather(
        self,
        wanted: Iterable[Entry],
        *,
        packs: Sequence[PackRef],
        limit_bytes: int,
        progress: Progress,
        installed: Mapping[str, Sequence[bytes]] | None = None,
        root: Path = Path("/"),
        goes_on: bool = False,
    ) -> Gathered:
        """Bring the object of every entry into `directory`.

        `packs` are tried first, `limit_bytes` bounds a single object, and `installed` tells under which paths of
        `root` files with a hash should be, so that deltas can start from them. With `goes_on` an object that cannot
        be had is noted, and the others are brought all the same.

        Raises:
            BadContentError: The repository has something else under an object's name.
            DownloadError: Something cannot be had.
        """
        missing = {entry.hash: entry for entry in wanted}
        gathered = Gathered()
        gathered.from_cache = self._drop_present(missing)
        base = _Base(root, installed or {}, self.with_xattrs)
        if missing and packs:
            self._from_packs(missing, packs, base, gathered, progress)
        if missing:
            failed = gathered.failed if goes_on else None
            gathered.from_fullfiles = self._from_fullfiles(missing, limit_bytes, progress, failed)
        return gathered

    def _drop_present(self, missing: dict[str, Entry]) -> int:
        present = 0
        try:
            names = set(os.listdir(self.directory))
        except FileNotFoundError:
            names = set()
        for name in names & missing.keys():
            if self._is_right(self.directory / name, missing[name]):
                del missing[name]
                present += 1
            else:
                _discard(self.directory / name)
        for cache in self.other_caches:
            for name in list(missing):
                found = cache / "staged" / name
                if found.exists() and self._is_right(found, missing[name]) and self._adopt(found, missing[name]):
                    del missing[name]
                    present += 1
        return present

    def _is_right(self, path: Path, entry: Entry) -> bool:
        return hash_path(path, path=self._hashed_name(entry), with_xattrs=self.with_xattrs) == entry.hash

    def _hashed_name(self, entry: Entry) -> bytes | None:
        return entry.name if self.hashes_paths and entry.kind == "D" else None

    def _adopt(self, found: Path, entry: Entry) -> bool:
        """Copy an object of another cache; that cache is not ours to link to."""
        from overhaul.dialects.swupd.device.places import copy_file

        status = os.lstat(found)
        target = self.directory / entry.hash
        if entry.kind == "F":
            copy_file(os.fsencode(found), os.fsencode(target), status)
        elif entry.kind == "L":
            target.symlink_to(found.readlink())
            os.chown(target, status.st_uid, status.st_gid, follow_symlinks=False)
        else:
            target.mkdir()
            os.chown(target, status.st_uid, status.st_gid)
            target.chmod(status.st_mode & 0o7777)
        if self.with_xattrs:
            for name, value in read_xattrs(found):
                os.setxattr(target, name, value, follow_symlinks=False)
        if self._is_right(target, entry):
            return True
        _discard(target)
        return False

    # Packs

    def _from_packs(
        self,
        missing: dict[str, Entry],
        packs: Sequence[PackRef],
        base: "_Base",
        gathered: Gathered,
        progress: Progress,
    ) -> None:
        cache = self.repository.cache
        todo = [
            pack for pack in packs if not cache.pack_marker(pack.bundle, old=pack.old, version=pack.version).exists()
        ]
        if not todo:
            return
        progress.begin("Packs", len(todo), "packs")
        for pack in todo:
            url = f"{self.repository.content_url}/{pack_path(pack.version, pack.bundle, old=pack.old)}"
            path = cache.download / f"pack-{pack.bundle}-from-{pack.old}-to-{pack.version}.tar"
            try:
                if path.exists() or self.repository.downloader.file(url, path, limit_bytes=pack.limit_bytes):
                    self._unpack(path, pack, url=url, missing=missing, base=base, gathered=gathered)
                    cache.pack_marker(pack.bundle, old=pack.old, version=pack.version).touch()
            except (BadArchiveError, DownloadError) as error:
                # Only slower: what it would have brought is fetched file by file.
                gathered.bad_packs[url] = str(error)
            path.unlink(missing_ok=True)
            progress.advance(1)
            if not missing:
                break
        progress.end()

    def _unpack(
        self,
        path: Path,
        pack: PackRef,
        *,
        url: str,
        missing: dict[str, Entry],
        base: "_Base",
        gathered: Gathered,
    ) -> None:
        with reading(url):
            for member in read_archive(path, name=url, limit_bytes=pack.limit_bytes):
                folder, slash, name = member.name.partition("/")
                if not slash or not name:
                    continue
                if folder == "staged" and name in missing:
                    if self._store(member, missing[name]):
                        del missing[name]
                        gathered.from_packs += 1
                elif folder == "delta" and member.kind == "F" and member.size <= _DELTA_BYTES:
                    done = self._apply_delta(name, member, missing, base)
                    if done is not None:
                        del missing[done]
                        gathered.from_deltas += 1

    def _apply_delta(self, name: str, member: Member, missing: Mapping[str, Entry], base: "_Base") -> str | None:
        """Return the hash of the object that the delta made, or None when it is of no use here."""
        hashes = parse_delta_name(name)
        if hashes is None or hashes[1] not in missing:
            return None
        old_hash, new_hash = hashes
        entry = missing[new_hash]
        old_hash = old_hash or base.hash_at(entry.name)
        return (
            new_hash
            if old_hash is not None
            and entry.kind == "F"
            and self._patch(b"".join(member.pieces()), base, old_hash=old_hash, new_hash=new_hash)
            else None
        )

    def _patch(self, delta: bytes, base: "_Base", *, old_hash: str, new_hash: str) -> bool:
        from overhaul.dialects.swupd.bsdiff import MalformedDeltaFileError, apply_delta, read_delta_header

        try:
            header = read_delta_header(delta)
            is_small = header.old_size + 2 * header.new_size <= _DELTA_MEMORY
            found = base.read(old_hash, header.old_size) if is_small else None
            if found is None:
                return False
            old, xattrs = found
            new = apply_delta(delta, old)
        except MalformedDeltaFileError:
            return False
        if hash_file(new, mode=header.mode, uid=header.uid, gid=header.gid, xattrs=xattrs) != new_hash:
            return False
        made = Member(new_hash, "F", header.mode, header.uid, header.gid, len(new), b"", xattrs)
        return self._write(made, [new])

    # Full files

    def _from_fullfiles(
        self, missing: dict[str, Entry], limit_bytes: int, progress: Progress, failed: dict[str, str] | None
    ) -> int:
        def fetch(entry: Entry) -> bool:
            try:
                self._fetch(entry, limit_bytes)
            except (BadArchiveError, BadContentError, DownloadError) as error:
                if failed is None:
                    raise
                failed[entry.hash] = str(error)
                return False
            return True

        count = 0
        progress.begin("Single files", len(missing), "files")
        waiting = sorted(missing.values(), key=lambda entry: entry.version)
        for entry, is_here in self.repository.downloader.each(waiting, fetch):
            del missing[entry.hash]
            count += is_here
            progress.advance(1)
        progress.end()
        return count

    def _fetch(self, entry: Entry, limit_bytes: int) -> None:
        url = f"{self.repository.content_url}/{fullfile_path(entry.version, entry.hash)}"
        path = self.repository.cache.download / f"{entry.hash}.tar"
        shown = os.fsdecode(entry.name)
        limit = limit_bytes + _OBJECT_OVERHEAD + _ARCHIVE_OVERHEAD
        if not self.repository.downloader.file(url, path, limit_bytes=limit):
            raise DownloadError(what=f"{shown} of version {entry.version}", reason=f"{url} does not exist")
        try:
            stored = False
            members = 0
            with reading(url):
                for member in read_archive(path, name=url, limit_bytes=limit):
                    members += 1
                    stored = members == 1 and member.name == entry.hash and self._store(member, entry)
                    if not stored:
                        break
        finally:
            path.unlink(missing_ok=True)
        if not stored:
            _discard(self.directory / entry.hash)
            reason = f"{url} does not have exactly the object whose hash the manifest names"
            raise BadContentError(what=shown, reason=reason)

    # Writing

    def _store(self, member: Member, entry: Entry) -> bool:
        """Keep a member under the hash of `entry`; return whether it is what the hash says."""
        if member.kind != entry.kind:
            if member.kind == "H":
                return self._store_link(member, entry)
            return False
        xattrs = member.xattrs if self.with_xattrs else ()
        target = self.directory / entry.hash
        if member.kind == "F":
            return self._store_file(member, entry, xattrs)
        if member.kind == "D":
            found = hash_directory(
                mode=member.mode, uid=member.uid, gid=member.gid, path=self._hashed_name(entry), xattrs=xattrs
            )
        else:
            found = hash_link(member.target, uid=member.uid, gid=member.gid, xattrs=xattrs)
        if found != entry.hash:
            return False
        _discard(target)
        if member.kind == "D":
            os.mkdir(target, 0o700)
            os.chown(target, member.uid, member.gid)
            os.chmod(target, member.mode & 0o7777)
        else:
            os.symlink(member.target, os.fsencode(target))
            os.chown(target, member.uid, member.gid, follow_symlinks=False)
        _set_xattrs(target, xattrs)
        return True

    def _store_file(self, member: Member, entry: Entry, xattrs: tuple[tuple[bytes, bytes], ...]) -> bool:
        about = Member(entry.hash, "F", member.mode, member.uid, member.gid, member.size, b"", xattrs)
        if member.size <= _WHOLE:
            data = b"".join(member.pieces())
            found = hash_file(data, mode=member.mode, uid=member.uid, gid=member.gid, xattrs=xattrs)
            if found != entry.hash:
                return False
            self._write(about, [data])
            return True
        return self._write(about, member.pieces())

    def _store_link(self, member: Member, entry: Entry) -> bool:
        """Take another name of an object of the same pack, by its content and not by the name it gives."""
        first = member.target.rpartition(b"/")[2]
        source = os.path.join(os.fsencode(self.directory), first)
        if len(first) != 64 or not first.isalnum() or hash_path(source, with_xattrs=self.with_xattrs) != entry.hash:
            return False
        target = os.path.join(os.fsencode(self.directory), entry.hash.encode())
        if source != target:
            _discard(self.directory / entry.hash)
            os.link(source, target, follow_symlinks=False)
        return True

    def _write(self, about: Member, pieces: Iterable[bytes]) -> bool:
        """Write a file; return whether it got the hash it is named after, else it is gone again."""
        target = self.directory / about.name
        _discard(target)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            written = _writing(descriptor, pieces)
            if isinstance(pieces, list):
                for _piece in written:
                    pass
                found = about.name
            else:
                found = hash_pieces(
                    written, mode=about.mode, uid=about.uid, gid=about.gid, size=about.size, xattrs=about.xattrs
                )
            if found == about.name:
                os.fchown(descriptor, about.uid, about.gid)
                os.fchmod(descriptor, about.mode & 0o7777)
                for name, value in about.xattrs:
                    os.setxattr(descriptor, name, value)
        except BaseException:
            os.unlink(target)
            raise
        finally:
            os.close(descriptor)
        if found != about.name:
            os.unlink(target)
            return False
        return True


class _Base:
    """Installed files by their hashes, read only when their content is what the hash says."""

    def __init__(self, root: Path, installed: Mapping[str, Sequence[bytes]], with_xattrs: bool) -> None:  # noqa: FBT001
        self._root = os.fsencode(root).rstrip(b"/")
        self._installed = installed
        self._with_xattrs = with_xattrs
        self._hash_of_path: dict[bytes, str] | None = None

    def hash_at(self, path: bytes) -> str | None:
        """Return the hash that the file at `path` should have."""
        if self._hash_of_path is None:
            self._hash_of_path = {path: name for name, paths in self._installed.items() for path in paths}
        return self._hash_of_path.get(path)

    def read(self, wanted: str, size: int) -> tuple[bytes, tuple[tuple[bytes, bytes], ...]] | None:
        for path in self._installed.get(wanted, ()):
            try:
                descriptor = os.open(self._root + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                status = os.fstat(descriptor)
                if status.st_size != size or status.st_mode & 0o170000 != 0o100000:
                    continue
                data = b"".join(iter(lambda: os.read(descriptor, _WHOLE), b""))  # noqa: B023 - used at once
                xattrs = read_xattrs(self._root + path) if self._with_xattrs else ()
            finally:
                os.close(descriptor)
            found = hash_file(data, mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, xattrs=xattrs)
            if found == wanted:
                return data, xattrs
        return None


def paths_by_hash(entries: Iterable[Entry]) -> dict[str, list[bytes]]:
    """Return under which paths each regular file lies, for deltas."""
    found: defaultdict[str, list[bytes]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "F":
            found[entry.hash].append(entry.name)
    return found


def content_limit(bundle: Bundle) -> int:
    """Return how many bytes the objects of a bundle can have together, packed as one tar."""
    size = bundle.manifest.content_size
    if size == _CAPPED_CONTENT_SIZE:
        size = MAX_CONTENT_SIZE
    return size + size // 10 + len(bundle.manifest.entries) * _OBJECT_OVERHEAD + _ARCHIVE_OVERHEAD


def _writing(descriptor: int, pieces: Iterable[bytes]) -> Iterable[bytes]:
    for piece in pieces:
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]
        yield piece


def _set_xattrs(target: Path, xattrs: Iterable[tuple[bytes, bytes]]) -> None:
    for name, value in xattrs:
        os.setxattr(target, name, value, follow_symlinks=False)


def _discard(path: Path) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        os.rmdir(path)
