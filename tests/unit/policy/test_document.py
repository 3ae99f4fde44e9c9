"""The policy's JSON: one policy gives one document, and nothing but a sound policy is ever read."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policy.building import NOW, POLICIES, RULES, device, entry, policy, recall, rollouts, situations

from overhaul.errors import TrustError
from overhaul.policy.document import (
    MAX_POLICY_BYTES,
    Floor,
    Policy,
    UnreadablePolicyError,
    UnusablePolicyError,
    decode_policy,
    encode_policy,
    policy_target_path,
)
from overhaul.policy.facts import UnreadableFactsError, decode_facts, encode_facts
from overhaul.policy.hardware import HardwareRules, Not, Predicate, Present
from overhaul.policy.rollout import Rollout, RolloutStep

SAMPLE = policy(
    entry("1.0", checkpoint=True, notes_url="https://example.org/1.0"),
    entry("1.1", "20240501.3", recall=recall(allow_lower=True), urgent=True),
    entry("2.0", rollout=Rollout(percent=1, steps=(RolloutStep(since=NOW, percent=50),)), requires="1.0"),
    entry("2.1", hardware=HardwareRules(deny=(Not(of=Present(fact="tpm")),))),
    floors=(Floor(variant="lite", arch="amd64", support="1.0", minimum="1.0"),),
)

GOLDEN = b"""{
 "channel": "stable",
 "entries": [
  {
   "arch": "amd64",
   "build_id": "1",
   "checkpoint": true,
   "variant": "lite",
   "version": "1.0"
  },
  {
   "arch": "amd64",
   "build_id": "2",
   "rollout": {
    "percent": 2.5
   },
   "variant": "lite",
   "version": "2.0"
  }
 ],
 "floors": [],
 "format": 1,
 "product": "weather",
 "revision": 1,
 "signed_at": 1700000000
}
"""


def test_the_document_has_these_very_bytes() -> None:
    document = policy(entry("1.0", checkpoint=True), entry("2.0", "2", rollout=Rollout(percent=2.5)))

    assert encode_policy(document) == GOLDEN
    assert decode_policy(GOLDEN) == document


@given(POLICIES)
def test_a_policy_survives_its_document(document: Policy) -> None:
    assert decode_policy(encode_policy(document)) == document


@given(st.none() | RULES, st.none() | rollouts())
def test_every_rule_and_rollout_survives_and_gives_the_same_bytes_again(
    rules: HardwareRules | None, rollout: Rollout | None
) -> None:
    data = encode_policy(policy(entry("1.0", hardware=rules, rollout=rollout)))

    assert encode_policy(decode_policy(data)) == data
    assert decode_policy(data).entries[0].rollout == rollout


def test_a_whole_percentage_is_written_as_a_fraction_is() -> None:
    assert encode_policy(policy(entry("1.0", rollout=Rollout(percent=5)))) == encode_policy(
        policy(entry("1.0", rollout=Rollout(percent=5.0)))
    )


def test_a_truncated_policy_is_refused_at_every_length() -> None:
    data = encode_policy(SAMPLE)

    for length in range(len(data) - 2):
        with pytest.raises(UnreadablePolicyError):
            decode_policy(data[:length])


def test_a_flipped_bit_is_refused_or_read_as_another_sound_policy() -> None:
    data = encode_policy(SAMPLE)

    for place in range(len(data)):
        flipped = data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]
        try:
            other = decode_policy(flipped)
        except UnreadablePolicyError:
            continue
        assert decode_policy(encode_policy(other)) == other


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"format": 1', b'"format": 2'),
        (b'"revision": 1', b'"revision": 0'),
        (b'"percent": 2.5', b'"percent": 100.5'),
        (b'"product": "weather"', b'"product": "../x"'),
        (b'"version": "1.0"', b'"version": "1/0"'),
        (b'"version": "2.0"', b'"version": "1.0.0"'),
        (b'"signed_at": 1700000000', b'"signed_at": -1'),
        (b'"signed_at": 1700000000', b'"signed_at": 999999999999999'),
    ],
)
def test_a_policy_that_cannot_be_right_is_refused(old: bytes, new: bytes) -> None:
    damaged = GOLDEN.replace(old, new).replace(b'"build_id": "2"', b'"build_id": "1"')
    assert damaged != GOLDEN

    with pytest.raises(TrustError, match="The policy cannot be used"):
        decode_policy(damaged)


def test_the_format_is_told_before_anything_else_is_read() -> None:
    with pytest.raises(UnreadablePolicyError, match="its format is 7, and 1 is the one known here"):
        decode_policy(b'{"format": 7, "entries": "of another kind"}')


def test_an_unknown_field_is_passed_over() -> None:
    assert decode_policy(GOLDEN.replace(b'"format"', b'"motto": "slow is smooth", "format"')) == decode_policy(GOLDEN)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"null", b"[" * 100_000, b'{"format":1,"entries":[{"hardware":' + b'{"of":' * 100_000],
)
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadablePolicyError):
        decode_policy(data)


@given(st.binary(max_size=64))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with pytest.raises(UnreadablePolicyError):
        decode_policy(data)


def test_a_policy_beyond_the_bound_is_refused_before_it_is_read() -> None:
    with pytest.raises(UnreadablePolicyError, match="more than 4194304"):
        decode_policy(GOLDEN + b" " * MAX_POLICY_BYTES)


def test_a_policy_that_devices_would_refuse_is_not_written() -> None:
    with pytest.raises(UnusablePolicyError, match="cannot be written"):
        encode_policy(policy(entry("not a version")))
    with pytest.raises(UnusablePolicyError, match="more than 4194304"):
        encode_policy(policy(*(entry(str(number), notes_url="x" * 1024) for number in range(4096))))


def test_a_channel_holds_a_bounded_number_of_releases() -> None:
    with pytest.raises(UnusablePolicyError, match="4097 releases"):
        policy(*(entry(str(number)) for number in range(4097)))


def test_a_release_stands_in_a_policy_once_however_it_is_spelled() -> None:
    with pytest.raises(UnusablePolicyError, match=r"lite/amd64 1\.0\.0 \(01\) and 1\.0 \(1\) have the same place"):
        policy(entry("1.0", "1"), entry("1.0.0", "01"))


def test_a_variant_has_one_floor() -> None:
    with pytest.raises(UnusablePolicyError, match="two floors"):
        policy(floors=(Floor(variant="lite", arch="amd64"), Floor(variant="lite", arch="amd64", support="1")))


def test_entries_are_found_newest_first_and_floors_are_empty_when_not_set() -> None:
    document = policy(entry("1.0"), entry("10.0"), entry("9.0"), entry("11.0", variant="full"))

    found = document.entries_for(variant="lite", arch="amd64")
    assert [each.version for each in found] == ["10.0", "9.0", "1.0"]
    assert document.floor(variant="lite", arch="arm64") == Floor(variant="lite", arch="arm64")


def test_a_policy_has_its_target_path() -> None:
    assert policy_target_path("weather", "stable") == "weather/policy/stable.json"


@given(situations())
def test_facts_survive_their_document(situation: tuple[Policy, object]) -> None:
    facts = situation[1]

    assert decode_facts(msgspec.json.encode(facts)) == facts


def test_facts_that_cannot_be_read_say_where_an_example_is() -> None:
    assert decode_facts(encode_facts(device("1.0"))) == device("1.0")
    for data in (b"", b"{}", encode_facts(device("1.0", rollout_id=""))):
        with pytest.raises(UnreadableFactsError, match="overhaul explain --help"):
            decode_facts(data)


def test_a_predicate_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid value"):
        msgspec.json.decode(b'{"is": "phase_of_moon"}', type=Predicate)
