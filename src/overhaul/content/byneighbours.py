"""Filling a slot from neighbours before anything is planned: what they had is right then, and costs nothing.

This comes before an assembly and is no part of it. It writes only chunks whose digest is that of the signed index, and
the slot is the record of progress, so an assembly goes on from whatever it leaves; when nobody has the release, or all
neighbours fail in the middle, the assembly fetches the rest from the repository.
"""

from pathlib import Path

from overhaul.content.cache import ContentCache
from overhaul.content.fill import fill_from_seeds
from overhaul.content.neighbours import Neighbourhood
from overhaul.content.preparing import THREADS, Materials, Preparation
from overhaul.content.readback import is_zero_chunk
from overhaul.content.target import SlotTarget
from overhaul.release.record import Release


def index_from_neighbours(release: Release, cache: Path, neighbourhood: Neighbourhood) -> None:
    """Have the index of the image of `release` in the directory `cache` when a neighbour has it."""
    ref = release.image.index
    kept = ContentCache(cache)
    if ref.sha256 not in kept and (data := neighbourhood.index(ref.sha256, size=ref.size)) is not None:
        kept.put(ref.sha256, data)


def fill_from_neighbours(release: Release, materials: Materials, neighbourhood: Neighbourhood, *, target: Path) -> None:
    """Write into `target` what the source, seeds and neighbours have of the image of `release`.

    Raises:
        NetworkError, TrustError: As an assembly, for an index that no neighbour has.
        SlotTooSmallError, SlotUnusableError: As an assembly.
    """
    ref = release.image.index
    if not neighbourhood.has_image(ref.sha256):
        return
    with SlotTarget(target, image_size=release.image.size) as slot, Preparation(release, materials) as preparation:
        chunks, progress = preparation.index.chunks, preparation.progress
        right = preparation.right_in(target)
        wanted = [number for number, chunk in enumerate(chunks) if number not in right and not is_zero_chunk(chunk)]
        progress.begin("Copying chunks", sum(chunks[number].size for number in wanted))
        left = fill_from_seeds(slot, chunks, wanted, preparation.seeds, threads=THREADS, progress=progress)
        progress.end()
        progress.begin("Asking neighbours", sum(chunks[number].size for number in left))
        neighbourhood.fill(slot.write, chunks, left, index_sha256=ref.sha256, progress=progress)
        progress.end()
        slot.sync()
