"""A small repository written straight from the format's description, for tests of the swupd client.

It stands in for a builder where a test wants to decide about every byte: it keeps whole systems in memory, writes
version after version with real manifests, signatures, full files, packs and deltas, and can be made to lie. The
real builder is exercised by the scenario tests.
"""

import atexit
import io
import lzma
import shutil
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from overhaul.content.delta.covers import Cover
from overhaul.dialects.swupd.bsdiff import make_delta
from overhaul.dialects.swupd.hash import hash_directory, hash_file, hash_link
from overhaul.dialects.swupd.manifest import Entry, Manifest, deleted_entry, encode_manifest
from overhaul.dialects.swupd.signing import Signer, load_signer
from tests.swupd_keys import SigningFiles, self_signed

#: Long before any test runs, so that no clock is set.
BUILT_AT = 1_500_000_000


@dataclass(frozen=True)
class Thing:
    """One object: a file (`F`), link (`L`) or directory (`D`)."""

    kind: str
    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mark: str = "."
    modifier: str = "."

    @property
    def hash(self) -> str:
        """The hash of the object."""
        if self.kind == "D":
            return hash_directory(mode=0o040000 | self.mode, uid=self.uid, gid=self.gid)
        if self.kind == "L":
            return hash_link(self.content, uid=self.uid, gid=self.gid)
        return hash_file(self.content, mode=0o100000 | self.mode, uid=self.uid, gid=self.gid)

    def member(self, name: str) -> tarfile.TarInfo:
        """Return the tar header of the object."""
        info = tarfile.TarInfo(name)
        info.mode, info.uid, info.gid = self.mode, self.uid, self.gid
        info.type = {"F": tarfile.REGTYPE, "L": tarfile.SYMTYPE, "D": tarfile.DIRTYPE}[self.kind]
        if self.kind == "L":
            info.linkname = self.content.decode("utf-8", "surrogateescape")
        elif self.kind == "F":
            info.size = len(self.content)
        return info


def file(content: bytes | str, mode: int = 0o644) -> Thing:
    """Return a regular file of root's."""
    return Thing("F", content.encode() if isinstance(content, str) else content, mode)


def link(target: str) -> Thing:
    """Return a symbolic link."""
    return Thing("L", target.encode(), 0o777)


def directory(mode: int = 0o755) -> Thing:
    """Return a directory."""
    return Thing("D", b"", mode)


#: Path -> object.
Tree = Mapping[str, Thing]


@dataclass(frozen=True)
class Packing:
    """What a version publishes besides manifests and full files."""

    packs: bool = True
    fullfiles: bool = True
    manifest_deltas: bool = True
    compress: Callable[[bytes], bytes] = lzma.compress
    #: The signature of the MoM also lies in its tar, as newer builders do it.
    signature_in_tar: bool = True


@cache
def shared_keys() -> SigningFiles:
    """Return one key pair for all tests of this process; making one takes long."""
    place = Path(mkdtemp(prefix="swupd-keys-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return self_signed(place, options=("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"))


@dataclass
class _Version:
    version: int
    manifests: dict[str, Manifest] = field(default_factory=dict)
    trees: dict[str, dict[str, Thing]] = field(default_factory=dict)


class Site:
    """A repository in a directory."""

    def __init__(self, directory_: Path, *, number: int = 4, keys: SigningFiles | None = None) -> None:
        self.directory = directory_
        self.number = number
        self.keys = keys or shared_keys()
        self.signer: Signer = load_signer(key=self.keys.key, certificate=self.keys.certificate)
        self.versions: list[_Version] = []
        self._last: dict[str, int] = {}
        directory_.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """The repository's file address."""
        return f"file://{self.directory}"

    def publish(
        self,
        version: int,
        bundles: Mapping[str, Tree],
        *,
        includes: Mapping[str, Iterable[str]] | None = None,
        also_add: Mapping[str, Iterable[str]] | None = None,
        packing: Packing | None = None,
        ghosts: Iterable[str] = (),
        moves_latest: bool = True,
        experimental: Iterable[str] = (),
        minversion: int = 0,
    ) -> None:
        """Write a version; `os-core` gets what every system needs besides what it is given."""
        packing = packing or Packing()
        before = self.versions[-1] if self.versions else _Version(0)
        now = _Version(version)
        for name, tree in {"os-core": {}, **bundles}.items():
            whole = {**tree, **self._own(name, version)}
            now.trees[name] = whole
            old = before.manifests.get(name)
            entries = self._entries(whole, old, version, set(ghosts), minversion)
            needs = () if name == "os-core" else ("os-core", *(includes or {}).get(name, ()))
            suggests = tuple((also_add or {}).get(name, ()))
            is_same = old is not None and old.entries == entries and old.includes == needs and not minversion
            if old is not None and is_same:
                now.manifests[name] = old
                continue
            size = sum(len(thing.content) for thing in whole.values())
            now.manifests[name] = Manifest(
                format=self.number, version=version, previous=old.version if old else 0, timestamp=BUILT_AT,
                content_size=size, includes=needs, also_add=suggests, entries=entries,
            )  # fmt: skip
        self._write(now, before, packing, set(experimental), minversion)
        self.versions.append(now)
        if moves_latest:
            self.point(version)

    def point(self, version: int, *, signer: Signer | None = None) -> None:
        """Make `version` the newest."""
        place = self.directory / "version"
        for path in (place / f"format{self.number}" / "latest", place / "latest_version"):
            path.parent.mkdir(parents=True, exist_ok=True)
            data = f"{version}\n".encode()
            path.write_bytes(data)
            path.with_name(path.name + ".sig").write_bytes((signer or self.signer).sign(data))

    def fullfile(self, path: str, bundle: str = "os-core") -> Path:
        """Return where the full file of an object of the newest version lies."""
        manifest = self.versions[-1].manifests[bundle]
        entry = next(entry for entry in manifest.entries if entry.name == path.encode())
        return self.directory / str(entry.version) / "files" / f"{entry.hash}.tar"

    def tree(self) -> dict[str, Thing]:
        """Return the whole newest system."""
        return {path: thing for tree in self.versions[-1].trees.values() for path, thing in tree.items()}

    def sign_mom(self, version: int, data: bytes, *, signer: Signer | None = None) -> None:
        """Replace a version's MoM by `data`, signed."""
        place = self.directory / str(version)
        signature = (signer or self.signer).sign(data)
        (place / "Manifest.MoM").write_bytes(data)
        (place / "Manifest.MoM.sig").write_bytes(signature)
        (place / "Manifest.MoM.tar").write_bytes(
            archive([(_plain("Manifest.MoM", data), data), (_plain("Manifest.MoM.sig", signature), signature)])
        )

    def _own(self, bundle: str, version: int) -> dict[str, Thing]:
        own = {f"/usr/share/clear/bundles/{bundle}": file("")}
        for path in ("/usr", "/usr/lib", "/usr/share", "/usr/share/clear", "/usr/share/clear/bundles"):
            own[path] = directory()
        if bundle == "os-core":
            own["/usr/lib/os-release"] = file(f'NAME=Test\nVERSION_ID={version}\nPRETTY_NAME="Test {version}"\n')
            own["/usr/share/clear/versionstamp"] = file(f"{BUILT_AT}\n")
            own["/usr/share/defaults"] = own["/usr/share/defaults/swupd"] = directory()
            own["/usr/share/defaults/swupd/format"] = file(f"{self.number}\n")
            own["/usr/share/clear/update-ca"] = directory()
            own["/usr/share/clear/update-ca/Swupd_Root.pem"] = file(self.keys.certificate.read_bytes())
        return own

    def _entries(
        self, tree: Tree, old: Manifest | None, version: int, ghosts: set[str], minversion: int
    ) -> tuple[Entry, ...]:
        known = {entry.name: entry for entry in old.entries} if old else {}
        entries = []
        for path, thing in tree.items():
            name = path.encode("utf-8", "surrogateescape")
            entry = Entry(thing.kind, ".", thing.modifier, thing.mark, thing.hash, version, name)
            was = known.pop(name, None)
            if was is not None and was.version >= minversion and replace_version(was, version) == entry:
                entry = was
            entries.append(entry)
        for name, was in known.items():
            if not was.is_present:
                if was.is_deleted:
                    entries.append(was)
                continue
            entries.append(deleted_entry(name, version=version, ghosted=name.decode("latin-1") in ghosts))
        return tuple(sorted(entries, key=lambda entry: (entry.version, entry.name)))

    def _write(
        self, now: _Version, before: _Version, packing: Packing, experimental: set[str], minversion: int
    ) -> None:
        place = self.directory / str(now.version)
        (place / "files").mkdir(parents=True)
        lines = []
        for name, manifest in now.manifests.items():
            data = encode_manifest(manifest)
            digest = hash_file(data, mode=0o100644, uid=0, gid=0)
            status = "e" if name in experimental else "."
            lines.append(Entry("M", status, ".", ".", digest, manifest.version, name.encode()))
            if manifest.version != now.version:
                continue
            (place / f"Manifest.{name}").write_bytes(data)
            plain = archive([(_plain(f"Manifest.{name}", data), data)])
            (place / f"Manifest.{name}.tar").write_bytes(packing.compress(plain))
            self._write_objects(place, now, name, packing)
            old = before.manifests.get(name)
            if old is not None and packing.manifest_deltas:
                delta = make_delta(encode_manifest(old), data, mode=0o100644, uid=0, gid=0, find_covers=common_ends)
                if delta is not None:
                    (place / f"Manifest-{name}-delta-from-{old.version}").write_bytes(delta)
            if packing.packs:
                self._write_pack(place, now, before, name, packing, old=0)
                if old is not None:
                    self._write_pack(place, now, before, name, packing, old=old.version)
        mom = Manifest(
            format=self.number, version=now.version, previous=before.version, timestamp=BUILT_AT,
            minversion=minversion, entries=tuple(sorted(lines, key=lambda entry: (entry.version, entry.name))),
        )  # fmt: skip
        data = encode_manifest(mom)
        signature = self.signer.sign(data)
        (place / "Manifest.MoM").write_bytes(data)
        (place / "Manifest.MoM.sig").write_bytes(signature)
        members = [(_plain("Manifest.MoM", data), data)]
        if packing.signature_in_tar:
            members.append((_plain("Manifest.MoM.sig", signature), signature))
        (place / "Manifest.MoM.tar").write_bytes(packing.compress(archive(members)))
        (place / "format").write_text(f"{self.number}\n")

    def _write_objects(self, place: Path, now: _Version, name: str, packing: Packing) -> None:
        if not packing.fullfiles:
            return
        for entry in now.manifests[name].entries:
            if entry.is_present and entry.version == now.version:
                thing = now.trees[name][entry.name.decode("utf-8", "surrogateescape")]
                data = archive([(thing.member(entry.hash), thing.content)])
                (place / "files" / f"{entry.hash}.tar").write_bytes(packing.compress(data))

    def _write_pack(
        self, place: Path, now: _Version, before: _Version, name: str, packing: Packing, *, old: int
    ) -> None:
        members: list[tuple[tarfile.TarInfo, bytes]] = []
        for folder in ("staged", "delta"):
            members.append((replace_mode(directory().member(folder), 0o700), b""))
        done = set()
        for entry in now.manifests[name].entries:
            if not entry.is_present or entry.version <= old or entry.hash in done:
                continue
            done.add(entry.hash)
            path = entry.name.decode("utf-8", "surrogateescape")
            thing = now.trees[name][path]
            was = before.trees.get(name, {}).get(path) if old else None
            delta = None
            if was is not None and was.kind == thing.kind == "F":
                delta = make_delta(
                    was.content, thing.content, mode=0o100000 | thing.mode, uid=thing.uid, gid=thing.gid,
                    find_covers=common_ends,
                )  # fmt: skip
            if was is not None and delta is not None:
                member = _plain(f"delta/{old}-{now.version}-{was.hash}-{entry.hash}", delta)
                members.append((member, delta))
            else:
                members.append((thing.member(f"staged/{entry.hash}"), thing.content))
        (place / f"pack-{name}-from-{old}.tar").write_bytes(packing.compress(archive(members)))


def archive(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """Return an uncompressed tar."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return stream.getvalue()


def common_ends(new: bytes, old: bytes) -> list[Cover]:
    """Return the common beginning and end of two contents: enough of a delta for tests."""
    shortest = min(len(new), len(old))
    front = next((i for i in range(shortest) if new[i] != old[i]), shortest)
    back = next((i for i in range(shortest - front) if new[-1 - i] != old[-1 - i]), shortest - front)
    covers = [Cover(0, 0, front)] if front else []
    return covers + ([Cover(len(new) - back, len(old) - back, back)] if back else [])


def replace_version(entry: Entry, version: int) -> Entry:
    """Return `entry` as of `version`."""
    return Entry(entry.kind, entry.status, entry.modifier, entry.mark, entry.hash, version, entry.name)


def replace_mode(info: tarfile.TarInfo, mode: int) -> tarfile.TarInfo:
    """Return `info` with other rights."""
    info.mode = mode
    return info


def changed(thing: Thing, content: bytes) -> Thing:
    """Return `thing` with other content."""
    return replace(thing, content=content)


def _plain(name: str, data: bytes) -> tarfile.TarInfo:
    return file(data).member(name)
