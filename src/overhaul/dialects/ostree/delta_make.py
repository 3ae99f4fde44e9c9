"""Making static deltas that every `ostree` applies, and ours: fewer bytes and requests than the objects one by one.

New metadata objects and links travel whole. A new file is told from an old one when there is one that it resembles:
of the same path, else of the same path when runs of digits are not looked at (kernel releases, library versions),
else of the same such base name. How it is told is chosen for each file:

    copies     from the old file where pieces are the same, and new bytes between them; for a changed owner or mode,
               and for what was cut and pasted
    patch      as bsdiff does: old bytes plus a difference that is mostly zeros, for compiled code
    whole      when little of it is in the old file, as with compressed content

Pieces are found by HDiffPatch (`content/delta/matching.py`) in windows, so that memory stays bounded. Each part is
packed by xz. Before a part is kept it is applied once, so a delta that was made is a delta that works.
"""

import hashlib
import lzma
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from overhaul.content.delta.covers import Cover, subtract_bytes
from overhaul.content.delta.matching import find_covers, is_incompressible
from overhaul.content.workers import run_ahead
from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.delta_apply import apply_part
from overhaul.dialects.ostree.errors import DeltaSourceMissingError
from overhaul.dialects.ostree.filez import FileHeader
from overhaul.dialects.ostree.gvariant import Variant, big32, big64, encode
from overhaul.dialects.ostree.layout import delta_directory
from overhaul.dialects.ostree.objects import CHECKSUM_SIZE, ObjectName, ObjectType, Xattrs, commit_value, pack_xattrs
from overhaul.dialects.ostree.static_delta import (
    ENDIANNESS_KEY,
    PART_TYPE,
    PAYLOAD_TYPE,
    SUPERBLOCK_TYPE,
    DeltaPart,
    unpack_part,
)
from overhaul.host.files import sync_directory, sync_file_system
from overhaul.progress import Progress

#: What the objects of a part unpack to; a device holds one part at a time.
_PART_SIZE = 32 << 20
#: Pieces of new files and the windows of old ones they are looked for in.
_PIECE_SIZE = 8 << 20
_WINDOW_MARGIN = 4 << 20
#: Files of which less than this is found travel whole.
_WORTH_TELLING = 0.1
#: Copies shorter than this cost more as operations than as bytes.
_SHORTEST_COPY = 32
#: Unpacked bytes that are worked on at a time, at least one object or part.
_UNDER_WAY = 48 << 20
_DIGITS = re.compile(rb"[0-9]+")
#: A bigger dictionary saves little here and takes eleven times its size of memory in each thread.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


class PathFile(NamedTuple):
    """A file object under one of its paths."""

    path: bytes
    checksum: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeStaticDelta:
    """What a delta came to."""

    source: bytes | None
    target: bytes
    #: Bytes of the superblock and all parts.
    size: int
    parts: int
    objects: int
    #: Of the superblock, as the summary wants it.
    sha256: bytes
    #: Files told by copies, by patches, and sent whole.
    copied: int
    patched: int
    whole: int


def files_of(repository: ArchiveRepository, commit: bytes) -> Iterator[PathFile]:
    """Yield every file and link of a commit with its path."""
    waiting = [(b"", repository.commit(commit).root_tree)]
    while waiting:
        path, checksum = waiting.pop()
        tree = repository.dirtree(checksum)
        for file in tree.files:
            yield PathFile(path + file.name.encode(), file.checksum)
        waiting.extend((path + child.name.encode() + b"/", child.tree) for child in tree.directories)


class _Job(NamedTuple):
    name: ObjectName
    path: bytes
    #: The old file it may be told from.
    reference: bytes | None
    #: Unpacked bytes, of a metadata object all of them.
    size: int


class _Told(NamedTuple):
    """One object as its part will hold it."""

    job: _Job
    header: FileHeader | None
    form: str
    #: (length, offset in the old file) or the new bytes themselves, in order; for a patch and a whole file one piece.
    pieces: tuple[bytes | tuple[int, int], ...]


def delta_sources(
    repository: ArchiveRepository, commit: bytes, *, count: int, from_nothing: bool
) -> list[bytes | None]:
    """Return what deltas to a commit are made from: its last `count` ancestors, and perhaps nothing (None)."""
    first: list[bytes | None] = [None] if from_nothing else []
    return [*first, *islice(repository.ancestors(commit), count)]


def make_static_delta(
    repository: ArchiveRepository, source: bytes | None, target: bytes, *, workers: int, progress: Progress
) -> MadeStaticDelta:
    """Make the delta from the commit `source`, or from nothing, to the commit `target`, and put it in its place.

    The caller holds OSTree's shared lock. A delta of that name is replaced; the summary has to be written anew for
    clients to see it.

    Raises:
        MissingOstreeObjectError: A commit is not here as a whole.
    """
    jobs = _jobs(repository, source, target)
    progress.begin("Telling new files from old ones", sum(job.size for job in jobs))
    told = run_ahead(
        jobs,
        pull=lambda _job: None,
        work=lambda job, _nothing: _tell(repository, job),
        weight=lambda job: job.size,
        budget=_UNDER_WAY,
        threads=workers,
    )
    staging = repository.path / "tmp" / f"overhaul-delta-{target.hex()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    heads: list[tuple[object, ...]] = []
    forms: dict[str, int] = {}
    size = 0
    packed = run_ahead(
        _batches(item for _job, item in told),
        pull=lambda _batch: None,
        work=lambda batch, _nothing: _pack(repository, batch),
        weight=lambda batch: sum(item.job.size for item in batch),
        budget=_UNDER_WAY,
        threads=workers,
    )
    for number, (batch, (part, data)) in enumerate(packed):
        (staging / str(number)).write_bytes(data)
        names = b"".join([bytes([name.type]) + name.checksum for name in part.objects])
        heads.append((0, part.sha256, part.size, part.unpacked_size, names))
        size += len(data)
        for item in batch:
            forms[item.form] = forms.get(item.form, 0) + 1
        progress.advance(sum(item.job.size for item in batch))
    superblock = _superblock(repository, source, target, heads)
    (staging / "superblock").write_bytes(superblock)
    _place(repository, staging, delta_directory(source, target))
    progress.end()
    return MadeStaticDelta(
        source=source,
        target=target,
        size=size + len(superblock),
        parts=len(heads),
        objects=len(jobs),
        sha256=hashlib.sha256(superblock).digest(),
        copied=forms.get("copies", 0),
        patched=forms.get("patch", 0),
        whole=forms.get("whole", 0),
    )


def _superblock(
    repository: ArchiveRepository, source: bytes | None, target: bytes, heads: Sequence[tuple[object, ...]]
) -> bytes:
    commit = repository.commit(target)
    metadata = {ENDIANNESS_KEY: Variant("y", ord("l"))}
    detached = repository.detached(target)
    if detached:
        metadata[f"{delta_directory(source, target)}/commitmeta"] = Variant("a{sv}", list(detached.items()))
    # A commit's own time, so that the same commits give the same delta.
    time = big64(commit.timestamp)
    value = (list(metadata.items()), time, source or b"", target, commit_value(commit), b"", heads, ())
    return encode(SUPERBLOCK_TYPE, value)


def _place(repository: ArchiveRepository, staging: Path, directory: str) -> None:
    """Give a finished delta its name; one that was there before goes first, and clients then fetch objects."""
    place = repository.path / directory
    place.parent.mkdir(parents=True, exist_ok=True)
    sync_file_system(staging)
    if place.exists():
        old = staging.with_name(staging.name + "-old")
        shutil.rmtree(old, ignore_errors=True)
        place.rename(old)
        staging.rename(place)
        shutil.rmtree(old)
    else:
        staging.rename(place)
    for folder in (place.parent, place.parent.parent, repository.path):
        sync_directory(folder)


def _jobs(repository: ArchiveRepository, source: bytes | None, target: bytes) -> list[_Job]:
    """Return every object the target has and the source has not, in the order of the delta."""
    old = set() if source is None else repository.reachable(source)
    new = repository.reachable(target, known=set(old)) - old
    jobs = []
    for name in sorted(new):
        if name.type in (ObjectType.DIRTREE, ObjectType.DIRMETA):
            jobs.append((0, b"", _Job(name, b"", None, len(repository.read(name)))))
    find = _references(() if source is None else files_of(repository, source))
    seen: set[bytes] = set()
    for path, checksum in sorted(files_of(repository, target)):
        name = ObjectName(ObjectType.FILE, checksum)
        if name not in new or checksum in seen:
            continue
        seen.add(checksum)
        with repository.open_file(checksum) as filez:
            kind = _kind(path, next(filez.content(), b"")[:8])
            jobs.append((kind, path, _Job(name, path, find(path), filez.size)))
    jobs.sort(key=lambda item: item[:2])
    return [job for _kind, _path, job in jobs]


def _references(files: Iterable[PathFile]) -> Callable[[bytes], bytes | None]:
    by_path: dict[bytes, bytes] = {}
    by_numberless: dict[bytes, bytes] = {}
    by_name: dict[bytes, bytes] = {}
    for path, checksum in sorted(files):
        numberless = _DIGITS.sub(b"0", path)
        by_path[path] = checksum
        by_numberless.setdefault(numberless, checksum)
        by_name.setdefault(numberless.rpartition(b"/")[2], checksum)

    def find(path: bytes) -> bytes | None:
        numberless = _DIGITS.sub(b"0", path)
        return by_path.get(path) or by_numberless.get(numberless) or by_name.get(numberless.rpartition(b"/")[2])

    return find


_ELF = 3
_PACKED = 4
_OTHER = 5
_KIND_OF_SUFFIX = {b".ko": 1, b".a": 2}
_KIND_OF_MAGIC = ((b"\x7fELF", _ELF), (b"\x1f\x8b", _PACKED), (b"\x28\xb5\x2f\xfd", _PACKED), (b"\xfd7zXZ", _PACKED))


def _kind(path: bytes, head: bytes) -> int:
    """Return where in the delta a file belongs: what looks alike once told lies together."""
    for suffix, kind in _KIND_OF_SUFFIX.items():
        if path.endswith(suffix):
            return kind
    return next((kind for magic, kind in _KIND_OF_MAGIC if head.startswith(magic)), _OTHER)


def _tell(repository: ArchiveRepository, job: _Job) -> _Told:
    if job.name.type is not ObjectType.FILE:
        return _Told(job, None, "metadata", (repository.read(job.name),))
    with repository.open_file(job.name.checksum) as filez:
        header = filez.header
        new = b"".join(filez.content())
    if header.is_link:
        return _Told(job, header, "link", (header.target.encode(),))
    old = b"" if job.reference is None else repository.content(job.reference)
    form, pieces = _tell_from(new, old)
    return _Told(job, header, form, pieces)


def _tell_from(new: bytes, old: bytes) -> tuple[str, tuple[bytes | tuple[int, int], ...]]:
    """Return the cheapest form of `new`, and its pieces."""
    if old and old == new:
        return "copies", ((len(new), 0),)
    covers = _find_covers(new, old) if old and new else []
    if sum(cover.size for cover in covers) <= _WORTH_TELLING * len(new):
        return "whole", (new,)
    copies = tuple(_copies(new, old, covers))
    if not is_incompressible(new):
        patch = b"".join(_patch(new, old, covers))
        if _price((patch,)) < _price(copies):
            return "patch", (patch,)
    return "copies", copies


def _find_covers(new: bytes, old: bytes) -> list[Cover]:
    if len(new) <= _PIECE_SIZE and len(old) <= _PIECE_SIZE + 2 * _WINDOW_MARGIN:
        return find_covers(new, old)
    found: list[Cover] = []
    for begin in range(0, len(new), _PIECE_SIZE):
        low = max(0, min(begin, len(old) - _PIECE_SIZE) - _WINDOW_MARGIN)
        window = old[low : low + _PIECE_SIZE + 2 * _WINDOW_MARGIN]
        piece = new[begin : begin + _PIECE_SIZE]
        found.extend(Cover(begin + cover.new, low + cover.old, cover.size) for cover in find_covers(piece, window))
    return found


def _copies(new: bytes, old: bytes, covers: Sequence[Cover]) -> Iterator[bytes | tuple[int, int]]:
    """Yield pieces of `new`: what is the same in the old file by place, everything else as it is."""
    position = 0
    for run in _same_runs(new, old, covers):
        if run.new > position:
            yield new[position : run.new]
        yield (run.size, run.old)
        position = run.new + run.size
    if position < len(new):
        yield new[position:]


_SAME = re.compile(rb"\0{%d,}" % _SHORTEST_COPY)


def _same_runs(new: bytes, old: bytes, covers: Sequence[Cover]) -> Iterator[Cover]:
    for cover in covers:
        if cover.size < _SHORTEST_COPY:
            continue
        ours = new[cover.new : cover.new + cover.size]
        theirs = old[cover.old : cover.old + cover.size]
        if ours == theirs:
            yield cover
            continue
        for found in _SAME.finditer(subtract_bytes(ours, theirs)):
            yield Cover(cover.new + found.start(), cover.old + found.start(), found.end() - found.start())


def _patch(new: bytes, old: bytes, covers: Sequence[Cover]) -> Iterator[bytes]:
    """Yield the records of a bspatch: numbers of bytes to add and to copy, distance to go, and the bytes."""
    added = Cover(0, 0, 0)
    for cover in (*covers, None):
        end = added.new + added.size
        copied = len(new) - end if cover is None else cover.new - end
        seek = 0 if cover is None else cover.old - added.old - added.size
        if added.size or copied or seek:
            yield _record(added.size, copied, seek)
            yield subtract_bytes(new[added.new : end], old[added.old : added.old + added.size])
            yield new[end : end + copied]
        added = cover or added


def _record(add: int, copy: int, seek: int) -> bytes:
    return b"".join([(abs(n) | (1 << 63 if n < 0 else 0)).to_bytes(8, "little") for n in (add, copy, seek)])


def _price(pieces: Iterable[bytes | tuple[int, int]]) -> int:
    """Return about how many bytes pieces take in a packed part."""
    literal = b"".join([piece for piece in pieces if isinstance(piece, bytes)])
    copies = sum(not isinstance(piece, bytes) for piece in pieces)
    packer = lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0}])
    return len(packer.compress(literal)) + len(packer.flush()) + 6 * copies


def _batches(items: Iterator[_Told]) -> Iterator[list[_Told]]:
    batch: list[_Told] = []
    size = 0
    for item in items:
        if batch and size + item.job.size > _PART_SIZE:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += item.job.size
    if batch:
        yield batch


@dataclass
class _Payload:
    """The inside of a part while it is put together."""

    modes: dict[tuple[int, int, int], int] = field(default_factory=dict)
    xattrs: dict[Xattrs, int] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    operations: bytearray = field(default_factory=bytearray)

    def add(self, item: _Told) -> None:
        if item.header is None:
            self._operate("S", len(item.pieces[0]), self._store(item.pieces[0]))
            return
        mode = self.modes.setdefault((item.header.uid, item.header.gid, item.header.mode), len(self.modes))
        xattrs = self.xattrs.setdefault(item.header.xattrs, len(self.xattrs))
        if item.form in ("link", "whole"):
            self._operate("S", mode, xattrs, len(item.pieces[0]), self._store(item.pieces[0]))
            return
        self._operate("o", mode, xattrs, item.job.size)
        if item.form == "patch":
            self._operate("r", self._store(item.job.reference or b""))
            self._operate("B", self._store(item.pieces[0]), len(item.pieces[0]))
        else:
            self._copy(item)
        self._operate("c")

    def _copy(self, item: _Told) -> None:
        source: int | None = None
        is_set = False
        for piece in item.pieces:
            if isinstance(piece, bytes):
                if is_set:
                    self._operate("R")
                    is_set = False
                self._operate("w", len(piece), self._store(piece))
                continue
            if source is None:
                source = self._store(item.job.reference or b"")
            if not is_set:
                self._operate("r", source)
                is_set = True
            self._operate("w", *piece)

    def _store(self, piece: bytes | tuple[int, int]) -> int:
        offset = len(self.data)
        self.data += bytes(piece)
        return offset

    def _operate(self, code: str, *numbers: int) -> None:
        self.operations += code.encode()
        for number in numbers:
            rest = number
            while rest >= 0x80:
                self.operations.append(rest & 0x7F | 0x80)
                rest >>= 7
            self.operations.append(rest)

    def encoded(self) -> bytes:
        modes = [tuple(map(big32, mode)) for mode in self.modes]
        xattrs = [pack_xattrs(one) for one in self.xattrs]
        return encode(PAYLOAD_TYPE, (modes, xattrs, self.data, self.operations))


def _pack(repository: ArchiveRepository, batch: Sequence[_Told]) -> tuple[DeltaPart, bytes]:
    payload = _Payload()
    for item in batch:
        payload.add(item)
    packed = lzma.compress(payload.encoded(), lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_FILTERS)
    data = encode(PART_TYPE, (ord("x"), packed))
    part = DeltaPart(
        sha256=hashlib.sha256(data).digest(),
        size=len(data),
        unpacked_size=sum(item.job.size for item in batch),
        objects=tuple(item.job.name for item in batch),
    )
    what = "static delta just made"
    apply_part(part, unpack_part(part, data, what=what), _Proof(repository), what=what)
    return part, data


class _Proof:
    """Takes the objects of a part and keeps nothing: their checksums are what is looked at."""

    def __init__(self, repository: ArchiveRepository) -> None:
        self._repository = repository

    def open_source(self, checksum: bytes) -> "_MemorySource":
        if len(checksum) != CHECKSUM_SIZE:
            raise DeltaSourceMissingError(checksum=checksum.hex())
        return _MemorySource(self._repository.content(checksum))

    def put_metadata(self, name: ObjectName, data: bytes) -> None:
        """Take a metadata object, which was checked."""

    def open_file(self, checksum: bytes, header: FileHeader, size: int) -> "_Nowhere":  # noqa: ARG002
        return _Nowhere()


@dataclass(frozen=True, slots=True)
class _MemorySource:
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)

    def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]

    def close(self) -> None:
        """Do nothing."""


class _Nowhere:
    def write(self, data: bytes | memoryview) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def discard(self) -> None:
        """Do nothing."""
