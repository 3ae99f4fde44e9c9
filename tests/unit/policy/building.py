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
from overhaul.release.versions import ReleaseOrder

NOW = 1_700_000_000


def entry(version: str, build_id: str = "1", **changes: Any) -> PolicyEntry:
    """Return an entry of weather's lite/amd64, open to everyone."""
    plain = PolicyEntry(variant="lite", arch="amd64", version=version, build_id=build_id)
    return msgspec.structs.replace(plain, **changes)


def policy(*entries: PolicyEntry, **changes: Any) -> Policy:
    """Return revision 1 of weather's stable channel."""
    plain = Policy(product="weather", channel="stable", revision=1, signed_at=NOW, entries=entries)
    return msgspec.structs.replace(plain, **changes)


def policy_of(entries: list[PolicyEntry], floor: Floor) -> Policy:
    """Return a policy with these entries and this floor."""
    return policy(*entries, floors=(floor,))


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


def _place_of(drawn: PolicyEntry) -> tuple[str, ReleaseOrder]:
    return drawn.variant, drawn.order


def _mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 2 * (1 + len(others)) + [*others])


_RPI4 = Equals(fact="board", value="rpi4")
_RECALLS = st.builds(recall, allow_lower=st.booleans(), replaced_by=st.none() | st.tuples(VERSIONS, st.just("1")))
_ENTRIES = st.builds(
    PolicyEntry,
    variant=_mostly("lite", "full"),
    arch=st.just("amd64"),
    version=VERSIONS,
    build_id=_mostly("1", "2"),
    checkpoint=_mostly(False, True),
    rollout=_mostly(
        None,
        Rollout(percent=0),
        Rollout(percent=50),
        Rollout(percent=10, seed="shared"),
        Rollout(percent=0, steps=(RolloutStep(since=NOW, percent=30), RolloutStep(since=NOW + 1, percent=100))),
    ),
    hardware=_mostly(None, HardwareRules(allow=(_RPI4,)), HardwareRules(deny=(_RPI4,))),
    requires=_mostly(None, "1.0", "2.1"),
    recall=st.one_of(st.none(), st.none(), st.none(), _RECALLS),
)


def _several(count: int) -> st.SearchStrategy[list[PolicyEntry]]:
    return st.lists(_ENTRIES, min_size=count, max_size=count, unique_by=_place_of)


#: Policies in which anything may be recalled, replaced, a checkpoint, restricted, or for other devices.
POLICIES: st.SearchStrategy[Policy] = st.builds(
    policy_of,
    st.integers(0, 8).flatmap(_several),
    st.builds(Floor, variant=st.just("lite"), arch=st.just("amd64"), minimum=_mostly(None, "1.0", "2.0")),
)


def _with_recalled(everything: Policy, running: tuple[str, str], way_out: Recall) -> Policy:
    """The same policy in which what the device runs is recalled."""
    entries = tuple(
        msgspec.structs.replace(each, recall=way_out) if (each.version, each.build_id) == running else each
        for each in everything.entries
    )
    return msgspec.structs.replace(everything, entries=entries)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Policy, DeviceFacts]:
    """Draw a policy and a device of lite/amd64 that often runs, and often refused, one of its releases."""
    everything = draw(POLICIES)
    places = [(each.version, each.build_id) for each in everything.entries]
    nearby = st.sampled_from([*places, *places, ("0.9", "0"), ("1.1", "3")])
    version, build_id = draw(nearby)
    if draw(st.sampled_from([False, False, False, True])):
        everything = _with_recalled(everything, (version, build_id), recall(allow_lower=draw(st.booleans())))
    facts = device(
        version,
        build_id,
        hardware=draw(st.sampled_from([{}, {"board": "rpi4"}, {"board": "rpi5"}])),
        rollout_id=draw(st.text(min_size=1, max_size=4)),
        refused=tuple(draw(st.lists(nearby, max_size=1))),
    )
    return everything, facts
