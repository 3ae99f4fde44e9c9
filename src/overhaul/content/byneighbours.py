"""What neighbours can give, before an assembly: small files, the segments of its delta, then chunks into the slot.

This comes before an assembly and is no part of it. Segments go into the cache, where the assembly looks first, and are
the same few bytes that the repository would send. Chunks are unpacked and the whole of what changed, often tens of
times more; they are taken where a delta is not to be had, or saves too little. Only chunks whose digest is that of the
signed index are written, and the slot is the record of progress, so an assembly goes on from whatever this leaves; when
nobody has anything, or all neighbours fail in the middle, it fetches the rest from the repository.
"""

from collections.abc import Iterator
from pathlib import Path

from overhaul.content.cache import ContentCache
from overhaul.content.delta.segments import Segment
from overhaul.content.deltause import DeltaUse, Gaps
from overhaul.content.fill import fill_from_seeds
from overhaul.content.neighbours import Neighbourhood, Piece
from overhaul.content.plan import Plan, Way
from overhaul.content.preparing import THREADS, Materials, Preparation
from overhaul.content.readback import is_zero_chunk
from overhaul.content.target import SlotTarget
from overhaul.errors import TrustError
from overhaul.release.record import Release


def describe_from_neighbours(
    release: Release, cache: Path, neighbourhood: Neighbourhood, *, source_index: str | None
) -> None:
    """Have what describes the image of `release` and its delta in the directory `cache` when neighbours have it."""
    image, kept = release.image, ContentCache(cache)
    deltas = [delta for delta in image.deltas if delta.source_index == source_index]
    pieces = [Piece(image.index.sha256, image.index.size)]
    pieces += [Piece(delta.header_sha256, delta.header_size) for delta in deltas]
    if not deltas:
        pieces += [Piece(pack.frames.sha256, pack.frames.size) for pack in image.packs]
    wanted = [piece for piece in pieces if piece.sha256 not in kept]
    neighbourhood.pieces(wanted, lambda piece, data: kept.put(piece.sha256, data), index_sha256=image.index.sha256)


def fill_from_neighbours(
    release: Release,
    materials: Materials,
    neighbourhood: Neighbourhood,
    *,
    target: Path,
    bytes_per_saved_byte: int,
) -> None:
    """Have in the cache, or in `target`, what neighbours have of the image of `release`.

    Raises:
        NetworkError, TrustError: As an assembly, for what describes the image and no neighbour has.
        SlotTooSmallError, SlotUnusableError: As an assembly.
    """
    ref = release.image.index
    with SlotTarget(target, image_size=release.image.size) as slot, Preparation(release, materials) as preparation:
        right = preparation.right_in(target)
        plan = preparation.plan(right)
        lacking_bytes = _take_segments(plan, preparation, neighbourhood, Gaps(preparation.index.chunks, right))
        # That is packed, and so the least that they may be.
        chunk_bytes = release.image.own_pack_bytes
        is_worth_it = plan.way is Way.CHUNKS or chunk_bytes <= lacking_bytes * bytes_per_saved_byte
        if not is_worth_it or not neighbourhood.has_image(ref.sha256):
            return
        chunks, progress = preparation.index.chunks, preparation.progress
        wanted = [number for number, chunk in enumerate(chunks) if number not in right and not is_zero_chunk(chunk)]
        progress.begin("Copying chunks", sum(chunks[number].size for number in wanted))
        left = fill_from_seeds(slot, chunks, wanted, preparation.seeds, threads=THREADS, progress=progress)
        progress.end()
        progress.begin("Asking neighbours", sum(chunks[number].size for number in left))
        neighbourhood.fill(slot.write, chunks, left, index_sha256=ref.sha256, progress=progress)
        progress.end()
        slot.sync()


def _take_segments(plan: Plan, preparation: Preparation, neighbourhood: Neighbourhood, gaps: Gaps) -> int:
    """Have segments of a planned delta in the cache; return how many bytes are still to be fetched."""
    if plan.way is not Way.DELTA:
        return plan.download_bytes
    try:
        use = DeltaUse.open(plan.steps[0], preparation.files)
    except TrustError:
        # The assembly meets it, too, and knows another way.
        return plan.download_bytes
    cache, progress = preparation.cache, preparation.progress
    wanted = [
        Piece(segment.sha256.hex(), segment.size)
        for segment in _segments_for(use, gaps)
        if segment.sha256.hex() not in cache
    ]
    progress.begin("Asking neighbours", sum(piece.size for piece in wanted))

    def keep(piece: Piece, data: bytes) -> None:
        cache.put_if_room(piece.sha256, data)
        progress.advance(piece.size)

    left = neighbourhood.pieces(wanted, keep, index_sha256=preparation.image.index.sha256)
    progress.end()
    return sum(piece.size for piece in left)


def _segments_for(use: DeltaUse, gaps: Gaps) -> Iterator[Segment]:
    """Yield the segments that an assembly fetches for gaps: those of all groups as they are carried out here."""
    header = use.header
    for segment in use.segments(header.segments, range(len(header.groups))):
        if gaps.touch(segment.output_runs):
            yield segment
    for number in use.rebuilt:
        group = header.groups[number]
        if gaps.touch(group.output_runs):
            yield from group.segments
