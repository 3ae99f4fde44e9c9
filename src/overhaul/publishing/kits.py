"""Making a kit: what devices need of a repository to update without a network; its layout is in `transfer.kit`.

Which releases go in is not chosen here: the channel's own policy is asked, as a device would, from every release
that a device may come from, and what it could offer is followed to the end (checkpoints are stops on the way). An
entry that only some devices get (a rollout that is not open to all, hardware rules) is taken along with what the
others get instead.

Without sources a kit serves any device: it holds the packs, which together hold every chunk. With sources it holds
the deltas from them, and packs only where no delta begins or when they are asked for.

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

from overhaul.errors import InputError, OperatorError
from overhaul.host.files import replacing
from overhaul.policy.document import Policy, PolicyEntry, policy_target_path
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.selection import Offer, decide
from overhaul.progress import Progress
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
from overhaul.transfer.receipt import ForgedReceiptError, decode_receipt, report_in
from overhaul.trust import roles
from overhaul.trust.client import TrustedRepository
from overhaul.trust.editor import MetadataEditor
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key, target_key

_PIECE_BYTES = 4 << 20
_KEYS_PREFIX = "private/kits/"
#: Our folders in a kit that is a directory; everything else on the medium is left alone.
_OUR_FOLDERS = ("metadata", "targets", "content")


class NothingToCarryError(InputError):
    """No device that the kit should be for would be offered anything."""

    def __init__(self, *, product: str, channel: str, asked: str) -> None:
        self.product = product
        self.channel = channel
        super().__init__(
            f"Channel {channel} of {product} offers nothing to {asked}; see `overhaul channel show` and name other "
            "sources."
        )


class KitContentError(OperatorError):
    """The repository cannot give what the kit needs."""

    def __init__(self, *, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(f"{key} cannot go into the kit: {reason}. Run `overhaul repository verify`.")


class UnknownKitError(InputError):
    """Receipts of a kit that this repository did not make."""

    def __init__(self, *, kit_id: str) -> None:
        self.kit_id = kit_id
        super().__init__(f"The kit {kit_id} was not made by this repository; take it to the one that made it.")


@dataclass(frozen=True, kw_only=True)
class KitRequest:
    """What a kit is for; None and empty mean any."""

    product: str
    channel: str
    variant: str | None = None
    arch: str | None = None
    #: VERSION or VERSION/BUILD of releases that devices run.
    sources: tuple[str, ...] = ()
    #: Take the packs along although there are deltas: a device whose slot is damaged can finish then.
    with_packs: bool = False
    #: Sign again, so that devices take the kit for this long.
    valid_days: int | None = None


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
    chosen = _choose(published, policy, request, now=int(repository.clock()))
    manifest = _manifest(published, request, chosen, made_at=int(repository.clock()))
    items = (*signed, *_targets(repository, published, chosen, policy), *_content(chosen, request))
    unique = {item.name: item for item in items}
    ordered = (
        *(item for name, item in unique.items() if name != TIMESTAMP_KEY),
        unique[TIMESTAMP_KEY],
        _Item(name=MANIFEST, size=len(data := msgspec.json.encode(manifest)), data=data),
        *receipts,
    )
    key = msgspec.json.encode({"receipt_key": manifest.receipt_key, "made_at": manifest.made_at})
    repository.storage.put(f"{_KEYS_PREFIX}{manifest.kit_id}.json", key)
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


@dataclass(frozen=True, kw_only=True)
class CollectedReceipt:
    """A receipt that verifies: the JSON bytes of its report."""

    name: str
    kit_id: str
    report: bytes


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What came back in a kit."""

    receipts: tuple[CollectedReceipt, ...]
    #: Why others were left aside.
    refused: tuple[str, ...]


def collect_receipts(repository: Repository, kit: Kit) -> Collected:
    """Return the receipts that came back in `kit`; those that do not verify are named and left aside."""
    taken: list[CollectedReceipt] = []
    refused: list[str] = []
    for name in kit.names(RECEIPTS):
        try:
            taken.append(_collected(repository, kit, name))
        except (ForgedReceiptError, UnknownKitError) as error:
            refused.append(str(error))
    return Collected(receipts=tuple(taken), refused=tuple(refused))


def _collected(repository: Repository, kit: Kit, name: str) -> CollectedReceipt:
    size = kit.size(name) or 0
    if size > RECEIPT_LIMIT_BYTES:
        raise ForgedReceiptError(name=name, reason=f"it has {size} bytes, and {RECEIPT_LIMIT_BYTES} are enough")
    receipt = decode_receipt(b"".join(kit.read(name, 0, size)), name=name)
    try:
        known = msgspec.json.decode(repository.storage.read(f"{_KEYS_PREFIX}{receipt.kit_id}.json"))
    except MissingObjectError as error:
        raise UnknownKitError(kit_id=receipt.kit_id) from error
    report = report_in(receipt, receipt_key=known["receipt_key"], name=name)
    return CollectedReceipt(name=name, kit_id=receipt.kit_id, report=report)


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


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    """What a kit carries: the releases, and which may come from which."""

    releases: tuple[Release, ...]
    sources: tuple[Release, ...]
    #: (from, to); from is None for a device whose release is not published.
    steps: tuple[tuple[Release | None, Release], ...]


def _choose(published: Published, policy: Policy, request: KitRequest, *, now: int) -> _Chosen:
    lines = sorted(
        {
            (entry.variant, entry.arch)
            for entry in policy.entries
            if request.variant in {None, entry.variant} and request.arch in {None, entry.arch}
        }
    )
    sources: dict[ReleaseId, Release] = {}
    steps: dict[tuple[ReleaseId | None, ReleaseId], tuple[Release | None, Release]] = {}
    for variant, arch in lines:
        line = [
            release
            for release in published.releases.values()
            if (release.id.product, release.id.variant, release.id.arch) == (policy.product, variant, arch)
        ]
        starts = [release for release in line if _is_named(release.id, request.sources)]
        sources.update({release.id: release for release in starts})
        begin: list[Release | None] = [*(starts if request.sources else line)]
        if not request.sources:
            begin.append(None)
        _walk(published, policy, begin, variant=variant, arch=arch, now=now, steps=steps)
    named = {text for text in request.sources if any(_is_named(one, (text,)) for one in sources)}
    missing = [text for text in request.sources if text not in named]
    if missing or not steps:
        raise NothingToCarryError(
            product=request.product, channel=request.channel, asked=", ".join(missing) or "these devices"
        )
    releases = {to.id: to for _from, to in steps.values()}
    return _Chosen(
        releases=tuple(releases.values()),
        sources=tuple(sources.values()) if request.sources else (),
        steps=tuple(steps.values()),
    )


def _is_named(release: ReleaseId, names: Sequence[str]) -> bool:
    return any(name in {release.version, f"{release.version}/{release.build_id}"} for name in names)


def _walk(
    published: Published,
    policy: Policy,
    begin: Sequence[Release | None],
    *,
    variant: str,
    arch: str,
    now: int,
    steps: dict[tuple[ReleaseId | None, ReleaseId], tuple[Release | None, Release]],
) -> None:
    """Follow what the policy could offer, from each of `begin` to where nothing newer is offered."""
    waiting = list(begin)
    seen: set[ReleaseId | None] = set()
    while waiting:
        running = waiting.pop()
        identity = None if running is None else running.id
        if identity in seen:
            continue
        seen.add(identity)
        for entry in _could_offer(policy, identity, variant=variant, arch=arch, now=now):
            release = published.release(entry.release_id(policy.product))
            if release is None:
                continue
            steps[identity, release.id] = (running, release)
            waiting.append(release)


def _could_offer(
    policy: Policy, running: ReleaseId | None, *, variant: str, arch: str, now: int
) -> Iterator[PolicyEntry]:
    """Yield each entry that some device on `running` is offered, whatever its place in rollouts and its hardware."""
    original = {(entry.version, entry.build_id): entry for entry in policy.entries_for(variant=variant, arch=arch)}
    opened = msgspec.structs.replace(
        policy,
        entries=tuple(msgspec.structs.replace(entry, rollout=None, hardware=None) for entry in policy.entries),
    )
    facts = DeviceFacts(
        product=policy.product,
        variant=variant,
        arch=arch,
        channel=policy.channel,
        version="0" if running is None else running.version,
        build_id="0" if running is None else running.build_id,
        rollout_id="kit",
    )
    while isinstance(decision := decide(opened, facts, now), Offer):
        entry = original[decision.entry.version, decision.entry.build_id]
        yield entry
        if entry.hardware is None and (entry.rollout is None or entry.rollout.percent_at(now) >= 100):
            return
        # Refused, and not taken out: a checkpoint that some devices pass bars the way of the others.
        facts = msgspec.structs.replace(facts, refused=(*facts.refused, (entry.version, entry.build_id)))


def _manifest(published: Published, request: KitRequest, chosen: _Chosen, *, made_at: int) -> KitManifest:
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


def _targets(repository: Repository, published: Published, chosen: _Chosen, policy: Policy) -> Iterator[_Item]:
    """Yield the policy and the records, also of releases that a device may run: a factory's slot is known by its."""
    begins = (running for running, _to in chosen.steps if running is not None)
    records = {release.id.target_path for release in (*chosen.releases, *begins)}
    for path in sorted({*records, policy_target_path(policy.product, policy.channel)}):
        yield _signed_item(repository, target_key(path, published.report.targets[path].sha256))


def _content(chosen: _Chosen, request: KitRequest) -> Iterator[_Item]:
    for running, release in chosen.steps:
        image = release.image
        yield _content_item(image.index)
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
        if request.with_packs or not deltas:
            for pack in image.packs:
                yield _content_item(pack.pack)


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
