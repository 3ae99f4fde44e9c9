"""Choosing how the bytes of a release will be obtained. Pure: everything it needs is handed in.

There are three ways. A *delta* costs its file and works only from the one release it was made for. A *chain* of them
leads over releases that the device never had, costs all their files, and needs room for what the steps before the last
compute: where the new image has zeros, or a scratch file. *Chunks* cost the frames of those chunks that neither the
slot nor a seed has, in ranges of packs. All also cost the files that describe them, unless the device has these
already. The cheapest way wins, and none may cost more than 1.01 times the smallest published full form: the index, its
packs' tables, and one frame for every chunk of the index.

The tables are big enough to be worth avoiding: the first pack of a release holds only chunks that no earlier
release had, so a device cannot need less than it, and a delta smaller than that has won without them. So has one
that is smaller than what the record says its source lacks.
"""

from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from overhaul.content.delta.coders import KNOWN_CODERS
from overhaul.content.delta.segments import (
    LZMA2_DICTIONARY,
    MAX_SEGMENT_DECODED,
    MAX_SEGMENT_SIZE,
    MAX_UNIT_OUTPUT,
    MAX_UNIT_WINDOW,
)
from overhaul.content.frames import Frame
from overhaul.content.index import Index
from overhaul.content.packranges import (
    MARGIN,
    PackRange,
    full_form_bytes,
    plan_ranges,
)
from overhaul.content.readback import is_zero_chunk
from overhaul.release.record import DeltaRef, ImageRecord

#: Buffers of reading back, copying and fetching, whichever way.
_BUFFERS_BYTES = 20 * 1024 * 1024
#: A parsed index or table takes about this much for each chunk.
_CHUNK_RECORD_BYTES = 400
#: The parsed header of a delta of a big image.
_HEADER_MEMORY_BYTES = 8 * 1024 * 1024
#: Decoding a segment and applying its units; two at a time.
_SEGMENT_MEMORY_BYTES = 2 * (
    MAX_SEGMENT_SIZE + 2 * MAX_SEGMENT_DECODED + LZMA2_DICTIONARY + MAX_UNIT_WINDOW + 2 * MAX_UNIT_OUTPUT
)


class Way(StrEnum):
    """How bytes are obtained."""

    DELTA = "delta"
    CHAIN = "chain"
    CHUNKS = "chunks"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this device can afford."""

    #: Working memory of an assembly; None is no limit.
    memory_bytes: int | None = None
    #: Names of the delta coders that work here.
    coders: frozenset[str] = field(default_factory=lambda: KNOWN_CODERS)
    #: Names of the recoders this system has proved on itself, and room for their work areas.
    recoders: frozenset[str] = frozenset()
    work_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One delta of a plan."""

    delta: DeltaRef
    #: Numbers of the parts of the delta whose files are packed again.
    rebuilt: frozenset[int] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How an image will be obtained and what that costs."""

    way: Way
    #: The deltas in the order in which they are applied; more than one is a chain.
    steps: tuple[Step, ...] = ()
    #: What the steps before the last may compute, at most, and whether it lies where the new image has zeros.
    spool_bytes: int = 0
    spool_in_slot: bool = True
    ranges: tuple[PackRange, ...] = ()
    #: All bodies still to come: index, tables, header, frames or segments.
    download_bytes: int
    requests: int
    memory_bytes: int
    #: Files kept besides the slot, so that an interrupted assembly does not fetch them twice.
    scratch_bytes: int
    #: Why, in sentences.
    reasons: tuple[str, ...]

    @property
    def delta(self) -> DeltaRef | None:
        """The delta that makes the image, when there is one."""
        return self.steps[-1].delta if self.steps else None

    @property
    def rebuilt(self) -> frozenset[int]:
        """Numbers of its parts whose files are packed again."""
        return self.steps[-1].rebuilt if self.steps else frozenset()


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is known about an image, this device and its seeds when planning."""

    image: ImageRecord
    index: Index
    #: Numbers of the chunks that are right in the slot already.
    right: Collection[int] = frozenset()
    #: Ids of chunks that seeds ought to have.
    seeded: Container[bytes] = frozenset()
    #: The digest of the index of the release in the source slot.
    source_index: str | None = None
    limits: Limits = field(default_factory=Limits)
    #: Digests of files that need not be fetched.
    cached: Container[str] = frozenset()
    #: Digests of deltas that turned out to be unusable.
    refused: Container[str] = frozenset()
    #: Deltas, in order, that lead from the source slot's release over others to this one.
    chains: Sequence[tuple[DeltaRef, ...]] = ()

    def missing(self) -> list[int]:
        """Numbers of the chunks that must come from somewhere else than zeros and the slot itself."""
        return [
            number
            for number, chunk in enumerate(self.index.chunks)
            if number not in self.right and not is_zero_chunk(chunk)
        ]

    def zero_bytes(self) -> int:
        """Bytes of the chunks of zeros: room in the slot until the image is there."""
        return sum(chunk.size for chunk in self.index.chunks if is_zero_chunk(chunk))


def plan_without_tables(situation: Situation) -> Plan | None:
    """Return the plan that is certainly the cheapest, or None when that needs the tables of the packs.

    Certain are: nothing missing, and a delta smaller than the release's own pack, or where no seed has anything of the
    release, smaller than the chunks that its source lacks. What is right in the slot already makes both ways cheaper
    alike, because segments already done are not fetched; seeds do not, so a delta is only certain when `seeded` knows
    of all seeds that might have chunks of the new release.
    """
    reasons = _standing(situation)
    missing = situation.missing()
    wanted = {situation.index.chunks[number].id for number in missing}
    if all(identity in situation.seeded for identity in wanted):
        reasons.append("Nothing but the index is needed: all chunks are in the slot or in seeds.")
        return _chunk_plan(situation, (), tables_bytes=0, table_requests=0, reasons=reasons)
    chain = _usable_chain(situation, reasons)
    if chain is None:
        return None
    fetched = _fetched_size(chain, situation)
    own_pack, chunks = situation.image.own_pack_bytes, _chunks_size(chain, situation, wanted)
    if fetched <= own_pack:
        more = f"{_size(own_pack)} of new chunks that no earlier release has"
    elif fetched <= chunks:
        more = f"{_size(chunks)} of chunks that the release in the source slot has not"
    else:
        return None
    reasons.append(f"Of the {_name(chain)} {_size(fetched)} are needed, less than the {more}.")
    return _delta_plan(situation, chain, reasons)


def _chunks_size(chain: Sequence[DeltaRef], situation: Situation, wanted: Iterable[bytes]) -> int:
    """Return what is certainly fetched of packs without a delta; 0 when that is not known."""
    if len(chain) > 1 or any(identity in situation.seeded for identity in wanted):
        return 0
    return chain[0].chunks_size


def choose_plan(situation: Situation, tables: Sequence[Sequence[Frame]]) -> Plan:
    """Return the cheapest plan; `tables` are the frame tables of the image's packs, in their order.

    Raises:
        IncompletePacksError: A missing chunk is in no pack.
    """
    reasons = _standing(situation)
    chain = _usable_chain(situation, reasons)
    by_chunks = plan_chunks(situation, tables, reasons=reasons)
    if chain is None:
        return by_chunks
    tables_bytes, table_requests = _tables_cost(situation)
    by_delta = _delta_plan(situation, chain, ())
    sentence = (
        f"With the {_name(chain)} {_size(by_delta.download_bytes + tables_bytes)} are fetched, "
        f"with chunks {_size(by_chunks.download_bytes)}."
    )
    by_delta = replace(
        by_delta,
        download_bytes=by_delta.download_bytes + tables_bytes,
        requests=by_delta.requests + table_requests,
        reasons=(
            *by_chunks.reasons,
            sentence,
        ),
    )
    limit = (1 + MARGIN) * full_form_bytes(situation.image, situation.index, tables)
    if by_delta.download_bytes < by_chunks.download_bytes and by_delta.download_bytes <= limit:
        return by_delta
    return replace(by_chunks, reasons=by_delta.reasons)


def plan_chunks(situation: Situation, tables: Sequence[Sequence[Frame]], *, reasons: Iterable[str] = ()) -> Plan:
    """Return the plan that fetches what is neither right in the slot nor in a seed."""
    wanted = {situation.index.chunks[number].id for number in situation.missing()}
    lacking = {identity for identity in wanted if identity not in situation.seeded}
    tables_bytes, table_requests = _tables_cost(situation)
    ranges = plan_ranges(situation.image, situation.index, tables, lacking)
    listed = list(reasons)
    listed.append(f"{len(lacking)} of {len(wanted)} missing chunks must be fetched, in {len(ranges)} ranges.")
    return _chunk_plan(situation, ranges, tables_bytes=tables_bytes, table_requests=table_requests, reasons=listed)


def _usable_chain(situation: Situation, reasons: list[str]) -> tuple[DeltaRef, ...] | None:
    """Return the cheapest delta or chain of deltas that can be used, and say in `reasons` why others cannot."""
    if situation.source_index is None:
        reasons.append("No delta can be used: nothing is known about the release in the source slot.")
        return None
    direct = [(delta,) for delta in situation.image.deltas if delta.source_index == situation.source_index]
    if not direct:
        reasons.append("No delta was made for the release in the source slot.")
    usable: list[tuple[DeltaRef, ...]] = []
    for chain in (*direct, *situation.chains):
        reason = _unusable(chain, situation)
        if reason:
            reasons.append(reason)
        else:
            usable.append(chain)
    return min(usable, key=lambda chain: _fetched_size(chain, situation), default=None)


def _unusable(chain: tuple[DeltaRef, ...], situation: Situation) -> str:
    """Return why the deltas cannot be used; empty when they can."""
    what = f"The {_name(chain)}, {_size(_fetched_size(chain, situation))},"
    unknown = sorted({coder for delta in chain for coder in delta.coders} - situation.limits.coders)
    limit = situation.limits.memory_bytes
    if any(delta.file.sha256 in situation.refused for delta in chain):
        return f"{what} turned out to be unusable."
    if unknown:
        return f"{what} needs the coder {unknown[0]}, unknown here."
    if limit is not None and _delta_memory(situation) > limit:
        return (
            f"Applying a delta takes up to {_size(_delta_memory(situation))} of memory, more than the "
            f"{_size(limit)} allowed."
        )
    if len(chain) > 1 and any(delta.written_size == 0 for delta in chain[:-1]):
        return f"{what} does not state how much room it needs."
    room = max(situation.zero_bytes(), situation.limits.work_bytes)
    if _spool_bytes(chain) > room:
        return f"{what} needs room for {_size(_spool_bytes(chain))}, and there are {_size(room)}."
    return ""


def _spool_bytes(chain: Sequence[DeltaRef]) -> int:
    """Return what the deltas before the last may compute, at most."""
    return sum(delta.written_size for delta in chain[:-1])


def _limits_beside_spool(chain: Sequence[DeltaRef], situation: Situation) -> Limits:
    """Return what this device can afford beside what a chain keeps; files are packed again in the room that is left."""
    spool_bytes, limits = _spool_bytes(chain), situation.limits
    if spool_bytes <= situation.zero_bytes():
        return limits
    return replace(limits, work_bytes=max(0, limits.work_bytes - spool_bytes))


def _name(chain: Sequence[DeltaRef]) -> str:
    first = f"from {chain[0].source_version} ({chain[0].source_build_id})"
    if len(chain) == 1:
        return f"delta {first}"
    return f"chain of {len(chain)} deltas {first} over {', '.join(delta.source_version for delta in chain[1:])}"


def _rebuilt(delta: DeltaRef, limits: Limits) -> frozenset[int]:
    """Return the numbers of the parts of `delta` that this device can pack again."""
    memory = limits.memory_bytes
    return frozenset(
        number
        for number, part in enumerate(delta.rebuilds)
        if part.size < part.instead_size
        and limits.recoders.issuperset(part.recoders)
        and part.work_size <= limits.work_bytes
        and (memory is None or _BUFFERS_BYTES + part.memory <= memory)
    )


def _fetched_size(chain: Sequence[DeltaRef], situation: Situation) -> int:
    limits = _limits_beside_spool(chain, situation)
    return sum(delta.fetched_size(_rebuilt(delta, limits)) for delta in chain)


def _delta_plan(situation: Situation, chain: tuple[DeltaRef, ...], reasons: Sequence[str]) -> Plan:
    index_bytes, index_requests = _index_cost(situation)
    limits = _limits_beside_spool(chain, situation)
    steps = tuple(Step(delta=delta, rebuilt=_rebuilt(delta, limits)) for delta in chain)
    listed = list(reasons)
    download_bytes, requests = index_bytes, index_requests
    header_bytes = memory_bytes = work_bytes = 0
    for step in steps:
        delta = step.delta
        parts = [delta.rebuilds[number] for number in step.rebuilt]
        is_cached = delta.header_sha256 in situation.cached
        download_bytes += delta.fetched_size(step.rebuilt) - (delta.header_size if is_cached else 0)
        requests += sum([not is_cached, True, bool(parts), len(parts) < len(delta.rebuilds)])
        header_bytes += delta.header_size
        memory_bytes = max(memory_bytes, *(_BUFFERS_BYTES + part.memory for part in parts), 0)
        work_bytes = max(work_bytes, *(part.work_size for part in parts), 0)
        if delta.rebuilds:
            listed.append(
                f"{len(parts)} of {len(delta.rebuilds)} groups of compressed files are packed again here, "
                f"which saves {_size(sum(part.instead_size - part.size for part in parts))}."
            )
    spool_bytes = _spool_bytes(chain)
    in_slot = spool_bytes <= situation.zero_bytes()
    return Plan(
        way=Way.DELTA if len(chain) == 1 else Way.CHAIN,
        steps=steps,
        spool_bytes=spool_bytes,
        spool_in_slot=in_slot,
        download_bytes=download_bytes,
        requests=requests,
        memory_bytes=max(_delta_memory(situation) + (len(chain) - 1) * _HEADER_MEMORY_BYTES, memory_bytes),
        scratch_bytes=situation.image.index.size + header_bytes + work_bytes + (0 if in_slot else spool_bytes),
        reasons=tuple(listed),
    )


def _chunk_plan(
    situation: Situation,
    ranges: tuple[PackRange, ...],
    *,
    tables_bytes: int,
    table_requests: int,
    reasons: Sequence[str],
) -> Plan:
    index_bytes, index_requests = _index_cost(situation)
    return Plan(
        way=Way.CHUNKS,
        ranges=ranges,
        download_bytes=index_bytes + tables_bytes + sum(piece.size for piece in ranges),
        requests=index_requests + table_requests + len(ranges),
        memory_bytes=_BUFFERS_BYTES + 3 * _CHUNK_RECORD_BYTES * len(situation.index),
        scratch_bytes=situation.image.index.size + sum(pack.frames.size for pack in situation.image.packs),
        reasons=tuple(reasons),
    )


def _index_cost(situation: Situation) -> tuple[int, int]:
    index = situation.image.index
    return (0, 0) if index.sha256 in situation.cached else (index.size, 1)


def _tables_cost(situation: Situation) -> tuple[int, int]:
    lacking = [pack.frames.size for pack in situation.image.packs if pack.frames.sha256 not in situation.cached]
    return sum(lacking), len(lacking)


def _delta_memory(situation: Situation) -> int:
    return _BUFFERS_BYTES + _SEGMENT_MEMORY_BYTES + _CHUNK_RECORD_BYTES * len(situation.index)


def _standing(situation: Situation) -> list[str]:
    if not situation.right:
        return []
    return [f"{len(situation.right)} of {len(situation.index)} chunks are right in the slot already."]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.1f} kB"
