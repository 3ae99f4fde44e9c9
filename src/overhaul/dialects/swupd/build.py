"""A version of a published tree is built: gathered, compared with the one before, packed, tried, and named.

Everything is made in `.building-<version>` beside the versions and appears by one rename, after the version was
installed from its own files (see `trial`) and everything was synced. Until then devices and other builders see
nothing of it; pointers are moved by `pointers`, last. A builder that is killed is started again: full files that
were made are kept when they are right, all else is quick and made anew. One builder works at a time.
"""

import ctypes
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import overhaul
from overhaul.content.delta.matching import find_covers
from overhaul.dialects.swupd.bsdiff import make_delta
from overhaul.dialects.swupd.bundles import BundleDefinition
from overhaul.dialects.swupd.deltas import DeltaStore, Pair, pair_entries
from overhaul.dialects.swupd.eras import NEWEST_VERSION
from overhaul.dialects.swupd.fullfiles import DamagedFullfileError, FullfileStore
from overhaul.dialects.swupd.gathering import Gathering, known_objects
from overhaul.dialects.swupd.listing import Listing, subtract
from overhaul.dialects.swupd.manifest import Entry, Manifest, encode_manifest, entries_by_name
from overhaul.dialects.swupd.names import FULL, MOM
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.packing import Compression, compress
from overhaul.dialects.swupd.packs import PackMember, PackWriter
from overhaul.dialects.swupd.published import DamagedTreeError, PublishedTree, manifest_hash
from overhaul.dialects.swupd.tars import END, Member, encode_header, padding
from overhaul.dialects.swupd.trial import Trial
from overhaul.dialects.swupd.versions import Step, follow, unite
from overhaul.errors import InputError
from overhaul.host.files import sync_directory
from overhaul.host.locks import locked
from overhaul.progress import Progress

_MANIFEST_MODE = 0o100644
#: Every fresh installation fetches manifests whole, and they are few.
_MANIFEST_LEVEL = 6
_LOCK_NAME = ".builder.lock"


class VersionOrderError(InputError):
    """A version that cannot follow the ones that are there."""

    def __init__(self, *, version: int, reason: str) -> None:
        self.version = version
        self.reason = reason
        super().__init__(f"Version {version} cannot be built: {reason}.")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Which version is built, apart from its content."""

    version: int
    #: The version it follows; 0 for the first one.
    previous: int
    #: Seconds since 1970 UTC.
    timestamp: int
    #: Content older than this is made again.
    minversion: int = 0
    #: What the version's content says that it is: its own number, or in the last version of a format the next.
    content_version: int = 0
    content_format: int = 0


@dataclass(frozen=True, kw_only=True)
class BuiltVersion:
    """What a build made."""

    version: int
    format: int
    #: Bundles with a new manifest.
    changed_bundles: tuple[str, ...]
    new_objects: int
    deltas: int
    packs: int
    #: Bytes of everything in the version's directory.
    size: int
    warnings: tuple[str, ...]


@contextmanager
def building(web: Path) -> Iterator[None]:
    """Hold the tree's lock; raise `LockedError` when another builder does."""
    web.mkdir(parents=True, exist_ok=True)
    with locked(web / _LOCK_NAME, purpose="another swupd builder"):
        yield


@dataclass
class Build:
    """One version while it is made; hold `building` around all of it."""

    tree: PublishedTree
    request: Request
    options: BuildOptions
    progress: Progress
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = self.request
        if not request.previous < request.version <= NEWEST_VERSION:
            reason = f"it does not follow version {request.previous}"
            raise VersionOrderError(version=request.version, reason=reason)
        self.making = self.tree.web / f".building-{request.version}"
        self.store = FullfileStore(self.tree.web, {request.version: self.making})
        self.before = self.tree.mom(request.previous) if request.previous else None
        self.bundles_before = {} if self.before is None else self.tree.bundles(self.before)
        if self.before is not None and self.before.format > self.options.format:
            reason = f"version {request.previous} has format {self.before.format}, which never goes back"
            raise VersionOrderError(version=request.version, reason=reason)
        if self._begins_format:
            # Clients of the new format never read anything older.
            self.request = replace(request, minversion=request.version)
        for name in ("files", "delta"):
            (self.making / name).mkdir(parents=True, exist_ok=True)
        known = {} if self._begins_format else self.bundles_before
        self.gathering = Gathering(
            self.store,
            request.version,
            self.options,
            known_objects(known.values(), minversion=self.request.minversion),
        )

    @property
    def _begins_format(self) -> bool:
        return self.before is not None and self.before.format != self.options.format

    @property
    def step(self) -> Step:
        """What the comparison with the version before needs to know."""
        return Step(
            version=self.request.version,
            era=self.options.era,
            timestamp=self.request.timestamp,
            minversion=self.request.minversion,
            ghosts=self.options.ghosts,
            renames=self.options.renames,
        )

    def finish(self, listings: Sequence[Listing], *, notes: Mapping[str, bytes]) -> BuiltVersion:
        """Write everything of the version and let it appear; `notes` are files of ours beside its manifests."""
        subtracted = subtract(listings)
        self.warnings += [*self.gathering.warnings, *subtracted.warnings]
        manifests, experimental = self._follow(subtracted.listings)
        current = {name: manifest for name, (manifest, _data) in manifests.items()}
        changed = [name for name, manifest in current.items() if manifest.version == self.request.version]
        fresh = self._fresh_entries(current[name] for name in changed)
        self._hold_missing(fresh)
        self.store.keep_only(self.request.version, [entry.hash for entry in fresh])
        self._remove_leftovers()
        # Full files go to the disk while packs are made; the wait in the end is then for packs only.
        syncing = threading.Thread(target=sync_file_system, args=(self.making,), daemon=True)
        syncing.start()
        with ThreadPoolExecutor(self.options.workers, thread_name_prefix="swupd") as pool:
            # Manifests are compressed while the main thread finds out what packs hold.
            written = [pool.submit(self._write_manifest, name, manifests[name][1]) for name in changed]
            written.append(pool.submit(self._write_moms, manifests, experimental))
            deltas, packs = self._write_packs(pool, manifests, changed)
            for future in written:
                future.result()
        for name, data in (
            ("format", b"%d\n" % self.options.format),
            ("swupd-server-src-version", f"overhaul {overhaul.__version__}\n".encode()),
            *notes.items(),
        ):
            (self.making / name).write_bytes(data)
        trial = Trial(
            web=self.tree.web, making=self.making, version=self.request.version, store=self.store, options=self.options
        )
        trial.run(progress=self.progress)
        syncing.join()
        size = self._appear()
        return BuiltVersion(
            version=self.request.version,
            format=self.options.format,
            changed_bundles=tuple(changed),
            new_objects=len(fresh),
            deltas=deltas,
            packs=packs,
            size=size,
            warnings=tuple(self.warnings),
        )

    def _follow(self, listings: Sequence[Listing]) -> tuple[dict[str, tuple[Manifest, bytes]], set[str]]:
        """Return the manifest of each bundle in the new version, with its bytes, and which are experiments."""
        before = {} if self._begins_format else self.bundles_before
        manifests: dict[str, tuple[Manifest, bytes]] = {}
        experimental = {one.definition.name for one in listings if one.definition.is_experimental}
        listed = {one.definition.name: one for one in listings}
        for name in sorted(listed.keys() | before.keys()):
            old = before.get(name)
            one = listed.get(name) or Listing(definition=BundleDefinition(name=name, status="Deprecated"), objects={})
            if one.definition.is_deprecated:
                # Emptied in one version, and gone in the next.
                if old is None or not any(entry.is_present for entry in old.entries):
                    continue
                definition = replace(one.definition, includes=old.includes, also_add=old.also_add)
                one = Listing(definition=definition, objects={})
            new = follow(one, old, self.step)
            if new is not None:
                manifests[name] = (new, encode_manifest(new))
            elif old is not None:
                manifests[name] = (old, self.tree.manifest_bytes(old.version, name))
        return manifests, experimental

    def _fresh_entries(self, manifests: Iterator[Manifest]) -> list[Entry]:
        """Return the entries of this version that need a full file, one for each hash."""
        fresh: dict[str, Entry] = {}
        for manifest in manifests:
            for entry in manifest.entries:
                if entry.version == self.request.version and entry.is_present:
                    fresh.setdefault(entry.hash, entry)
        return list(fresh.values())

    def _hold_missing(self, fresh: Sequence[Entry]) -> None:
        """Copy the full files of objects that are new here and were published before: moved, or published again."""
        missing = [entry for entry in fresh if not self.store.place(self.request.version, entry.hash).is_file()]
        if not missing:
            return
        wanted = {entry.hash for entry in missing}
        sources: dict[str, int] = {}
        for version in reversed(self.tree.versions()):
            found = wanted - sources.keys()
            if not found:
                break
            sources |= {digest: version for digest in found if self.store.place(version, digest).is_file()}
        for entry in missing:
            if entry.hash not in sources:
                place = self.store.place(self.request.version, entry.hash)
                raise DamagedFullfileError(path=place, reason="no version holds it any more")
            data = self.store.place(sources[entry.hash], entry.hash).read_bytes()
            self.store.hold(self.request.version, entry.hash, data)

    def _remove_leftovers(self) -> None:
        """Remove what a run that died left beside full files; deltas are judged by their names when they are used."""
        for name in os.listdir(self.making):
            if name not in {"files", "delta"}:
                (self.making / name).unlink()
        shutil.rmtree(self.making / "delta")
        (self.making / "delta").mkdir()

    def _write_manifest(self, name: str, data: bytes, *more: tuple[str, bytes]) -> None:
        (self.making / f"Manifest.{name}").write_bytes(data)
        archive = b""
        for member_name, content in ((f"Manifest.{name}", data), *more):
            member = Member(
                name=member_name, mode=_MANIFEST_MODE, uid=0, gid=0, size=len(content), mtime=self.request.timestamp
            )
            archive += encode_header(member) + content + padding(len(content))
        # Nobody but people and builders reads the full one.
        how: Compression = "gzip" if name == FULL else self.options.compression
        packed = compress(archive + END, how=how, level=_MANIFEST_LEVEL)
        (self.making / f"Manifest.{name}.tar").write_bytes(packed)

    def _write_moms(self, manifests: Mapping[str, tuple[Manifest, bytes]], experimental: set[str]) -> None:
        era = self.options.era
        lines = tuple(
            Entry(
                "M", "e" if era.has_experimental and name in experimental else ".", ".", ".",
                manifest_hash(data), manifest.version, name.encode(),
            )
            for name, (manifest, data) in manifests.items()
        )  # fmt: skip
        previous = 0 if self._begins_format else self.request.previous
        mom = Manifest(
            format=self.options.format,
            version=self.request.version,
            previous=previous,
            minversion=self._stated_minversion() if era.has_minversion else 0,
            timestamp=self.request.timestamp,
            actions="update" if self.request.content_format not in {0, self.options.format} else "",
            entries=lines,
        )
        data = encode_manifest(mom)
        more: tuple[tuple[str, bytes], ...] = ()
        if self.options.signer is not None:
            signature = self.options.signer.sign(data)
            (self.making / f"Manifest.{MOM}.sig").write_bytes(signature)
            more = ((f"Manifest.{MOM}.sig", signature),)
        self._write_manifest(MOM, data, *more)
        full = unite([manifest for manifest, _data in manifests.values()], self.step, previous=previous)
        self._write_manifest(FULL, encode_manifest(full))

    def _stated_minversion(self) -> int:
        before = 0 if self.before is None or self._begins_format else self.before.minversion
        return max(self.request.minversion, before)

    def _older(self) -> list[dict[str, Manifest]]:
        """Return the bundles of the versions that get packs to this one, the newest first."""
        found: list[dict[str, Manifest]] = []
        mom = None if self._begins_format else self.before
        while mom is not None and len(found) < self.options.packs_from:
            try:
                found.append(self.tree.bundles(mom))
                mom = self.tree.mom(mom.previous) if mom.previous else None
            except DamagedTreeError as error:
                self.warnings.append(f"Older versions get no packs: {error}")
                break
        return found

    def _write_packs(
        self, pool: ThreadPoolExecutor, manifests: Mapping[str, tuple[Manifest, bytes]], changed: Sequence[str]
    ) -> tuple[int, int]:
        """Write deltas, packs and manifest deltas; return how many deltas and packs there are."""
        current = {name: manifest for name, (manifest, _data) in manifests.items()}
        steps: dict[tuple[str, int], Manifest] = {}
        for bundles in self._older():
            for name in changed:
                if name in bundles:
                    steps.setdefault((name, bundles[name].version), bundles[name])
        written = [pool.submit(self._write_manifest_delta, name, old, manifests[name][1]) for name, old in steps]
        deltas = DeltaStore(self.store, self.options, self.request.version)
        pairs: dict[tuple[str, int], list[Pair]] = {}
        wanted: dict[tuple[str, int], list[Entry]] = {}
        for (name, old), manifest in steps.items():
            # What only got a higher version is on the device already, at its path; from elsewhere it takes nothing.
            there = {(entry.name, entry.hash) for entry in manifest.entries if entry.is_present}
            entries = [
                e for e in current[name].entries if e.is_present and e.version > old and (e.name, e.hash) not in there
            ]
            wanted[name, old] = list({entry.hash: entry for entry in entries}.values())
            pairs[name, old] = list(pair_entries(entries_by_name(manifest.entries), wanted[name, old]))
        unique = {(p.old.hash, p.new.hash, p.old.version, p.new.version): p for ps in pairs.values() for p in ps}
        made = self._in_parallel(pool, "Making deltas", deltas.make, list(unique.values()))
        writer = PackWriter(self.tree.web, self.making, self.store, self.options, pool)
        count = 0
        for (name, old), entries in wanted.items():
            by_hash = {pair.new.hash: pair for pair in pairs[name, old]}
            members = [self._pack_member(writer, deltas, entry, by_hash.get(entry.hash)) for entry in entries]
            if members:
                writer.write(name, self.request.version, old=old, members=members)
                count += 1
        if self.options.zero_packs:
            self.progress.begin("Packing", len(changed), "packs")
            for name in changed:
                before = self.bundles_before.get(name)
                writer.write_zero(name, current[name], before=before.version if before is not None else 0)
                self.progress.advance(1)
                count += 1
            self.progress.end()
        for future in written:
            future.result()
        return sum(made), count

    def _pack_member(self, writer: PackWriter, deltas: DeltaStore, entry: Entry, pair: Pair | None) -> PackMember:
        place = deltas.find(pair) if pair is not None else None
        if pair is None or place is None:
            return writer.staged(entry)
        return writer.delta(deltas.member_name(pair), place)

    def _write_manifest_delta(self, name: str, old: int, after: bytes) -> None:
        before = self.tree.manifest_bytes(old, name)
        delta = make_delta(before, after, mode=_MANIFEST_MODE, uid=0, gid=0, find_covers=find_covers)
        if delta is not None:
            (self.making / f"Manifest-{name}-delta-from-{old}").write_bytes(delta)

    def _in_parallel(
        self, pool: ThreadPoolExecutor, step: str, work: Callable[[Pair], bool], items: Sequence[Pair]
    ) -> list[bool]:
        self.progress.begin(step, len(items), "files")
        done = []
        try:
            for result in pool.map(work, items):
                done.append(result)
                self.progress.advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            self.progress.end()
        return done

    def _appear(self) -> int:
        size = sum((Path(folder) / name).stat().st_size for folder, _, names in os.walk(self.making) for name in names)
        sync_file_system(self.making)
        os.rename(self.making, self.tree.path(str(self.request.version)))
        sync_directory(self.tree.web)
        return size


def sync_file_system(directory: Path) -> None:
    """Make everything written below `directory` durable at once: tens of thousands of files, one wait."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is None:
            os.sync()
        elif syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(directory))
    finally:
        os.close(descriptor)
