"""An image becomes stored content: its index, its pack, and the older packs that hold the rest of it."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from overhaul.content.chunker import chunk_file
from overhaul.content.frames import write_frames
from overhaul.content.index import Index, write_index
from overhaul.content.ingest import ingest_image
from overhaul.content.mending import WrittenMends
from overhaul.progress import Progress
from overhaul.release.record import FileRef, MendsRef, PackRef, Release, ReleaseId
from overhaul.release.versions import release_order_key
from overhaul.repository.layout import ContentKind, content_ref, content_ref_of, public_key
from overhaul.repository.packs import read_frames_of
from overhaul.repository.storage import Storage

#: A release names at most so many packs. Chunks of older ones are packed again, so that a device asks few files.
MAX_PACKS = 8


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """Where the chunks of an image are published."""

    index: FileRef
    packs: tuple[PackRef, ...]
    #: Bytes of the pack made for it; 0 when older packs hold everything.
    new_pack_size: int
    new_chunks: int
    chunks: int


def index_ref(image: Path) -> FileRef:
    """Return the reference that the index of `image` has when it is published."""
    return content_ref_of(ContentKind.INDEX, write_index(chunk_file(image)))


def older_packs(
    releases: Iterable[Release], target: ReleaseId, *, usable: Callable[[PackRef], bool]
) -> tuple[PackRef, ...]:
    """Return the usable packs of the newest releases of the target's variant and arch, for `target` to lean on."""
    same = [one for one in releases if (one.id.variant, one.id.arch) == (target.variant, target.arch)]
    newest = sorted(same, key=lambda one: release_order_key(one.id.version, one.id.build_id), reverse=True)
    packs = {pack.pack.sha256: pack for release in newest for pack in release.image.packs}
    return tuple(islice(filter(usable, packs.values()), MAX_PACKS - 1))


def store_image(
    storage: Storage,
    image: Path,
    *,
    older: Sequence[PackRef],
    mended_blocks: int,
    work: Path,
    workers: int,
    progress: Progress,
) -> StoredImage:
    """Put the index of `image` and one pack of the chunks that `older` lacks into `storage`."""
    holders = {pack.pack.sha256: {frame.chunk_id for frame in read_frames_of(storage, pack)} for pack in older}
    known: set[bytes] = set().union(*holders.values())
    pack_file = work / "new.pack"
    mends_file = work / "new.mends"
    ingested = ingest_image(
        image, pack_file, known=known, workers=workers, sums=mended_blocks, mends=mends_file, progress=progress
    )
    packs: list[PackRef] = []
    if ingested.frames:
        frames = write_frames(ingested.frames)
        new = PackRef(
            pack=content_ref(ContentKind.PACK, sha256=ingested.pack_sha256, size=ingested.pack_size),
            frames=content_ref_of(ContentKind.FRAMES, frames),
        )
        storage.put_file(public_key(new.pack.path), pack_file)
        storage.put(public_key(new.frames.path), frames)
        if ingested.mends is not None:
            new = msgspec.structs.replace(new, mends=_mends_ref(ingested.mends))
            storage.put_file(public_key(new.files[-1].path), mends_file)
        packs.append(new)
    packs.extend(_needed(ingested.index, {frame.chunk_id for frame in ingested.frames}, older, holders))
    index = write_index(ingested.index)
    ref = content_ref(ContentKind.INDEX, sha256=hashlib.sha256(index).hexdigest(), size=len(index))
    storage.put(public_key(ref.path), index)
    return StoredImage(
        index=ref,
        packs=tuple(packs),
        new_pack_size=ingested.pack_size,
        new_chunks=len(ingested.frames),
        chunks=len(ingested.index),
    )


def _mends_ref(written: WrittenMends) -> MendsRef:
    return MendsRef(
        file=content_ref(ContentKind.MENDS, sha256=written.sha256, size=written.size),
        header_size=written.header_size,
        header_sha256=written.header_sha256,
    )


def _needed(
    index: Index, packed: set[bytes], older: Sequence[PackRef], holders: dict[str, set[bytes]]
) -> list[PackRef]:
    """Return few of the `older` packs that together hold what is not `packed`: the most useful one first."""
    missing = {chunk.id for chunk in index} - packed
    left = list(older)
    needed: list[PackRef] = []
    while missing:
        best = max(left, key=lambda pack: len(holders[pack.pack.sha256] & missing))
        left.remove(best)
        needed.append(best)
        missing -= holders[best.pack.sha256]
    return needed
