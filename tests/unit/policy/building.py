"""Policies, entries and devices with good defaults, for tests; and strategies for whole situations."""

from typing import Any

import msgspec
from hypothesis import strategies as st

from overhaul.policy.document import Floor, Policy, PolicyEntry, Recall
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.hardware import (
    Absent,
    AllOf,
    AnyOf,
    Equals,
    Glob,
    HardwareRules,
    Not,
    NumberRange,
    OneOf,
    Predicate,
    Present,
    VersionRange,
)
from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.release.record import ReleaseId
from overhaul.release.versions import ReleaseOrder, release_order_key

NOW = 1_700_000_000


def entry(version: str, build_id: str = "1", **changes: Any) -> PolicyEntry:
    """Return an entry of weather's lite/amd64, open to everyone."""
    plain = PolicyEntry(variant="lite", arch="amd64", version=version, build_id=build_id)
    return msgspec.structs.replace(plain, **changes)


def policy(*entries: PolicyEntry, **changes: Any) -> Policy:
    """Return revision 1 of weather's stable channel."""
    plain = Policy(product="weather", channel="stable", revision=1, signed_at=NOW, entries=entries)
    return msgspec.structs.replace(plain, **changes)


def device(version: str, build_id: str = "1", **changes: Any) -> DeviceFacts:
    """Return the facts of a device that runs this release."""
    plain = DeviceFacts(
        product="weather",
        variant="lite",
        arch="amd64",
        channel="stable",
        version=version,
        build_id=build_id,
        rollout_id="device-1",
    )
    return msgspec.structs.replace(plain, **changes)


def release(version: str, build_id: str = "1") -> ReleaseId:
    """Return what names the release of weather's lite/amd64."""
    return ReleaseId(product="weather", variant="lite", arch="amd64", version=version, build_id=build_id)


def recall(reason: str = "it does not boot", **changes: Any) -> Recall:
    """Return a recall."""
    return msgspec.structs.replace(Recall(reason=reason, since=NOW), **changes)


VERSIONS = st.sampled_from(["snapshot", "0.9", "1.0-rc1", "1.0", "1.1", "2.0", "2.1-beta", "2.1", "3.0", "20240501"])
BUILD_IDS = st.sampled_from(["1", "2", "20240501.3"])
PLACES = st.tuples(VERSIONS, BUILD_IDS)
FACTS = st.sampled_from(["board", "firmware", "memory_mb"])
FACT_VALUES = st.sampled_from(["rpi4", "rpi5", "1.2", "2.0-rc1", "512", "2048.5", "", "none"])
HARDWARE = st.dictionaries(FACTS, FACT_VALUES)
PERCENTS = st.one_of(st.sampled_from([0.0, 100.0]), st.floats(0, 100))

_LEAVES = st.one_of(
    st.builds(Equals, fact=FACTS, value=FACT_VALUES),
    st.builds(OneOf, fact=FACTS, values=st.lists(FACT_VALUES, min_size=1, max_size=3).map(tuple)),
    st.builds(Glob, fact=FACTS, pattern=st.sampled_from(["*", "rpi?", "[12].*"])),
    st.builds(VersionRange, fact=FACTS, at_least=FACT_VALUES, below=st.none() | FACT_VALUES),
    st.builds(NumberRange, fact=FACTS, at_least=st.integers(0, 4096), at_most=st.none() | st.floats(0, 4096)),
    st.builds(Present, fact=FACTS),
    st.builds(Absent, fact=FACTS),
)


def _compose(parts: st.SearchStrategy[Predicate]) -> st.SearchStrategy[Predicate]:
    several = st.lists(parts, min_size=1, max_size=3).map(tuple)
    return st.one_of(st.builds(AllOf, of=several), st.builds(AnyOf, of=several), st.builds(Not, of=parts))


PREDICATES: st.SearchStrategy[Predicate] = st.recursive(_LEAVES, _compose, max_leaves=5)
RULES = st.builds(
    HardwareRules,
    allow=st.lists(PREDICATES, max_size=2).map(tuple),
    deny=st.lists(PREDICATES, max_size=2).map(tuple),
)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollout:
    """Draw a rollout whose times and percentages rise, around `NOW`."""
    percents = sorted(draw(st.lists(PERCENTS, min_size=1, max_size=4)))
    length = len(percents) - 1
    times = draw(st.lists(st.integers(NOW - 9, NOW + 9), min_size=length, max_size=length, unique=True).map(sorted))
    steps = tuple(RolloutStep(since=at, percent=percent) for at, percent in zip(times, percents[1:], strict=True))
    return Rollout(percent=percents[0], steps=steps, seed=draw(st.sampled_from(["", "shared"])))


def _place_of(drawn: tuple[str, tuple[str, str]]) -> tuple[str, ReleaseOrder]:
    return drawn[0], release_order_key(*drawn[1])


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Draw a policy in which anything may be recalled, replaced, a checkpoint, restricted, or for other devices."""
    places = draw(
        st.lists(
            st.tuples(st.sampled_from(["lite", "lite", "lite", "full"]), PLACES),
            max_size=8,
            unique_by=_place_of,
        )
    )
    entries = [
        entry(
            *place,
            variant=variant,
            checkpoint=draw(st.sampled_from([False, False, True])),
            rollout=draw(st.none() | rollouts()),
            hardware=draw(st.none() | st.none() | RULES),
            requires=draw(st.none() | st.none() | VERSIONS),
            urgent=draw(st.booleans()),
            recall=draw(
                st.none()
                | st.none()
                | st.builds(
                    recall,
                    allow_lower=st.booleans(),
                    replaced_by=st.none() | st.sampled_from([other for _variant, other in places]),
                )
            ),
        )
        for variant, place in places
    ]
    floor = Floor(variant="lite", arch="amd64", minimum=draw(st.none() | VERSIONS), support=draw(st.none() | VERSIONS))
    return policy(*entries, floors=(floor,))


@st.composite
def devices(draw: st.DrawFn) -> DeviceFacts:
    """Draw a device of weather's lite/amd64."""
    version, build_id = draw(PLACES)
    return device(
        version,
        build_id,
        hardware=draw(HARDWARE),
        rollout_id=draw(st.text(min_size=1, max_size=8)),
        refused=tuple(draw(st.lists(PLACES, max_size=2))),
    )
