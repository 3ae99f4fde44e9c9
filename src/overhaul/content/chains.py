"""Finding deltas that lead from one release over others to a third, along the signed records of those between.

Each record names the releases its own deltas start from, so a chain is found backwards from the wanted release. Every
record read is a request, so the way with the fewest bytes is followed first and few records are read. Nothing of a
release between is booted or trusted for more than its delta: what a chain makes is read back against the index of the
wanted release.
"""

import heapq
from collections.abc import Callable
from itertools import count

from overhaul.release.record import DeltaRef, Release, ReleaseId

#: Deltas of a chain: each one more takes time, and room for what it computes.
_STEPS_MAX = 6
#: Records that are read, some kilobytes each.
_RECORDS_MAX = 8


def find_chains(
    release: Release, source_index: str | None, *, read: Callable[[ReleaseId], Release | None]
) -> tuple[tuple[DeltaRef, ...], ...]:
    """Return the cheapest chain of deltas from the image with the index `source_index` to `release`, if any.

    None is looked for where a delta leads there directly, because it is smaller. `read` returns the signed record of
    a release, or None when there is none any more.
    """
    deltas = release.image.deltas
    if source_index is None or any(delta.source_index == source_index for delta in deltas):
        return ()
    # No chain is worth more than all packs together, and no full form is bigger than they and what describes them.
    budget = sum(pack.pack.size for pack in release.image.packs)
    order = count()
    waiting: list[tuple[int, int, tuple[DeltaRef, ...]]] = [
        (_least_size(delta), next(order), (delta,)) for delta in deltas
    ]
    heapq.heapify(waiting)
    seen: set[str] = {release.image.index.sha256}
    while waiting:
        size, _order, chain = heapq.heappop(waiting)
        first = chain[0]
        if first.source_index == source_index:
            return (chain,)
        if first.source_index in seen or len(chain) == _STEPS_MAX or len(seen) > _RECORDS_MAX:
            continue
        seen.add(first.source_index)
        between = read(_id_of(release.id, first))
        if between is None or between.image.index.sha256 != first.source_index:
            continue
        for delta in between.image.deltas:
            whole = size + _least_size(delta)
            if whole <= budget and delta.written_size:
                heapq.heappush(waiting, (whole, next(order), (delta, *chain)))
    return ()


def _id_of(release: ReleaseId, delta: DeltaRef) -> ReleaseId:
    """Return what the release is called that `delta`, to `release`, starts from."""
    return ReleaseId(
        product=release.product,
        variant=release.variant,
        arch=release.arch,
        version=delta.source_version,
        build_id=delta.source_build_id,
    )


def _least_size(delta: DeltaRef) -> int:
    return delta.fetched_size(range(len(delta.rebuilds)))
