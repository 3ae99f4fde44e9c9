"""The rules by which the cheapest way is chosen."""

import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.content.frame_tables import frame_table, identity

from overhaul.content.index import CHUNK_SIZE_MAX, Chunk, Index, chunk_id
from overhaul.content.packranges import IncompletePacksError, full_form_bytes
from overhaul.content.plan import Limits, Plan, Situation, Way, choose_plan, plan_without_tables
from overhaul.release.record import DeltaRef, FileRef, ImageRecord, PackRef, RebuildRef

_SOURCE = "5" * 64


def _ref(name: str, size: int) -> FileRef:
    return FileRef(path=f"content/{name}", size=size, sha256=hashlib.sha256(name.encode()).hexdigest())


def _index(count: int) -> Index:
    return Index([Chunk(number * 60_000, 60_000, identity(number)) for number in range(count)])


def _delta(size: int, *, coders: tuple[str, ...] = ("covers",), source: str = _SOURCE) -> DeltaRef:
    return DeltaRef(
        source_index=source,
        source_version="1",
        source_build_id="b",
        file=_ref(f"delta{size}{source}", size),
        header_size=100,
        header_sha256="1" * 64,
        coders=coders,
    )


def _image(*, deltas: tuple[DeltaRef, ...] = (), own: int = 40, other: int = 60) -> ImageRecord:
    packs = tuple(
        PackRef(pack=_ref(f"pack{name}", count * 25_000), frames=_ref(f"frames{name}", 8 + count * 72))
        for name, count in (("own", own), ("old", other))
    )
    return ImageRecord(size=6_000_000, filesystem="raw", index=_ref("index", 4000), packs=packs, deltas=deltas)


_TABLES = [frame_table(range(60, 100)), frame_table([*range(60), *range(200, 230)])]


def test_a_delta_smaller_than_the_new_pack_needs_no_tables() -> None:
    situation = Situation(
        image=_image(deltas=(_delta(900_000), _delta(800_000))), index=_index(100), source_index=_SOURCE
    )
    plan = plan_without_tables(situation)
    assert plan is not None
    assert plan.way is Way.DELTA
    assert plan.delta == _delta(800_000)
    assert (plan.download_bytes, plan.requests) == (804_000, 3)


def test_a_delta_smaller_than_the_chunks_its_source_lacks_needs_no_tables() -> None:
    delta = msgspec.structs.replace(_delta(800_000), chunks_size=900_000)
    # As after a small release that came in between: its own pack is nearly empty.
    image = _image(deltas=(delta,), own=1, other=99)
    plan = plan_without_tables(Situation(image=image, index=_index(100), source_index=_SOURCE))
    assert plan is not None
    assert plan.delta == delta
    assert "chunks that the release in the source slot has not" in plan.reasons[-1]


@pytest.mark.parametrize(
    ("chunks_size", "seeded"),
    [(0, frozenset()), (799_999, frozenset()), (900_000, frozenset({identity(7)}))],
)
def test_without_that_certainty_the_tables_are_asked(chunks_size: int, seeded: frozenset[bytes]) -> None:
    delta = msgspec.structs.replace(_delta(800_000), chunks_size=chunks_size)
    image = _image(deltas=(delta,), own=1, other=99)
    situation = Situation(image=image, index=_index(100), source_index=_SOURCE, seeded=seeded)
    assert plan_without_tables(situation) is None


def test_what_is_cached_costs_nothing() -> None:
    image = _image(deltas=(_delta(800_000),))
    situation = Situation(image=image, index=_index(100), source_index=_SOURCE, cached={image.index.sha256, "1" * 64})
    plan = plan_without_tables(situation)
    assert plan is not None
    assert (plan.download_bytes, plan.requests) == (799_900, 1)


@pytest.mark.parametrize(
    ("situation", "reason"),
    [
        (Situation(image=_image(deltas=(_delta(10),)), index=_index(100)), "nothing is known about the release"),
        (
            Situation(image=_image(deltas=(_delta(10, source="6" * 64),)), index=_index(100), source_index=_SOURCE),
            "No delta was made",
        ),
        (
            Situation(image=_image(deltas=(_delta(10, coders=("magic",)),)), index=_index(100), source_index=_SOURCE),
            "the coder magic",
        ),
        (
            Situation(
                image=_image(deltas=(_delta(10),)),
                index=_index(100),
                source_index=_SOURCE,
                limits=Limits(memory_bytes=30_000_000),
            ),
            "of memory, more than",
        ),
        (
            Situation(
                image=_image(deltas=(_delta(10),)),
                index=_index(100),
                source_index=_SOURCE,
                refused={_delta(10).file.sha256},
            ),
            "turned out to be unusable",
        ),
    ],
)
def test_a_delta_that_cannot_be_used_is_not_planned_and_the_reason_said(situation: Situation, reason: str) -> None:
    assert plan_without_tables(situation) is None
    plan = choose_plan(situation, _TABLES)
    assert plan.way is Way.CHUNKS
    assert any(reason in sentence for sentence in plan.reasons)


def test_seeds_that_have_nearly_everything_beat_a_delta() -> None:
    situation = Situation(
        image=_image(deltas=(_delta(1_200_000),)),
        index=_index(100),
        source_index=_SOURCE,
        seeded={identity(number) for number in range(95)},
    )
    plan = choose_plan(situation, _TABLES)
    assert plan.way is Way.CHUNKS
    assert [piece[:3] for piece in plan.ranges] == [(0, 35 * 25_000, 40 * 25_000)]


def test_a_delta_beats_chunks_when_the_tables_show_it() -> None:
    situation = Situation(image=_image(deltas=(_delta(1_200_000),)), index=_index(100), source_index=_SOURCE)
    plan = choose_plan(situation, _TABLES)
    assert plan.way is Way.DELTA
    tables = sum(pack.frames.size for pack in situation.image.packs)
    assert plan.download_bytes == 4000 + tables + 1_200_000


def test_nothing_missing_costs_the_index() -> None:
    situation = Situation(
        image=_image(), index=_index(100), right=range(50), seeded={identity(n) for n in range(50, 100)}
    )
    plan = plan_without_tables(situation)
    assert plan is not None
    assert (plan.way, plan.download_bytes, plan.requests, plan.ranges) == (Way.CHUNKS, 4000, 1, ())


def test_chunks_of_zeros_are_never_fetched() -> None:
    zero = chunk_id(bytes(CHUNK_SIZE_MAX))
    index = Index([Chunk(0, CHUNK_SIZE_MAX, zero), Chunk(CHUNK_SIZE_MAX, 60_000, identity(1))])
    plan = choose_plan(Situation(image=_image(), index=index), _TABLES)
    assert [frame.chunk_id for piece in plan.ranges for frame in piece.frames] == [identity(1)]


def test_a_chunk_that_no_pack_has_is_named() -> None:
    with pytest.raises(IncompletePacksError) as caught:
        choose_plan(Situation(image=_image(), index=_index(101)), _TABLES)
    assert caught.value.identity == identity(100)


@given(
    delta=st.integers(1, 5_000_000),
    right=st.sets(st.integers(0, 99)),
    seeded=st.sets(st.integers(0, 99)),
)
def test_no_plan_costs_more_than_the_full_form_and_a_hundredth(delta: int, right: set[int], seeded: set[int]) -> None:
    situation = Situation(
        image=_image(deltas=(_delta(delta),)),
        index=_index(100),
        source_index=_SOURCE,
        right=right,
        seeded={identity(number) for number in seeded},
    )
    full = full_form_bytes(situation.image, situation.index, _TABLES)
    for plan in (plan_without_tables(situation), choose_plan(situation, _TABLES)):
        if plan is not None:
            assert plan.download_bytes <= 1.01 * full
            assert plan.reasons


def test_files_are_packed_again_only_in_the_room_that_a_chain_leaves() -> None:
    packing = RebuildRef(recoders=("gzip-9",), size=100, instead_size=5_000, work_size=600_000, memory=1)
    first = msgspec.structs.replace(_delta(10_000), written_size=700_000)
    last = msgspec.structs.replace(_delta(20_000, source="6" * 64), rebuilds=(packing,))

    def planned(work_bytes: int) -> Plan:
        limits = Limits(recoders=frozenset(packing.recoders), work_bytes=work_bytes)
        situation = Situation(
            image=_image(), index=_index(100), source_index=_SOURCE, chains=[(first, last)], limits=limits
        )
        plan = plan_without_tables(situation)
        assert plan is not None
        assert plan.way is Way.CHAIN
        assert not plan.spool_in_slot
        return plan

    assert planned(1_300_000).rebuilt == {0}
    # Either has room, and both have not: the agent would refuse the update for want of space.
    tight = planned(1_200_000)
    assert tight.rebuilt == frozenset()
    assert tight.scratch_bytes - tight.spool_bytes < 600_000
