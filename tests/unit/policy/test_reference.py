"""What the reference of the policy says is what the code does: its examples are read, decided and compared."""

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from overhaul.cli.explain import lines
from overhaul.policy.document import PolicyEntry, decode_policy
from overhaul.policy.facts import decode_facts
from overhaul.policy.hardware import Predicate
from overhaul.policy.rollout import bucket
from overhaul.policy.selection import Cause, decide
from overhaul.release.versions import Version

REFERENCE = (Path(__file__).parents[3] / "docs" / "reference" / "policy.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ([^\n]+)\n(.*?)^```$", REFERENCE, flags=re.MULTILINE | re.DOTALL)


def _block(title: str) -> bytes:
    (found,) = [text for _language, name, text in BLOCKS if name == title]
    return str(found).encode()


DECISIONS = [(name, text) for _language, name, text in BLOCKS if name.startswith("decision")]


@pytest.mark.parametrize(("title", "told"), DECISIONS)
def test_the_worked_example_is_decided_as_told(title: str, told: str) -> None:
    words = title.split()
    policy, facts = decode_policy(_block("policy")), decode_facts(_block("device"))
    if len(words) > 3:
        facts = msgspec.structs.replace(facts, version=words[4], build_id=words[5])

    now = int(words[2])
    assert told.splitlines() == lines(policy, facts, decide(policy, facts, now), now=now)


def test_all_three_decisions_are_there() -> None:
    assert len(DECISIONS) == 3


def test_the_versions_stand_in_the_order_told() -> None:
    for older, newer in pairwise(_block("order").decode().split()):
        assert Version(older) < Version(newer), (older, newer)


def test_every_predicate_is_told() -> None:
    told = msgspec.json.decode(_block("predicates"), type=list[Predicate])

    assert {type(predicate) for predicate in told} == set(Predicate.__args__)


def test_every_cause_against_a_release_and_every_field_of_an_entry_is_told() -> None:
    answers = {Cause.OFFERED, Cause.UP_TO_DATE, Cause.HELD, Cause.SUPERSEDED, Cause.OTHER_DEVICES, Cause.OTHER_POLICY}
    words = set(re.findall(r"`([a-z0-9_]+)`", REFERENCE))

    assert {cause.value for cause in set(Cause) - answers} <= words
    assert set(PolicyEntry.__struct_fields__) <= words


def test_a_place_is_computed_as_told() -> None:
    """The formula of the page, written out by itself."""
    identity, seed = b"0b5c2f6e9d3a4c17", b"weather/lite/amd64 2.3 (20251220.1)"
    material = b"overhaul rollout 1" + len(identity).to_bytes(8, "big") + identity + len(seed).to_bytes(8, "big") + seed
    bits = bin(int(hashlib.sha256(material).hexdigest(), 16))[2:].zfill(256)[:53]

    assert bucket(rollout_id=identity.decode(), seed=seed.decode()) == int(bits, 2) / 2**53
