"""Making a kit: what devices need of a repository to update without a network; its layout is in `transfer.kit`.

Which releases go in is said in `kit_choice`.
Without sources a kit serves any device: it holds the packs, which together hold every chunk. With sources it holds
the deltas from them, and packs only where no delta begins or when they are asked for. What mends a few wrong blocks
of a slot goes in when it is asked for.

Everything is compared with its signed digest while it is copied, and the finished kit is read through the device's
own trust client before it takes its name.
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import msgspec

from overhaul.errors import OperatorError
from overhaul.host.files import replacing
from overhaul.policy.document import Policy, policy_target_path
from overhaul.progress import Progress
from overhaul.publishing.kit_choice import Chosen, KitRequest, choose_releases
from overhaul.publishing.kit_receipts import keep_receipt_key
from overhaul.publishing.opening import Repository
from overhaul.publishing.policies import check_channel
from overhaul.release.record import FileRef, Release, ReleaseId
from overhaul.repository.layout import public_key
from overhaul.repository.signed import Published, check_trusted, read_public
from overhaul.repository.storage import MissingObjectError
from overhaul.transfer.kit import (
    KIT_URL,
    MANIFEST,
    RECEIPT_LIMIT_BYTES,
    RECEIPTS,
    DirectoryKit,
    FileKit,
    Kit,
    KitFetcher,
    KitManifest,
    KitRelease,
    KitUnusableError,
    padding,
    read_manifest,
    tar_header,
)
from overhaul.trust import roles
from overhaul.trust.client import TrustedRepository
from overhaul.trust.editor import MetadataEditor
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key, target_key

_PIECE_BYTES = 4 << 20
#: Our folders in a kit that is a directory; everything else on the medium is left alone.
_OUR_FOLDERS = ("metadata", "targets", "content")


class KitContentError(OperatorError):
    """The repository cannot give what the kit needs."""

    def __init__(self, *, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(f"{key} cannot go into the kit: {reason}. Run `overhaul repository verify`.")


@dataclass(frozen=True, kw_only=True)
class KitExported:
    """What was put into a kit."""

    path: str
    manifest: KitManifest
    files: int
    size: int
    #: Bytes that a directory kit held already.
    kept_bytes: int


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One file of a kit: bytes at hand, or a content file of the storage."""

    name: str
    size: int
    data: bytes | None = None
    sha256: str = ""


def export_kit(repository: Repository, path: Path, request: KitRequest, *, progress: Progress) -> KitExported:
    """Write a kit to `path`: into it when it is a directory, else one file that appears when it is whole.

    Raises:
        NothingToCarryError: Nothing is offered to the devices it should be for.
        KitContentError: A file of the repository is missing or not the signed one.
        TrustError: What is published does not verify.
        OperatorError: The keys to sign for `valid_days` are not here.
    """
    check_channel(repository, request.product, request.channel)
    receipts = _receipts_of(path)
    published, signed = _signed_state(repository, request)
    check_trusted(published)
    policy = published.policies[policy_target_path(request.product, request.channel)]
    chosen = choose_releases(published, policy, request, now=int(repository.clock()))
    manifest = _manifest(published, request, chosen, made_at=int(repository.clock()))
    items = (*signed, *_targets(repository, published, chosen, policy), *_content(chosen, request))
    unique = {item.name: item for item in items}
    ordered = (
        *(item for name, item in unique.items() if name != TIMESTAMP_KEY),
        unique[TIMESTAMP_KEY],
        _Item(name=MANIFEST, size=len(data := msgspec.json.encode(manifest)), data=data),
        *receipts,
    )
    keep_receipt_key(repository.storage, manifest)
    progress.begin("Copying", sum(item.size for item in ordered))
    write = _write_directory if path.is_dir() else _write_file
    kept = write(repository, path, ordered, progress)
    progress.end()
    return KitExported(
        path=str(path),
        manifest=manifest,
        files=len(ordered),
        size=sum(item.size for item in ordered),
        kept_bytes=kept,
    )


def _receipts_of(path: Path) -> tuple[_Item, ...]:
    """Return what devices left in the kit that is there already, so that making it anew loses nothing.

    Raises:
        KitUnusableError: There is something else under that name, or a stick whose folders lead elsewhere.
    """
    if path.is_dir():
        for folder in (*_OUR_FOLDERS, RECEIPTS.rstrip("/")):
            for place, folders, _files in os.walk(path / folder):
                # A stick comes back from strangers: through a link, what is written or removed would be ours.
                linked = [name for name in folders if (Path(place) / name).is_symlink()]
                if linked or Path(place).is_symlink():
                    raise KitUnusableError(path=path, reason=f"{Path(place, *linked[:1])} is a symbolic link")
        return ()
    if not os.path.lexists(path):
        return ()
    kit = FileKit(path)
    read_manifest(kit)
    found = []
    for name in kit.names(RECEIPTS):
        size = kit.size(name) or 0
        if size <= RECEIPT_LIMIT_BYTES:
            found.append(_Item(name=name, size=size, data=b"".join(kit.read(name, 0, size))))
    return tuple(found)


def _signed_state(repository: Repository, request: KitRequest) -> tuple[Published, tuple[_Item, ...]]:
    """Return what is published and the metadata on the way to it, both of one moment."""
    with repository.locked("kit export") as lock:
        if request.valid_days is None:
            published = repository.published()
            return published, _metadata(repository, published, request.product)
        usual = repository.settings.lifetimes.as_lifetimes()
        days = timedelta(days=request.valid_days)
        change = repository.change(lock)
        change.editor = MetadataEditor(
            lambda key: read_public(repository.storage, key),
            repository.keyring,
            change.now,
            replace(usual, snapshot=max(usual.snapshot, days), timestamp=max(usual.timestamp, days)),
        )
        change.editor.refresh()
        change.commit()
        published = repository.published()
        items = _metadata(repository, published, request.product)
        # Who is online goes on with a timestamp of the usual life.
        usual_change = repository.change(lock)
        usual_change.editor.refresh()
        usual_change.commit()
    return published, items


def _metadata(repository: Repository, published: Published, product: str) -> tuple[_Item, ...]:
    wanted = (roles.SNAPSHOT, roles.TARGETS, product, roles.policy_role(product))
    versions = published.report.roles
    names = [metadata_key(role, versions[role][0]) for role in wanted if role in versions]
    # Every root since the first: a device follows them one by one from the one it knows.
    names += [metadata_key(roles.ROOT, number) for number in range(1, versions[roles.ROOT][0] + 1)]
    return tuple(_signed_item(repository, name) for name in (*names, TIMESTAMP_KEY))


def _signed_item(repository: Repository, name: str) -> _Item:
    data = read_public(repository.storage, name)
    if data is None:
        raise KitContentError(key=name, reason="it is missing")
    return _Item(name=name, size=len(data), data=data)


def _manifest(published: Published, request: KitRequest, chosen: Chosen, *, made_at: int) -> KitManifest:
    needed = (*roles.TOP_LEVEL, request.product, roles.policy_role(request.product))
    ends = [published.report.roles[role][1] for role in needed if role in published.report.roles]
    return KitManifest(
        kit_id=secrets.token_hex(8),
        receipt_key=secrets.token_hex(32),
        product=request.product,
        channel=request.channel,
        releases=tuple(map(_named, chosen.releases)),
        sources=tuple(map(_named, chosen.sources)),
        made_at=made_at,
        usable_until=int(min(ends).timestamp()),
    )


def _named(release: Release) -> KitRelease:
    identity = release.id
    return KitRelease(
        variant=identity.variant, arch=identity.arch, version=identity.version, build_id=identity.build_id
    )


def _targets(repository: Repository, published: Published, chosen: Chosen, policy: Policy) -> Iterator[_Item]:
    """Yield the policy and the records, also of releases that a device may run: a factory's slot is known by its."""
    begins = (running for running, _to in chosen.steps if running is not None)
    records = {release.id.target_path for release in (*chosen.releases, *begins)}
    for path in sorted({*records, policy_target_path(policy.product, policy.channel)}):
        yield _signed_item(repository, target_key(path, published.report.targets[path].sha256))


def _content(chosen: Chosen, request: KitRequest) -> Iterator[_Item]:
    for running, release in chosen.steps:
        image = release.image
        yield _content_item(image.index)
        for known in (release, running):
            if known is not None and known.configuration is not msgspec.UNSET:
                yield _content_item(known.configuration.file)
        for pack in image.packs:
            yield _content_item(pack.frames)
        deltas = [
            delta
            for delta in image.deltas
            if request.sources and running is not None and delta.source_index == running.image.index.sha256
        ]
        for delta in deltas:
            yield _content_item(delta.file)
        if running is not None:
            yield _content_item(running.image.index)
        for pack in image.packs:
            if request.with_packs or not deltas:
                yield _content_item(pack.pack)
            if request.with_mends and pack.mends is not msgspec.UNSET:
                yield _content_item(pack.mends.file)


def _content_item(ref: FileRef) -> _Item:
    return _Item(name=ref.path, size=ref.size, sha256=ref.sha256)


def _pieces(repository: Repository, item: _Item) -> Iterator[bytes]:
    """Yield the bytes of a file, and fail behind the last one when they were not the signed ones."""
    if item.data is not None:
        yield item.data
        return
    digest = hashlib.sha256()
    received = 0
    for start in range(0, item.size, _PIECE_BYTES):
        try:
            piece = repository.storage.read(
                public_key(item.name), start=start, end=min(item.size, start + _PIECE_BYTES)
            )
        except MissingObjectError as error:
            raise KitContentError(key=item.name, reason="it is missing") from error
        digest.update(piece)
        received += len(piece)
        yield piece
    if received != item.size or digest.hexdigest() != item.sha256:
        raise KitContentError(key=item.name, reason="it is not the file that was signed")


def _write_file(repository: Repository, path: Path, items: Sequence[_Item], progress: Progress) -> int:
    with replacing(path) as stream:
        for item in items:
            stream.write(tar_header(item.name, item.size))
            for piece in _pieces(repository, item):
                stream.write(piece)
                progress.advance(len(piece))
            stream.write(padding(item.size))
        stream.write(bytes(1024))
        stream.flush()
        # It has no name yet by which it could be opened.
        _prove(repository, FileKit(Path(f"/proc/self/fd/{stream.fileno()}")), items)
    return 0


def _write_directory(repository: Repository, path: Path, items: Sequence[_Item], progress: Progress) -> int:
    """Bring a directory up to date; the timestamp and what the kit says of itself come last, as in a publish."""
    kept = 0
    for item in items:
        place = path / item.name
        if _is_there(place, item):
            kept += item.size
            progress.advance(item.size)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as stream:
            for piece in _pieces(repository, item):
                stream.write(piece)
                progress.advance(len(piece))
    kit = DirectoryKit(path)
    _prove(repository, kit, items)
    wanted = {item.name for item in items}
    for folder in _OUR_FOLDERS:
        for name in kit.names(f"{folder}/"):
            if name not in wanted:
                (path / name).unlink()
    (path / RECEIPTS).mkdir(exist_ok=True)
    return kept


def _is_there(place: Path, item: _Item) -> bool:
    if item.data is not None or not place.is_file() or place.stat().st_size != item.size:
        return False
    with place.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == item.sha256


def _prove(repository: Repository, kit: Kit, items: Sequence[_Item]) -> None:
    """Read the kit as a device would that knows only the first root."""
    manifest = read_manifest(kit)
    anchor = b"".join(kit.read(metadata_key(roles.ROOT, 1), 0, 1 << 20))
    with tempfile.TemporaryDirectory(prefix="overhaul-") as directory:
        trusted = TrustedRepository(
            state_directory=Path(directory),
            base_url=KIT_URL,
            bootstrap_root=anchor,
            fetcher=KitFetcher(kit),
            clock=repository.now,
        )
        trusted.refresh()
        trusted.read_target(policy_target_path(manifest.product, manifest.channel))
        for release in manifest.releases:
            identity = ReleaseId(
                product=manifest.product,
                variant=release.variant,
                arch=release.arch,
                version=release.version,
                build_id=release.build_id,
            )
            trusted.read_target(identity.target_path)
    for item in items:
        if kit.size(item.name) != item.size:
            raise KitContentError(key=item.name, reason="it did not arrive in the kit")
