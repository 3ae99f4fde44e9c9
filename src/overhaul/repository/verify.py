"""The check of a whole repository: is everything devices are told of there, and is it what was signed?

Nothing is taken from a name or a size alone: each file's digest is compared with signed data, each pack is read
frame by frame and decoded to its chunks, each delta segment by segment. The check goes on after a fault and
reports all of them. `quick` compares sizes of content only; signed files are always checked whole, they are small.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import msgspec

from overhaul.content.configuration import read_configuration
from overhaul.content.delta.format import read_header
from overhaul.content.frames import Frame, read_frames
from overhaul.content.index import Chunk, read_index
from overhaul.errors import OverhaulError, TrustError
from overhaul.progress import Progress
from overhaul.release.record import ConfigurationRef, DeltaRef, FileRef, PackRef, Release
from overhaul.repository.casync import casync_chunks, casync_index
from overhaul.repository.exact import inexact_files
from overhaul.repository.layout import PUBLIC, files_of, own_files, public_key
from overhaul.repository.packs import Place, decode_checked, file_digest, read_checked
from overhaul.repository.signed import Published, read_public, read_published
from overhaul.repository.storage import Storage, StoredObject
from overhaul.trust.verify import Fault

_READ_BYTES = 8 << 20


class Kind(StrEnum):
    """What kind of fault was found."""

    MISSING = "missing"
    DAMAGED = "damaged"
    EXPIRED = "expired"
    #: A release lists chunks that none of its packs holds.
    INCOMPLETE = "incomplete"


_KIND_OF_FAULT = {Fault.MISSING: Kind.MISSING, Fault.EXPIRED: Kind.EXPIRED}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault."""

    kind: Kind
    #: Of the file, below the public root.
    path: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What the check saw."""

    findings: tuple[Finding, ...]
    #: Files nothing signed refers to; no fault, `prune` removes them when they are old.
    unreferenced: tuple[StoredObject, ...]
    releases: int
    files: int
    bytes_checked: int
    quick: bool

    @property
    def is_sound(self) -> bool:
        """Whether devices get what they are told of."""
        return not self.findings


@dataclass
class _Check:
    storage: Storage
    progress: Progress
    stored: dict[str, StoredObject]
    findings: list[Finding] = field(default_factory=list)
    referenced: set[str] = field(default_factory=set)
    #: Chunk id to frame digest of each pack that was read; a pack is read once however many releases name it.
    held: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    bytes_checked: int = 0

    def report(self, kind: Kind, path: str, sentence: str) -> None:
        finding = Finding(kind=kind, path=path, sentence=sentence)
        if finding not in self.findings:
            self.findings.append(finding)

    def is_there(self, ref: FileRef) -> bool:
        """Note that something signed names the file, and tell whether it is there with its size."""
        self.referenced.add(ref.path)
        found = self.stored.get(ref.path)
        if found is None:
            self.report(Kind.MISSING, ref.path, "The file is missing; restore it, or publish its release again.")
        elif found.size != ref.size:
            self.report(Kind.DAMAGED, ref.path, f"The file has {found.size} bytes instead of {ref.size}.")
        return found is not None and found.size == ref.size

    def small(self, ref: FileRef) -> bytes | None:
        """Return the bytes of a small file when they are the signed ones."""
        if not self.is_there(ref):
            return None
        try:
            data = read_checked(self.storage, ref)
        except OverhaulError as error:
            self.report(Kind.DAMAGED, ref.path, str(error))
            return None
        self.count(ref.size)
        return data

    def count(self, size: int) -> None:
        self.bytes_checked += size
        self.progress.advance(size)


def verify_repository(
    storage: Storage, *, now: datetime, progress: Progress, anchor: bytes | None = None, quick: bool = False
) -> VerifyReport:
    """Check everything that is published in `storage`; `anchor` is the root metadata devices were given."""
    stored = own_files(storage.list_objects(PUBLIC))
    check = _Check(storage, progress, stored)
    published = _check_signed(check, now=now, anchor=anchor)
    content = {ref.path: ref.size for release in published.releases.values() for ref in files_of(release)}
    progress.begin("Verifying the repository", sum(content.values()))
    try:
        for release in published.releases.values():
            if quick:
                _check_sizes(check, release)
            else:
                _check_release(check, release)
            _check_casync(check, release, quick=quick)
    finally:
        progress.end()
    unreferenced = tuple(one for path, one in sorted(stored.items()) if path not in check.referenced)
    return VerifyReport(
        findings=tuple(check.findings),
        unreferenced=unreferenced,
        releases=len(published.releases),
        files=len(stored) - len(unreferenced),
        bytes_checked=check.bytes_checked,
        quick=quick,
    )


def _check_signed(check: _Check, *, now: datetime, anchor: bytes | None) -> Published:
    published = read_published(check.storage, now=now, anchor=anchor)
    for found in published.report.findings:
        check.report(_KIND_OF_FAULT.get(found.fault, Kind.DAMAGED), found.key, found.sentence)
    check.referenced |= published.report.referenced
    for path, sentence in inexact_files(lambda path: read_public(check.storage, path)):
        check.report(Kind.DAMAGED, path, sentence)
    return published


def _check_sizes(check: _Check, release: Release) -> None:
    for ref in files_of(release):
        if check.is_there(ref):
            check.count(ref.size)


def _check_release(check: _Check, release: Release) -> None:
    for pack in release.image.packs:
        if pack.pack.path not in check.held:
            check.held[pack.pack.path] = {frame.chunk_id: frame.sha256 for frame in _check_pack(check, pack)}
            if pack.mends is not msgspec.UNSET:
                _check_mends(check, pack.mends.file)
    held = {chunk_id for pack in release.image.packs for chunk_id in check.held[pack.pack.path]}
    _check_index(check, release, held)
    for delta in release.image.deltas:
        _check_delta(check, delta)
    if release.configuration is not msgspec.UNSET:
        _check_configuration(check, release.configuration)


def _check_index(check: _Check, release: Release, held: set[bytes]) -> None:
    ref = release.image.index
    data = check.small(ref)
    if data is None:
        return
    try:
        index = read_index(data)
    except TrustError as error:
        check.report(Kind.DAMAGED, ref.path, str(error))
        return
    if index.size != release.image.size:
        sentence = f"The index of {release.id} describes {index.size} bytes, its record {release.image.size}."
        check.report(Kind.DAMAGED, ref.path, sentence)
    missing = {chunk.id for chunk in index} - held
    if missing:
        sentence = f"{len(missing)} chunks of {release.id} are in none of its packs; publish it again."
        check.report(Kind.INCOMPLETE, ref.path, sentence)


def _check_pack(check: _Check, pack: PackRef) -> list[Frame]:
    """Return the frames that the pack holds undamaged."""
    table = check.small(pack.frames)
    there = check.is_there(pack.pack)
    if table is None or not there:
        return []
    try:
        frames = read_frames(table)
    except TrustError as error:
        check.report(Kind.DAMAGED, pack.frames.path, str(error))
        return []
    right: list[Frame] = []
    digest = hashlib.sha256()
    for run in _runs(frames):
        data = check.storage.read(public_key(pack.pack.path), start=run[0].offset, end=run[-1].end)
        digest.update(data)
        for frame in run:
            begin = frame.offset - run[0].offset
            try:
                decode_checked(Place(pack.pack, frame), data[begin : begin + frame.size])
            except TrustError as error:
                check.report(Kind.DAMAGED, pack.pack.path, str(error))
                continue
            right.append(frame)
        check.count(len(data))
    if digest.hexdigest() != pack.pack.sha256:
        check.report(Kind.DAMAGED, pack.pack.path, "The pack's frames do not add up to the signed digest.")
    return right


def _check_mends(check: _Check, ref: FileRef) -> None:
    if not check.is_there(ref):
        return
    if file_digest(check.storage, ref) != ref.sha256:
        check.report(Kind.DAMAGED, ref.path, "The mends have another digest than the signed one.")
    check.count(ref.size)


def _check_delta(check: _Check, delta: DeltaRef) -> None:
    ref = delta.file
    if not check.is_there(ref):
        return
    head = check.storage.read(public_key(ref.path), end=delta.header_size)
    if hashlib.sha256(head).hexdigest() != delta.header_sha256:
        check.report(Kind.DAMAGED, ref.path, "The delta's header is not the signed one.")
        return
    try:
        header = read_header(head)
    except TrustError as error:
        check.report(Kind.DAMAGED, ref.path, str(error))
        return
    check.count(len(head))
    digest = hashlib.sha256(head)
    for segment in header.all_segments:
        data = check.storage.read(public_key(ref.path), start=segment.offset, end=segment.end)
        digest.update(data)
        check.count(len(data))
        if hashlib.sha256(data).digest() != segment.sha256:
            check.report(Kind.DAMAGED, ref.path, f"The delta's segment at byte {segment.offset} has another digest.")
    if digest.hexdigest() != ref.sha256:
        check.report(Kind.DAMAGED, ref.path, "The delta's parts do not add up to the signed digest.")


def _check_configuration(check: _Check, ref: ConfigurationRef) -> None:
    data = check.small(ref.file)
    if data is None:
        return
    header = data[: ref.header_size]
    if hashlib.sha256(header).hexdigest() != ref.header_sha256:
        check.report(Kind.DAMAGED, ref.file.path, "The header of the configuration is not the signed one.")
        return
    try:
        read_configuration(header, decoded_size=ref.decoded_size)
    except TrustError as error:
        check.report(Kind.DAMAGED, ref.file.path, str(error))


def _check_casync(check: _Check, release: Release, *, quick: bool) -> None:
    path = casync_index(release, check.stored)
    if path is None:
        return
    check.referenced.add(path)
    try:
        chunks = casync_chunks(check.storage, release)
    except TrustError as error:
        check.report(Kind.DAMAGED, path, str(error))
        return
    for name, chunk in chunks.items():
        if name in check.referenced:
            continue
        check.referenced.add(name)
        if name not in check.stored:
            check.report(Kind.MISSING, name, "The casync chunk file is missing; publish its release again.")
        elif not quick and not _is_frame_of(check, name, release, chunk):
            check.report(Kind.DAMAGED, name, "The casync chunk file is no frame of a pack; publish its release again.")


def _is_frame_of(check: _Check, path: str, release: Release, chunk: Chunk) -> bool:
    """Tell whether a chunk file is, byte for byte, the chunk's frame in one of the release's packs."""
    data = check.storage.read(public_key(path))
    check.bytes_checked += len(data)
    held = (check.held[pack.pack.path].get(chunk.id) for pack in release.image.packs)
    return hashlib.sha256(data).digest() in held


def _runs(frames: list[Frame]) -> Iterator[list[Frame]]:
    """Yield frames that are read together."""
    run: list[Frame] = []
    for frame in frames:
        if run and frame.end - run[0].offset > _READ_BYTES:
            yield run
            run = []
        run.append(frame)
    if run:
        yield run
