"""Static deltas on the device: which one to take, and what its parts bring into the staging.

While one part is applied the next is fetched and unpacked, into a file: memory does not grow with the size of parts.
Parts all of whose objects are here, as after an interruption, are left out. Objects that no part brought are fetched
one by one afterwards.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from overhaul.dialects.ostree.delta_apply import apply_part
from overhaul.dialects.ostree.device.barerepo import BareRepository, metadata_limit
from overhaul.dialects.ostree.device.head import Head, fetch_delta_index, fetch_optional
from overhaul.dialects.ostree.device.remote import Remote
from overhaul.dialects.ostree.device.spool import SpooledPayload, spooled
from overhaul.dialects.ostree.device.staging import Aside, StagedFile, Staging
from overhaul.dialects.ostree.errors import DeltaSourceMissingError, MalformedOstreeDataError, WrongChecksumError
from overhaul.dialects.ostree.filez import FileHeader
from overhaul.dialects.ostree.layout import delta_directory
from overhaul.dialects.ostree.objects import ObjectName, ObjectType, checksum_of
from overhaul.dialects.ostree.static_delta import (
    DeltaPart,
    Superblock,
    decode_superblock,
)
from overhaul.progress import Progress
from overhaul.transfer.fetcher import Fetcher
from overhaul.transfer.fetching import fetch_bytes

#: A part's file is in memory while it is unpacked; a larger one is left out.
MAX_PART_BYTES = 32 << 20
#: What a part unpacks to besides its objects: operations, modes, attributes.
_OVERHEAD_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class ChosenDelta:
    """A delta that can be applied here."""

    directory: str
    superblock: Superblock

    @property
    def begins_at(self) -> str:
        """The commit it needs, or `scratch`."""
        return "scratch" if self.superblock.source is None else self.superblock.source.hex()


def choose_delta(fetcher: Fetcher, remote: Remote, head: Head, bases: Sequence[str]) -> ChosenDelta | None:
    """Return the delta from the first of `bases` that has one, from nothing when there are no bases; else None.

    Raises:
        MalformedOstreeDataError, WrongChecksumError: The delta's superblock is not what it should be.
    """
    target = bytes.fromhex(head.commit)
    sources: list[bytes | None] = [bytes.fromhex(base) for base in bases]
    if not sources:
        sources = [None]
    listed = head.deltas
    if head.has_delta_indexes and not any((source, target) in listed for source in sources):
        listed = {**listed, **fetch_delta_index(fetcher, remote, head)}
    for source in sources:
        directory = delta_directory(source, target)
        digest = listed.get((source, target))
        if digest is None and head.has_summary:
            continue  # a summary or index lists every delta there is
        data = fetch_optional(fetcher, f"{remote.content_url}/{directory}/superblock", limit_bytes=metadata_limit())
        if data is None:
            continue
        if digest is not None and checksum_of(data) != digest:
            raise WrongChecksumError(
                what=f"superblock of {directory}", expected=digest.hex(), actual=checksum_of(data).hex()
            )
        superblock = decode_superblock(data, what=f"superblock of {directory}")
        if (superblock.source, superblock.target) != (source, target):
            raise MalformedOstreeDataError(what=f"superblock of {directory}", reason="it is of another delta")
        return ChosenDelta(directory=directory, superblock=superblock)
    return None


def apply_delta(
    chosen: ChosenDelta,
    fetcher: Fetcher,
    remote: Remote,
    repository: BareRepository,
    staging: Staging,
    *,
    progress: Progress,
) -> None:
    """Stage the objects of every part that is worth it; the next part is fetched while one is applied.

    Raises:
        MalformedOstreeDataError, WrongChecksumError: A part is damaged; what other parts brought stays staged.
        DeltaSourceMissingError: A part needs an object that is not here.
    """
    aside = Aside()
    objects = _Objects(repository, staging, aside)
    wanted = [
        (number, part)
        for number, part in enumerate(chosen.superblock.parts)
        if part.size <= MAX_PART_BYTES and not all(map(objects.has, part.objects))
    ]
    progress.begin("Fetching and applying the delta", sum(part.size for _number, part in wanted))
    base = f"{remote.content_url}/{chosen.directory}"

    def prepare(number: int, part: DeltaPart) -> Prepared:
        what = f"part {number} of {chosen.directory}"
        data = part.inline
        if data is None:
            data = fetch_bytes(fetcher, f"{base}/{number}", limit_bytes=part.size)
        if checksum_of(data) != part.sha256:
            raise WrongChecksumError(what=what, expected=part.sha256.hex(), actual=checksum_of(data).hex())
        staging.room_for(part.unpacked_size)
        resources = ExitStack()
        limit = part.unpacked_size + _OVERHEAD_BYTES
        payload = resources.enter_context(spooled(data, limit_bytes=limit, directory=staging.directory, what=what))
        return Prepared(part=part, payload=payload, resources=resources, what=what)

    try:
        with aside:
            for prepared in _ahead(prepare, wanted):
                with prepared.resources:
                    apply_part(prepared.part, prepared.payload, objects, what=prepared.what)
                progress.advance(prepared.part.size)
            aside.finish()
    finally:
        progress.end()


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A part that can be applied."""

    part: DeltaPart
    payload: SpooledPayload
    #: Closing them lets the file go.
    resources: ExitStack
    what: str


def _ahead(
    prepare: Callable[[int, DeltaPart], Prepared], wanted: Sequence[tuple[int, DeltaPart]]
) -> Iterator[Prepared]:
    """Yield each part when it is prepared, while the next is being prepared."""
    with ThreadPoolExecutor(1, thread_name_prefix="delta") as pool:
        coming = pool.submit(prepare, *wanted[0]) if wanted else None
        try:
            for position in range(len(wanted)):
                assert coming is not None  # noqa: S101
                ready = coming.result()
                following = position + 1
                coming = pool.submit(prepare, *wanted[following]) if following < len(wanted) else None
                yield ready
        finally:
            if coming is not None and not coming.cancel() and coming.exception() is None:
                coming.result().resources.close()


class _Objects:
    """Old objects of the repository, and new ones into the staging."""

    def __init__(self, repository: BareRepository, staging: Staging, aside: Aside) -> None:
        self._repository = repository
        self._staging = staging
        self._aside = aside

    def has(self, name: ObjectName) -> bool:
        return self._staging.has(name) or self._repository.has(name)

    def open_source(self, checksum: bytes) -> "_Source":
        name = ObjectName(ObjectType.FILE, checksum)
        for path in (self._repository.object_path(name), self._staging.place(name)):
            try:
                return _Source(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
            except OSError:
                continue
        raise DeltaSourceMissingError(checksum=checksum.hex())

    def put_metadata(self, name: ObjectName, data: bytes) -> None:
        if name.type in (ObjectType.DIRTREE, ObjectType.DIRMETA):
            self._staging.put_metadata(name, data)

    def open_file(self, checksum: bytes, header: FileHeader, size: int) -> StagedFile:
        del size
        return self._staging.open_file(ObjectName(ObjectType.FILE, checksum), header, later=self._aside)


class _Source:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        os.close(self._descriptor)
