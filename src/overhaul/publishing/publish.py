"""The one place that publishes a release: content, deltas, record, policy, signatures, pointer, in this order.

Everything before the last write has a content-derived or new name, so devices see the old state until
`timestamp.json` moves (the pointers of other systems' dialects follow it at once), and a publish that died is simply
run again: the journal tells the rerun what is stored already. Before the timestamp moves, every stored file was read
back and its digest compared.

Publishing a release that is published already changes nothing about its bytes. It may put it into one more
channel or add deltas to its record; with other bytes under the same name it is refused.
"""

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import msgspec

from overhaul.content.image import ImageShape
from overhaul.dialects.seam import Dialect
from overhaul.errors import InputError
from overhaul.policy.document import Policy, PolicyEntry, encode_policy, policy_target_path
from overhaul.policy.edit import keep_newest, new_policy, put_entry, replace_entry
from overhaul.policy.rollout import Rollout
from overhaul.progress import Progress
from overhaul.publishing.castr import write_casync_store
from overhaul.publishing.configuration import store_configuration
from overhaul.publishing.content import StoredImage, index_ref, older_packs, store_image
from overhaul.publishing.deltas import (
    MadeDeltaReport,
    SkippedDelta,
    UnsuitableImageError,
    latest_sources,
    named_sources,
    store_delta,
)
from overhaul.publishing.dialects import dialects_of, point_dialects, sign_answers, write_dialects
from overhaul.publishing.opening import Repository
from overhaul.publishing.policies import check_can_sign, check_channel, check_product
from overhaul.publishing.source import SourceImage, prepare_image
from overhaul.release.record import (
    RECORD_FORMAT,
    ConfigurationRef,
    DeltaRef,
    FileRef,
    ImageRecord,
    PackRef,
    Release,
    ReleaseId,
    encode_release,
)
from overhaul.repository.journal import JournalEntry
from overhaul.repository.layout import files_of, public_key
from overhaul.repository.packs import WrongContentError, file_digest
from overhaul.repository.signed import SignedChange
from overhaul.repository.storage import MissingObjectError, StorageFailedError

#: What a full, read-only or failing disk answers.
_MEDIUM_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES})


class ReleaseExistsError(InputError):
    """Other bytes under a name that is published."""

    http_status = 409

    def __init__(self, *, release: ReleaseId) -> None:
        self.release = release
        super().__init__(
            f"{release} is published already, with another image; a release never changes, so publish this one "
            "under another version or build id."
        )


class LateCheckpointError(InputError):
    """A release that is in the channel already, and not as the checkpoint it is now asked to be."""

    http_status = 409

    def __init__(self, *, release: ReleaseId, channel: str) -> None:
        self.release = release
        self.channel = channel
        super().__init__(
            f"{release} is in channel {channel} already, and not as a checkpoint; devices may have jumped over it, "
            "so publish a checkpoint under another version or build id."
        )


@dataclass(frozen=True, kw_only=True)
class PublishRequest:
    """What a person wants published."""

    #: An image, a directory tree or a tar.
    source: Path
    release: ReleaseId
    channel: str
    checkpoint: bool = False
    #: The part of the devices it is open to at first; None means all.
    rollout_percent: float | None = None
    #: Releases (VERSION or VERSION/BUILD) to make deltas from; None leaves the choice to the settings.
    delta_from: tuple[str, ...] | None = None
    notes: str = ""
    #: Size of the image made of a tree or tar; None: what it needs.
    image_size_bytes: int | None = None
    #: Time for what has none of its own in an image made of a tree or tar; None: the tree's newest.
    timestamp: int | None = None
    #: Write a casync chunk store too; None leaves it to the product's settings.
    castr: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publish did."""

    release: Release
    channel: str
    #: Whether the release was there before this run.
    was_published: bool
    #: Whether this run changed anything devices can see.
    changed: bool
    new_pack_size: int
    new_chunks: int
    chunks: int
    deltas: tuple[MadeDeltaReport, ...]
    skipped_deltas: tuple[SkippedDelta, ...]
    #: Files of a casync chunk store written by this run.
    castr_files: int
    #: Other systems' dialects in which it was stored by this run, and those whose devices now see another state.
    written_dialects: tuple[str, ...]
    pointed_dialects: tuple[str, ...]
    #: Wall seconds by step.
    seconds: dict[str, float]


def publish(repository: Repository, request: PublishRequest, *, workers: int, progress: Progress) -> Published:
    """Publish a release; see the module's text for what holds when it dies, and when it is run again.

    Raises:
        ReleaseExistsError: The release is published with other bytes.
        RepositoryBusyError: Somebody else publishes.
        InputError, OperatorError, TrustError: What else is in the way, before anything can be seen.
    """
    check_product(repository, request.release.product)
    check_channel(repository, request.release.product, request.channel)
    with repository.locked("publish") as lock, repository.work_directory() as work:
        run = _Run(repository, request, repository.change(lock), work, workers, progress)
        try:
            return run.publish()
        except OSError as error:
            if error.errno not in _MEDIUM_ERRORS:
                raise
            raise StorageFailedError(place=str(work), reason=str(error.strerror)) from error


@dataclass
class _Run:
    repository: Repository
    request: PublishRequest
    change: SignedChange
    work: Path
    workers: int
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    #: Paths of content files that were read and found right.
    right: set[str] = field(default_factory=set)

    def publish(self) -> Published:
        release = self.request.release
        now = int(self.repository.clock())
        # What can be refused is refused before hours of work.
        check_can_sign(self.change, product=release.product, releases=True)
        dialects = dialects_of(self.repository, release.product)
        for dialect in dialects:
            dialect.check(release)
        before = self.change.policy(product=release.product, channel=self.request.channel)
        policy = before or new_policy(product=release.product, channel=self.request.channel, now=now)
        planned = put_entry(policy, self._entry(policy), now=now)
        releases = self.change.releases(product=release.product)
        sources = self._sources(releases, before or planned)
        with self._timed("image"):
            image = self._prepare()
        known = next((one for one in releases if one.id == release), None)
        entry = self._resume(image, known, now)
        with self._timed("content"):
            stored = self._store_content(image, entry, releases)
            configuration = store_configuration(self.repository.storage, image, work=self.work)
        entry = msgspec.structs.replace(entry, index=stored.index, packs=stored.packs)
        # A record that is signed already gets what it does not tell; it is vouched for only as far as this image tells
        # the same.
        tells = msgspec.UNSET if known is None else known.configuration
        told = configuration if tells in {msgspec.UNSET, configuration} else msgspec.UNSET
        policy = self._listed(policy, stored.index.sha256, told, dialects=dialects, now=now)
        self.repository.journal.write(entry)
        with self._timed("deltas"):
            entry, made, skipped = self._store_deltas(image, stored, entry, sources)
        record = self._record(image, known, stored, entry.deltas, configuration, releases=releases, now=now)
        castr_files = 0
        with self._timed("castr"):
            if self._wants_castr():
                castr_files = write_casync_store(self.repository.storage, record, progress=self.progress)
        with self._timed("dialects"):
            written = write_dialects(
                dialects,
                release,
                image,
                timestamp=now if self.request.timestamp is None else self.request.timestamp,
                work=self.work,
                workers=self.workers,
                progress=self.progress,
            )
        with self._timed("verify"):
            self._read_back(record)
        with self._timed("sign"):
            self.change.editor.put_target(release.target_path, encode_release(record))
            if policy != before:
                path = policy_target_path(release.product, self.request.channel)
                self.change.editor.put_target(path, encode_policy(policy))
            policies = self.change.policies(product=release.product)
            sign_answers(self.change.editor, dialects, release.product, policies, now=now)
            changed = self.change.commit()
        with self._timed("point"):
            pointed = point_dialects(dialects, policies, now=now)
        self.repository.journal.close(entry)
        return Published(
            release=record,
            channel=self.request.channel,
            was_published=known is not None,
            changed=changed or bool(pointed),
            new_pack_size=stored.new_pack_size,
            new_chunks=stored.new_chunks,
            chunks=stored.chunks,
            deltas=tuple(made),
            skipped_deltas=tuple(skipped),
            castr_files=castr_files,
            written_dialects=written,
            pointed_dialects=pointed,
            seconds=self.seconds,
        )

    def _entry(self, policy: Policy) -> PolicyEntry:
        """Return the policy entry to put; one that is there is kept as it is, so that a rerun is no change."""
        release = self.request.release
        held = policy.entry(release)
        if held is not None:
            if self.request.checkpoint and not held.checkpoint:
                raise LateCheckpointError(release=release, channel=self.request.channel)
            return held
        percent = self.request.rollout_percent
        return PolicyEntry(
            variant=release.variant,
            arch=release.arch,
            version=release.version,
            build_id=release.build_id,
            checkpoint=self.request.checkpoint,
            rollout=None if percent is None else Rollout(percent=percent),
        )

    def _listed(
        self,
        policy: Policy,
        index_sha256: str,
        configuration: ConfigurationRef | msgspec.UnsetType,
        *,
        dialects: Sequence[Dialect],
        now: int,
    ) -> Policy:
        """Return `policy` with the release and the digests of what it holds; a recalled one is kept as it is."""
        entry = msgspec.structs.replace(self._entry(policy), index_sha256=index_sha256)
        if configuration is not msgspec.UNSET:
            entry = msgspec.structs.replace(entry, configuration_sha256=configuration.header_sha256)
        if entry.recall is not None:
            return policy
        put = put_entry if policy.entry(self.request.release) is None else replace_entry
        after = put(policy, entry, now=now)
        count = self.repository.settings.retention.listed_releases
        # Some of other systems' clients are shown what is listed, and may want any of it.
        if after is policy or not count or any(dialect.shows_older for dialect in dialects):
            return after
        return keep_newest(after, self.request.release, count=count, now=now)

    def _sources(self, releases: Sequence[Release], policy: Policy) -> list[Release]:
        release = self.request.release
        if self.request.delta_from is not None:
            return named_sources(releases, release, self.request.delta_from)
        return latest_sources(releases, release, policy, count=self.repository.settings.deltas.sources)

    def _prepare(self) -> SourceImage:
        release = self.request.release
        shape = ImageShape(
            name=f"{release.product}/{release.variant}/{release.arch}",
            size_bytes=self.request.image_size_bytes,
            timestamp=self.request.timestamp,
        )
        return prepare_image(self.request.source, shape=shape, work=self.work, progress=self.progress)

    def _resume(self, image: SourceImage, known: Release | None, now: int) -> JournalEntry:
        """Return what to go on from: what is published or was stored by a run that died, as far as it is undamaged.

        Raises:
            ReleaseExistsError: The release is published with another image.
        """
        release = self.request.release
        fresh = JournalEntry(release=release, channel=self.request.channel, started_at=now)
        left = self.repository.journal.find(release)
        if known is None and (left is None or left.index is None):
            return fresh
        ref = index_ref(image.path)
        if known is not None and known.image.index != ref:
            raise ReleaseExistsError(release=release)
        packs = known.image.packs if known is not None else ()
        deltas = known.image.deltas if known is not None else ()
        if left is not None and left.index == ref:
            packs = packs or left.packs
            deltas = (
                *deltas,
                *(one for one in left.deltas if one.source_index not in {d.source_index for d in deltas}),
            )
        left_right = msgspec.structs.replace(fresh, deltas=tuple(one for one in deltas if self._is_right(one.file)))
        if not packs or not all(self._is_right(file) for file in (ref, *_files_of(packs))):
            return left_right
        return msgspec.structs.replace(left_right, index=ref, packs=packs)

    def _is_right(self, file: FileRef) -> bool:
        """Tell whether a content file is stored, whole and undamaged; each is read once."""
        if file.path in self.right:
            return True
        stored = self.repository.storage.stat(public_key(file.path))
        if stored is None or stored.size != file.size or file_digest(self.repository.storage, file) != file.sha256:
            return False
        self.right.add(file.path)
        return True

    def _store_content(self, image: SourceImage, entry: JournalEntry, releases: Sequence[Release]) -> StoredImage:
        if entry.index is not None:
            return StoredImage(index=entry.index, packs=entry.packs, new_pack_size=0, new_chunks=0, chunks=0)
        release = self.request.release
        return store_image(
            self.repository.storage,
            image.path,
            older=older_packs(releases, release, usable=lambda pack: all(map(self._is_right, _files_of([pack])))),
            mended_blocks=self.repository.settings.deltas.mended_blocks,
            work=self.work,
            workers=self.workers,
            progress=self.progress,
        )

    def _store_deltas(
        self, image: SourceImage, stored: StoredImage, entry: JournalEntry, sources: Sequence[Release]
    ) -> tuple[JournalEntry, list[MadeDeltaReport], list[SkippedDelta]]:
        made: list[MadeDeltaReport] = []
        skipped: list[SkippedDelta] = []
        there = {delta.source_index for delta in entry.deltas}
        for source in sources:
            if source.image.index.sha256 in there or source.image.index == entry.index:
                continue
            try:
                delta, report = store_delta(
                    self.repository.storage,
                    source=source,
                    image=image.path,
                    stored=stored,
                    work=self.work,
                    workers=self.workers,
                    progress=self.progress,
                )
            except (UnsuitableImageError, WrongContentError, MissingObjectError) as error:
                # A damaged old release must not stop a new one.
                skipped.append(SkippedDelta(source=source.id, reason=str(error)))
                continue
            there.add(delta.source_index)
            made.append(report)
            entry = msgspec.structs.replace(entry, deltas=(*entry.deltas, delta))
            self.repository.journal.write(entry)
        return entry, made, skipped

    def _record(
        self,
        image: SourceImage,
        known: Release | None,
        stored: StoredImage,
        deltas: tuple[DeltaRef, ...],
        configuration: ConfigurationRef | msgspec.UnsetType,
        *,
        releases: Sequence[Release],
        now: int,
    ) -> Release:
        others = {pack for other in releases if other.id != self.request.release for pack in other.image.packs}
        own = len(list(takewhile(lambda pack: pack not in others, stored.packs)))
        if known is not None and known.image.packs == stored.packs:
            own = known.image.own_packs
        content = ImageRecord(
            size=image.path.stat().st_size,
            filesystem=image.filesystem,
            index=stored.index,
            packs=stored.packs,
            own_packs=own,
            deltas=deltas,
        )
        if known is not None:
            return msgspec.structs.replace(
                known,
                image=content,
                checkpoint=known.checkpoint or self.request.checkpoint,
                configuration=configuration if known.configuration is msgspec.UNSET else known.configuration,
            )
        return Release(
            format=RECORD_FORMAT,
            id=self.request.release,
            published_at=now,
            image=content,
            checkpoint=self.request.checkpoint,
            notes=self.request.notes,
            configuration=configuration,
        )

    def _wants_castr(self) -> bool:
        if self.request.castr is not None:
            return self.request.castr
        return self.repository.settings.product(self.request.release.product).castr

    def _read_back(self, record: Release) -> None:
        """Raise `WrongContentError` unless every file the record names is stored as the record says."""
        for file in files_of(record):
            if not self._is_right(file):
                raise WrongContentError(path=file.path, reason="it does not read back as it was written")

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - begun, 3)


def _files_of(packs: Iterable[PackRef]) -> list[FileRef]:
    return [file for pack in packs for file in pack.files]
