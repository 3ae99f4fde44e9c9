"""What a device remembers of the minimum versions it was told, and what makes it forget."""

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policy.building import VERSIONS, device, entry, policy

from overhaul.policy.document import Floor
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.floors import KnownFloor, highest_floor
from overhaul.release.versions import Version

KNOWN = KnownFloor(
    product="weather", channel="stable", variant="lite", arch="amd64", minimum="2.0", keyids=("one", "two")
)
DEVICE = device("1.0")
BETA = msgspec.structs.replace(KNOWN, channel="beta")


@dataclass(frozen=True)
class Case:
    """What was known, what a policy says now, and what is known then."""

    about: str
    known: KnownFloor | None
    told: str | None
    minimum: str | None
    keyids: tuple[str, ...] = ("one", "two")
    device: DeviceFacts = DEVICE


CASES = [
    Case("the first minimum is remembered", None, "1.5", "1.5"),
    Case("no minimum is none", None, None, None),
    Case("a higher one replaces it", KNOWN, "2.1", "2.1"),
    Case("a lower one does not", KNOWN, "1.9", "2.0"),
    Case("leaving it out does not", KNOWN, None, "2.0"),
    Case("a replaced key takes its minimum along", KNOWN, None, None, keyids=("one", "three")),
    Case("what the new key says counts at once", KNOWN, "1.9", "1.9", keyids=("three",)),
    Case("a key more changes nothing", KNOWN, None, "2.0", keyids=("one", "two", "three")),
    Case("another channel has a minimum of its own", BETA, "1.0", "1.0"),
    Case("another variant has a minimum of its own", KNOWN, None, None, device=device("1.0", variant="full")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_the_rule(case: Case) -> None:
    told = policy(entry("1.0"), floors=(Floor(variant="lite", arch="amd64", minimum=case.told),))

    known = highest_floor(case.known, told, case.device, keyids=case.keyids)

    assert (None if known is None else known.minimum) == case.minimum


def test_the_policy_of_another_channel_teaches_nothing() -> None:
    told = policy(entry("1.0"), channel="beta", floors=(Floor(variant="lite", arch="amd64", minimum="9.0"),))

    assert highest_floor(KNOWN, told, DEVICE, keyids=KNOWN.keyids) == KNOWN


@given(st.lists(st.one_of(st.none(), VERSIONS), min_size=1))
def test_while_the_keys_stay_the_highest_minimum_counts_in_whatever_order_it_came(minimums: list[str | None]) -> None:
    known: KnownFloor | None = None
    for minimum in minimums:
        told = policy(entry("1.0"), floors=(Floor(variant="lite", arch="amd64", minimum=minimum),))
        known = highest_floor(known, told, DEVICE, keyids=("one",))

    said = [Version(minimum) for minimum in minimums if minimum is not None]
    assert (None if known is None else Version(known.minimum)) == max(said, default=None)
