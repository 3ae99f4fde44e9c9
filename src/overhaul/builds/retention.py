"""What is removed when: artefacts by age and by size, logs, leftovers, ImageBuilders. Records of builds stay.

An artefact and the answers that point to it go together: the queue forgets to answer with a build before its files
are removed, so nobody is sent to files that are gone.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from overhaul.builds.imagebuilders import ImageBuilders
from overhaul.builds.queue import BuildQueue, UnknownBuildError
from overhaul.builds.store import ArtefactRecord, ArtefactStore

_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What an operator may decide about it."""

    #: Beyond this the artefacts nearest to their end go first.
    store_bytes: int = 50 << 30
    logs_s: float = 14 * 24 * _HOUR_S
    imagebuilders_s: float = 7 * 24 * _HOUR_S
    #: Nobody works on something in `incoming` for so long.
    leftovers_s: float = 24 * _HOUR_S


@dataclass(frozen=True, kw_only=True)
class Collected:
    """What a collection removed."""

    artefacts: int
    freed_bytes: int
    logs: int
    leftovers: int
    imagebuilders: int


def collect_garbage(
    queue: BuildQueue,
    store: ArtefactStore,
    *,
    now: float,
    retention: Retention,
    imagebuilders: ImageBuilders | None = None,
) -> Collected:
    """Remove what has had its time; it can be stopped and run again at any moment."""
    gone = surplus(tuple(store.records()), now=now, store_bytes=retention.store_bytes)
    for record in gone:
        # A queue that was made anew does not know the build, and then nothing points to these files any more.
        with suppress(UnknownBuildError):
            queue.expire(record.build_id)
        store.remove(record.artefact)
    unused_since = now - retention.imagebuilders_s
    return Collected(
        artefacts=len(gone),
        freed_bytes=sum(record.size_bytes for record in gone),
        logs=queue.forget_logs(before=now - retention.logs_s),
        leftovers=store.remove_leftovers(now=now, older_than_s=retention.leftovers_s),
        imagebuilders=0 if imagebuilders is None else imagebuilders.forget(unused_since=unused_since),
    )


def surplus(records: Sequence[ArtefactRecord], *, now: float, store_bytes: int) -> tuple[ArtefactRecord, ...]:
    """Return the artefacts to remove: those past their end, then those nearest to it until the rest fits."""
    gone = [record for record in records if record.expires_at <= now]
    kept = sorted((record for record in records if record.expires_at > now), key=lambda record: record.expires_at)
    size = sum(record.size_bytes for record in kept)
    for record in kept:
        if size <= store_bytes:
            break
        gone.append(record)
        size -= record.size_bytes
    return tuple(gone)
