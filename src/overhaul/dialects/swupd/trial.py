"""A version is tried before anybody can see it: installed from its own files into a scratch root, and compared.

What is read here is what devices will read: the signed MoM, the manifests it names, the zero packs, and full files
for what they lack. Every object is then hashed where it was installed, so what is proved covers headers, archives,
compression, manifests and signatures at once. Owners can only be given away by root; for everybody else they are
taken from the archives.
"""

import hashlib
import io
import os
import shutil
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from overhaul.dialects.swupd.fullfiles import FullfileStore, PackedObject, hash_member
from overhaul.dialects.swupd.hash import hash_path
from overhaul.dialects.swupd.manifest import Entry, Manifest, parse_manifest
from overhaul.dialects.swupd.names import FULL, MOM, manifest_path, pack_path, signature_path
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.packs import read_pieces, unpack_piece
from overhaul.dialects.swupd.published import manifest_hash
from overhaul.dialects.swupd.signing import SignatureRefusedError, verify_detached
from overhaul.dialects.swupd.tars import Member
from overhaul.errors import OperatorError, TrustError
from overhaul.progress import Progress

#: A file system in memory, where there is one.
_MEMORY = Path("/dev/shm")  # noqa: S108 - the name is ours, and a directory of somebody else's is not used
_ROOM_FACTOR = 3
_ROOM_BYTES = 512 << 20
#: Unpacked bytes that may wait for their installation, unless one object has more.
_AHEAD_BYTES = 64 << 20


class FailedTrialError(OperatorError):
    """A version that does not install what it was made of; it was not published."""

    def __init__(self, *, version: int, reason: str) -> None:
        self.version = version
        self.reason = reason
        super().__init__(
            f"Version {version} was built and does not install: {reason}. Nothing was published; check the disk and "
            "memory of this machine, and build it again."
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One version to try, under the directory it is made in."""

    web: Path
    making: Path
    version: int
    store: FullfileStore
    options: BuildOptions

    def run(self, *, progress: Progress) -> None:
        """Install the version into a scratch directory and compare.

        Raises:
            FailedTrialError: Something of it is not what its manifests say.
        """
        scratch = self._make_scratch()
        progress.begin("Trying the version", None)
        try:
            self._run(scratch, progress)
        except (TrustError, SignatureRefusedError) as error:
            raise FailedTrialError(version=self.version, reason=str(error).rstrip(".")) from error
        finally:
            progress.end()
            shutil.rmtree(scratch, ignore_errors=True)

    def _make_scratch(self) -> Path:
        """Return a new directory: in memory where there is plenty, since making and removing it costs a disk minutes.

        Its name says whose it is, so that what a killed run left is removed by the next.
        """
        size = sum(manifest.content_size for manifest in self._manifests())
        beside = self.web / f".trial-{self.version}"
        places = [beside]
        if not self.options.xattrs and _memory_free() > _ROOM_FACTOR * size + _ROOM_BYTES:
            whose = hashlib.sha256(os.fsencode(self.web.absolute())).hexdigest()[:16]
            places.insert(0, _MEMORY / f"overhaul-swupd-{os.geteuid()}-{whose}")
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
        for place in places:
            with suppress(OSError):
                place.mkdir(mode=0o700)
                return place
        raise FailedTrialError(version=self.version, reason=f"no directory can be made at {beside}")

    def _manifests(self) -> Iterator[Manifest]:
        for path in self.making.glob("Manifest.*"):
            name = path.name.removeprefix("Manifest.")
            if name not in {MOM, FULL} and path.suffix not in {".tar", ".sig"}:
                yield parse_manifest(path.read_bytes(), name=name)

    def _path(self, relative: str) -> Path:
        version, _, rest = relative.partition("/")
        return self.making / rest if version == str(self.version) else self.web / relative

    def _run(self, scratch: Path, progress: Progress) -> None:
        mom_bytes = self._path(manifest_path(self.version, MOM)).read_bytes()
        if self.options.signer is not None:
            signature = self._path(signature_path(manifest_path(self.version, MOM))).read_bytes()
            now, trusted = datetime.now(UTC), self.options.signer.anchors
            verify_detached(mom_bytes, signature, trusted=trusted, name=f"Manifest.{MOM}", now=now)
        mom = parse_manifest(mom_bytes, name=MOM)
        bundles: dict[str, Manifest] = {}
        for entry in mom.entries:
            name = entry.name.decode()
            data = self._path(manifest_path(entry.version, name)).read_bytes()
            if manifest_hash(data) != entry.hash:
                raise FailedTrialError(version=self.version, reason=f"the manifest of {name} has another hash")
            bundles[name] = parse_manifest(data, name=name)
        paths: dict[str, list[Entry]] = {}
        every: dict[bytes, Entry] = {}
        for manifest in bundles.values():
            for entry in manifest.entries:
                if entry.is_present and every.setdefault(entry.name, entry) is entry:
                    paths.setdefault(entry.hash, []).append(entry)
        root = os.fsencode(scratch)
        self._make_directories(root, every.values())
        owners: dict[str, Member] = {}
        for name, manifest in bundles.items():
            pack = self._path(pack_path(manifest.version, name, old=0))
            if manifest.version != self.version:
                continue  # tried when it was made
            for made in self._members(pack) if pack.is_file() else ():
                self._install(root, paths, owners, made.member.name.removeprefix("staged/"), made)
                progress.advance(len(made.content))
        for digest, entries in paths.items():
            if digest in owners:
                continue
            if all(entry.version != self.version for entry in entries):
                self._expect_fullfile(entries[0])
                continue
            first = entries[0]
            path = first.name if self.options.era.hashes_directory_paths and first.kind == "D" else None
            self._install(root, paths, owners, digest, self.store.read(self.version, digest, path=path))
        self._finish_directories(root, paths, owners)
        self._compare(root, paths, owners)

    def _expect_fullfile(self, entry: Entry) -> None:
        if not self.store.place(entry.version, entry.hash).is_file():
            shown = entry.name.decode(errors="backslashreplace")
            raise FailedTrialError(version=self.version, reason=f"the full file of {shown} of {entry.version} is gone")

    def _members(self, pack: Path) -> Iterator[PackedObject]:
        """Yield the objects of a pack; its streams are unpacked on all cores, a few ahead of what is installed."""

        def unpack(piece: bytes) -> list[tuple[Member, memoryview]]:
            return list(unpack_piece(io.BytesIO(piece), name=pack.name))

        waiting: deque[tuple[int, Future[list[tuple[Member, memoryview]]]]] = deque()
        ahead = 0
        with ThreadPoolExecutor(self.options.workers, thread_name_prefix="swupd-trial") as pool:
            for size, piece in chain(read_pieces(pack, self.options), [(_AHEAD_BYTES, b"")]):
                while waiting and (ahead + size > _AHEAD_BYTES or len(waiting) > self.options.workers):
                    done, members = waiting.popleft()
                    for member, content in members.result():
                        if member.name.startswith("staged/"):
                            yield PackedObject(member, bytes(content))
                    ahead -= done
                if piece:
                    waiting.append((size, pool.submit(unpack, piece)))
                    ahead += size

    def _make_directories(self, root: bytes, entries: Iterable[Entry]) -> None:
        folders = {entry.name if entry.kind == "D" else os.path.dirname(entry.name) for entry in entries}
        for folder in sorted(folders):
            os.makedirs(root + folder, exist_ok=True)

    def _install(
        self, root: bytes, paths: dict[str, list[Entry]], owners: dict[str, Member], digest: str, made: PackedObject
    ) -> None:
        member = made.member
        if digest not in paths or digest in owners:
            return
        owners[digest] = member
        if stat.S_ISDIR(member.mode):
            return  # rights come last, so that a locked directory does not lock us out
        for entry in paths[digest]:
            target = root + entry.name
            if stat.S_ISLNK(member.mode):
                os.symlink(member.target, target)
                _give(target, member)
                continue
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                left = memoryview(made.content)
                while left:
                    left = left[os.write(descriptor, left) :]
                _give(descriptor, member)
                os.fchmod(descriptor, stat.S_IMODE(member.mode))
            finally:
                os.close(descriptor)

    def _finish_directories(self, root: bytes, paths: dict[str, list[Entry]], owners: dict[str, Member]) -> None:
        for digest, member in owners.items():
            if stat.S_ISDIR(member.mode):
                for entry in paths[digest]:
                    _give(root + entry.name, member)
                    os.chmod(root + entry.name, stat.S_IMODE(member.mode))

    def _compare(self, root: bytes, paths: dict[str, list[Entry]], owners: dict[str, Member]) -> None:
        is_root = os.geteuid() == 0
        for digest, member in owners.items():
            for entry in paths[digest]:
                path = entry.name if self.options.era.hashes_directory_paths and entry.kind == "D" else None
                target = root + entry.name
                if is_root:
                    found = hash_path(target, path=path, with_xattrs=self.options.xattrs)
                else:
                    content = b""
                    if entry.kind == "F":
                        with open(target, "rb") as stream:
                            content = stream.read()
                    found = hash_member(member, content, path=path)
                if found != digest:
                    shown = entry.name.decode(errors="backslashreplace")
                    raise FailedTrialError(version=self.version, reason=f"{shown} is another object than was built")


def _memory_free() -> int:
    """Return the bytes that fit into the file system in memory without anything else having to go."""
    try:
        status = os.statvfs(_MEMORY)
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    available = next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 0)
    return min(status.f_bavail * status.f_frsize, available)


def _give(target: bytes | int, member: Member) -> None:
    """Give an object that is open or at a path, where links are not followed, its owner and attributes."""
    follow = isinstance(target, int)
    if os.geteuid() == 0:
        os.chown(target, member.uid, member.gid, follow_symlinks=follow)
    for name, value in member.xattrs:
        os.setxattr(target, name, value, follow_symlinks=follow)
