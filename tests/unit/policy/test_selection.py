"""The decision of one device: what it is offered, why it waits, and that every answer says why."""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.policy.building import NOW, device, entry, policy, recall, release, situations

from overhaul.policy.document import Floor, Policy, PolicyEntry
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.hardware import Equals, HardwareRules
from overhaul.policy.rollout import Rollout, RolloutStep, bucket
from overhaul.policy.selection import Cause, Hold, Offer, UpToDate, decide, rollout_seed
from overhaul.release.versions import Version, release_order_key

RPI4 = HardwareRules(allow=(Equals(fact="board", value="rpi4"),))
NOBODY = Rollout(percent=0)


@dataclass(frozen=True)
class Case:
    """A situation and its answer: the offered version, or the kind of answer; and a cause named for a version."""

    about: str
    entries: tuple[PolicyEntry, ...]
    device: DeviceFacts
    answer: str | type[Hold | UpToDate]
    because: tuple[str, Cause] | None = None
    minimum: str | None = None


CASES = [
    Case("the newest release is offered", (entry("1.0"), entry("1.1"), entry("2.0")), device("1.0"), "2.0"),
    Case("what lies between is superseded", (entry("1.1"), entry("2.0")), device("1.0"), "2.0",
         ("1.1", Cause.SUPERSEDED)),
    Case("a later build of the same version is newer", (entry("1.0", "2"),), device("1.0", "1"), "1.0"),
    Case("running the newest is up to date", (entry("1.0"), entry("2.0")), device("2.0"), UpToDate,
         ("2.0", Cause.RUNNING)),
    Case("older releases are not offered", (entry("1.0"),), device("2.0"), UpToDate, ("1.0", Cause.NOT_NEWER)),
    Case("a release under another spelling is the same", (entry("2.0.0"),), device("2"), UpToDate,
         ("2.0.0", Cause.RUNNING)),
    Case("a channel without releases for the device holds it", (entry("2.0", variant="full"),), device("1.0"), Hold),
    Case("another architecture is another device", (entry("2.0", arch="arm64"),), device("1.0"), Hold),
    Case("a recalled release is passed over", (entry("1.1"), entry("2.0", recall=recall())), device("1.0"), "1.1",
         ("2.0", Cause.RECALLED)),
    Case("nothing but recalled releases is up to date", (entry("2.0", recall=recall()),), device("1.0"), UpToDate),
    Case("a device on a recalled release moves forward", (entry("1.1", recall=recall()), entry("1.2")),
         device("1.1"), "1.2"),
    Case("a recall does not lead back by itself", (entry("1.0"), entry("1.1", recall=recall())), device("1.1"), Hold,
         ("1.0", Cause.NOT_NEWER)),
    Case("a recall leads back when it allows to", (entry("0.9"), entry("1.0"), entry("1.1", recall=recall(
         allow_lower=True))), device("1.1"), "1.0"),
    Case("forward is better than back", (entry("1.0"), entry("1.1", recall=recall(allow_lower=True)), entry("1.2")),
         device("1.1"), "1.2"),
    Case("the recall of another release does not lead back", (entry("1.0"), entry("1.1", recall=recall(
         allow_lower=True))), device("1.2"), UpToDate),
    Case("nobody goes back below the minimum", (entry("1.0"), entry("1.1", recall=recall(allow_lower=True))),
         device("1.1"), Hold, ("1.0", Cause.BELOW_FLOOR), minimum="1.1"),
    Case("nor below the highest minimum the device was told", (entry("1.0"), entry("1.1", recall=recall(
         allow_lower=True))), device("1.1", minimum="1.1"), Hold, ("1.0", Cause.BELOW_FLOOR), minimum="1.0"),
    Case("the minimum of the policy counts where it is higher", (entry("1.0"), entry("1.1", recall=recall(
         allow_lower=True))), device("1.1", minimum="1.0"), Hold, ("1.0", Cause.BELOW_FLOOR), minimum="1.1"),
    Case("the minimum counts versions and not builds", (entry("1.1", "0.5"),), device("1.0"), "1.1", minimum="1.1"),
    Case("a device below the minimum moves above it", (entry("1.0"), entry("2.0")), device("0.9"), "2.0",
         ("1.0", Cause.BELOW_FLOOR), minimum="2.0"),
    Case("a rollout to nobody holds", (entry("2.0", rollout=NOBODY),), device("1.0"), Hold, ("2.0", Cause.ROLLOUT)),
    Case("a closed rollout leaves the older open one", (entry("1.1"), entry("2.0", rollout=NOBODY)), device("1.0"),
         "1.1", ("2.0", Cause.ROLLOUT)),
    Case("a rollout to all admits everyone", (entry("2.0", rollout=Rollout(percent=100)),), device("1.0"), "2.0"),
    Case("steps of a rollout open by the clock", (entry("2.0", rollout=Rollout(percent=0, steps=(
         RolloutStep(since=NOW, percent=100),))),), device("1.0"), "2.0"),
    Case("hardware that fits", (entry("2.0", hardware=RPI4),), device("1.0", hardware={"board": "rpi4"}), "2.0"),
    Case("a release for other hardware does not count", (entry("2.0", hardware=RPI4),),
         device("1.0", hardware={"board": "rpi5"}), UpToDate, ("2.0", Cause.HARDWARE)),
    Case("unknown hardware waits", (entry("2.0", hardware=RPI4),), device("1.0"), Hold,
         ("2.0", Cause.HARDWARE_UNKNOWN)),
    Case("what failed here is not taken again", (entry("1.1"), entry("2.0")), device("1.0", refused=(("2.0", "1"),)),
         "1.1", ("2.0", Cause.REFUSED)),
    Case("another build of what failed is taken", (entry("2.0", "2"),), device("1.0", refused=(("2.0", "1"),)), "2.0"),
    Case("a device that refused the newest waits", (entry("2.0"),), device("1.0", refused=(("2.0", "1"),)), Hold),
    Case("an origin that is too old waits", (entry("3.0", requires="2.0"),), device("1.0"), Hold,
         ("3.0", Cause.REQUIRES)),
    Case("an origin that is high enough goes on", (entry("3.0", requires="2.0"),), device("2.0"), "3.0"),
    Case("a checkpoint is not jumped over", (entry("1.1"), entry("2.0", checkpoint=True), entry("3.0")),
         device("1.0"), "2.0", ("3.0", Cause.CHECKPOINT)),
    Case("the lowest of two checkpoints comes first", (entry("2.0", checkpoint=True), entry("3.0", checkpoint=True),
         entry("4.0")), device("1.0"), "2.0", ("3.0", Cause.CHECKPOINT)),
    Case("a passed checkpoint is behind the device", (entry("2.0", checkpoint=True), entry("3.0")), device("2.5"),
         "3.0"),
    Case("a device on the checkpoint goes on", (entry("2.0", checkpoint=True), entry("3.0")), device("2.0"), "3.0"),
    Case("below a closed checkpoint the older one is open", (entry("1.1"), entry("2.0", checkpoint=True,
         rollout=NOBODY), entry("3.0")), device("1.0"), "1.1", ("3.0", Cause.CHECKPOINT)),
    Case("a closed checkpoint holds", (entry("2.0", checkpoint=True, rollout=NOBODY), entry("3.0")), device("1.0"),
         Hold, ("3.0", Cause.CHECKPOINT)),
    Case("a recalled checkpoint without a replacement holds", (entry("2.0", checkpoint=True, recall=recall()),
         entry("3.0")), device("1.0"), Hold, ("3.0", Cause.CHECKPOINT)),
    Case("a device on a recalled checkpoint has passed it", (entry("2.0", checkpoint=True, recall=recall()),
         entry("3.0")), device("2.0"), "3.0"),
    Case("a newer replacement stands in for a recalled checkpoint", (entry("2.0", checkpoint=True, recall=recall(
         replaced_by=("2.0.1", "1"))), entry("2.0.1", checkpoint=True), entry("3.0")), device("1.0"), "2.0.1"),
    Case("nothing between a checkpoint and its replacement is open below", (entry("2.0", checkpoint=True,
         recall=recall(replaced_by=("3.0", "1"))), entry("2.5"), entry("3.0", checkpoint=True, rollout=NOBODY)),
         device("1.0"), Hold, ("2.5", Cause.CHECKPOINT)),
    Case("an older replacement stands in for a recalled checkpoint", (entry("1.9", checkpoint=True), entry("2.0",
         checkpoint=True, recall=recall(replaced_by=("1.9", "1"))), entry("3.0")), device("1.9"), "3.0"),
    Case("below an older replacement it comes first", (entry("1.9", checkpoint=True), entry("2.0", checkpoint=True,
         recall=recall(replaced_by=("1.9", "1"))), entry("3.0")), device("1.0"), "1.9"),
    Case("a replacement that was replaced leads to the live one", (entry("2.0", checkpoint=True, recall=recall(
         replaced_by=("2.1", "1"))), entry("2.1", checkpoint=True, recall=recall(replaced_by=("2.2", "1"))),
         entry("2.2", checkpoint=True), entry("3.0")), device("1.0"), "2.2"),
    Case("who passed a replacement that was recalled has passed", (entry("2.0", checkpoint=True, recall=recall(
         replaced_by=("1.8", "1"))), entry("1.8", checkpoint=True, recall=recall()), entry("3.0")),
         device("1.8"), "3.0"),
    Case("an ordinary release cannot stand in", (entry("2.0", checkpoint=True, recall=recall(
         replaced_by=("2.1", "1"))), entry("2.1")), device("1.0"), Hold, ("2.1", Cause.CHECKPOINT)),
    Case("checkpoints that replace each other hold", (entry("2.0", checkpoint=True, recall=recall(
         replaced_by=("2.1", "1"))), entry("2.1", checkpoint=True, recall=recall(replaced_by=("2.0", "1"))),
         entry("3.0")), device("1.0"), Hold, ("3.0", Cause.CHECKPOINT)),
    Case("a replacement behind another checkpoint is not reached over it", (entry("2.0", checkpoint=True,
         recall=recall(replaced_by=("4.0", "1"))), entry("3.0", checkpoint=True), entry("4.0", checkpoint=True)),
         device("1.0"), Hold, ("4.0", Cause.CHECKPOINT)),
    Case("nobody goes back over a checkpoint", (entry("1.0"), entry("2.0", checkpoint=True), entry("3.0",
         recall=recall(allow_lower=True))), device("3.0"), "2.0", ("1.0", Cause.CHECKPOINT)),
    Case("a recalled checkpoint may itself be left downwards", (entry("1.0"), entry("2.0", checkpoint=True,
         recall=recall(allow_lower=True))), device("2.0"), "1.0"),
    Case("a versioned release takes a device off snapshots", (entry("snapshot", "20240601"), entry("0.1", "20240501")),
         device("snapshot", "20240601"), "0.1"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.about)
def test_the_rule(case: Case) -> None:
    floors = (Floor(variant="lite", arch="amd64", minimum=case.minimum),)

    decision = decide(policy(*case.entries, floors=floors), case.device, NOW)

    if isinstance(case.answer, str):
        assert isinstance(decision, Offer), decision
        assert decision.entry.version == case.answer
    else:
        assert type(decision) is case.answer, decision
    if case.because is not None:
        named = [(reason.release[0], reason.cause) for reason in decision.reasons if reason.release]
        assert case.because in named


@pytest.mark.parametrize("changes", [{"product": "other"}, {"channel": "beta"}])
def test_the_policy_of_another_product_or_channel_holds(changes: dict[str, str]) -> None:
    decision = decide(policy(entry("2.0")), device("1.0", **changes), NOW)

    assert isinstance(decision, Hold)
    assert [reason.cause for reason in decision.reasons] == [Cause.OTHER_POLICY]


def test_a_hold_behind_a_checkpoint_names_what_the_checkpoint_waits_for() -> None:
    checkpoint = entry("2.0", checkpoint=True, rollout=NOBODY)

    decision = decide(policy(checkpoint, entry("3.0"), entry("4.0", rollout=NOBODY)), device("1.0"), NOW)

    assert "2.0 (1) is open to 0 % of the devices" in decision.reasons[0].text
    assert decision.reasons[0].release == ("2.0", "1")


def test_a_hold_at_a_recalled_checkpoint_says_that_nothing_replaces_it() -> None:
    decision = decide(policy(entry("2.0", checkpoint=True, recall=recall()), entry("3.0")), device("1.0"), NOW)

    assert decision.reasons[0].text == (
        "The device must wait on 1.0 (1): 3.0 (1) lies behind checkpoint 2.0 (1), which was recalled and has no "
        "replacement."
    )


def test_a_closed_rollout_says_where_the_device_stands_and_when_its_turn_comes() -> None:
    rollout = Rollout(percent=0, steps=(RolloutStep(since=NOW + 60, percent=100),))

    decision = decide(policy(entry("2.0", rollout=rollout)), device("1.0"), NOW)

    place = bucket(rollout_id="device-1", seed=str(release("2.0")))
    told = f"open to 0 % of the devices; this one's place is {place * 100:.2f} %"
    assert decision.reasons[1].text.endswith(f"{told}; its turn comes at 2023-11-14 22:14:20 UTC.")


def test_every_cause_against_a_release_is_told_and_not_only_the_first() -> None:
    wrong = entry("3.0", rollout=NOBODY, hardware=RPI4, requires="2.5", recall=recall("it eats batteries."))

    decision = decide(policy(entry("2.0", checkpoint=True), wrong), device("1.0", refused=(("3.0", "1"),)), NOW)

    assert {reason.cause for reason in decision.reasons if reason.release == ("3.0", "1")} == {
        Cause.RECALLED, Cause.ROLLOUT, Cause.HARDWARE_UNKNOWN, Cause.REFUSED, Cause.REQUIRES, Cause.CHECKPOINT
    }  # fmt: skip
    assert "3.0 (1) was recalled: it eats batteries." in {reason.text for reason in decision.reasons}


def test_going_back_is_marked() -> None:
    back = decide(policy(entry("1.0"), entry("2.0", recall=recall(allow_lower=True))), device("2.0"), NOW)
    forth = decide(policy(entry("2.0")), device("1.0"), NOW)

    assert isinstance(back, Offer)
    assert back.goes_back
    assert isinstance(forth, Offer)
    assert not forth.goes_back


def test_a_decision_is_one_json_document() -> None:
    decision = decide(policy(entry("2.0")), device("1.0"), NOW)

    document = msgspec.json.decode(msgspec.json.encode(decision))

    assert document["decision"] == "offer"
    assert document["entry"]["version"] == "2.0"
    assert document["reasons"][0] == {
        "cause": "offered",
        "text": "The device may move from 1.0 (1) to 2.0 (1).",
        "release": ["2.0", "1"],
    }


def _chain_of(everything: Policy, facts: DeviceFacts) -> list[PolicyEntry]:
    return [each for each in everything.entries if (each.variant, each.arch) == (facts.variant, facts.arch)]


@given(situations())
@settings(max_examples=300)
def test_an_offer_breaks_no_rule(situation: tuple[Policy, DeviceFacts]) -> None:
    everything, facts = situation
    decision = decide(everything, facts, NOW)

    if not isinstance(decision, Offer):
        return
    offered = decision.entry
    running = release_order_key(facts.version, facts.build_id)
    same = _chain_of(everything, facts)
    assert offered in same
    assert offered.recall is None
    assert offered.order not in {release_order_key(*refused) for refused in facts.refused}
    minimum = everything.floors[0].minimum
    assert minimum is None or Version(offered.version) >= Version(minimum)
    assert offered.requires is None or Version(facts.version) >= Version(offered.requires)
    recalled = [each.recall for each in same if each.order == running]
    if recalled and recalled[0] and recalled[0].allow_lower:
        assert offered.order != running
        assert decision.goes_back == (offered.order < running)
    else:
        assert offered.order > running
        assert not decision.goes_back


@given(situations())
@settings(max_examples=300)
def test_no_offer_jumps_over_a_checkpoint_in_either_direction(situation: tuple[Policy, DeviceFacts]) -> None:
    everything, facts = situation
    decision = decide(everything, facts, NOW)

    if not isinstance(decision, Offer):
        return
    running, offered = release_order_key(facts.version, facts.build_id), decision.entry.order
    for each in _chain_of(everything, facts):
        if each.checkpoint and each.recall is None:
            assert not running < each.order < offered
            assert not offered < each.order <= running


@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_the_entries_means_nothing(situation: tuple[Policy, DeviceFacts], chance: Random) -> None:
    everything, facts = situation
    entries = list(everything.entries)
    chance.shuffle(entries)

    shuffled = msgspec.structs.replace(everything, entries=tuple(entries))

    assert decide(shuffled, facts, NOW) == decide(everything, facts, NOW)


@given(situations(), st.floats(0, 100))
@settings(max_examples=300)
def test_raising_a_percentage_never_takes_the_offer_away(situation: tuple[Policy, DeviceFacts], percent: float) -> None:
    everything, facts = situation
    before = decide(everything, facts, NOW)
    if not isinstance(before, Offer):
        return
    held = before.entry
    seed = rollout_seed(everything.product, held)
    now_percent = 100.0 if held.rollout is None else held.rollout.percent_at(NOW)
    raised = msgspec.structs.replace(held, rollout=Rollout(percent=max(percent, now_percent), seed=seed))
    entries = tuple(raised if each is held else each for each in everything.entries)

    after = decide(msgspec.structs.replace(everything, entries=entries), facts, NOW)

    assert isinstance(after, Offer)
    assert after.entry == raised


@given(situations())
@settings(max_examples=300)
def test_every_answer_names_every_release_of_the_variant_and_arch_newest_first(
    situation: tuple[Policy, DeviceFacts],
) -> None:
    everything, facts = situation
    decision = decide(everything, facts, NOW)

    assert decision.reasons[0].text
    chain = [reason.release for reason in decision.reasons[1:] if reason.release]
    assert set(chain) == {(each.version, each.build_id) for each in _chain_of(everything, facts)}
    assert all(release_order_key(*left) >= release_order_key(*right) for left, right in pairwise(chain))
    assert all(reason.text.endswith(".") for reason in decision.reasons)


@given(situations())
@settings(max_examples=300)
def test_a_device_is_up_to_date_only_when_nothing_newer_could_open(situation: tuple[Policy, DeviceFacts]) -> None:
    everything, facts = situation
    decision = decide(everything, facts, NOW)

    if not isinstance(decision, UpToDate):
        return
    running = release_order_key(facts.version, facts.build_id)
    closed = {reason.release for reason in decision.reasons if reason.cause in {Cause.RECALLED, Cause.HARDWARE}}
    for each in _chain_of(everything, facts):
        assert each.order != running or each.recall is None
        assert each.order <= running or (each.version, each.build_id) in closed


@given(situations())
def test_following_the_offers_of_a_channel_ends(situation: tuple[Policy, DeviceFacts]) -> None:
    """A device that installs every offer comes to rest: no two releases of a policy lead to each other."""
    everything, facts = situation
    for _step in range(len(everything.entries) + 1):
        decision = decide(everything, facts, NOW)
        if not isinstance(decision, Offer):
            return
        facts = msgspec.structs.replace(facts, version=decision.entry.version, build_id=decision.entry.build_id)
    pytest.fail("the offers of one policy lead in a circle")


def test_a_device_says_why_a_rollout_was_halted() -> None:
    halted = Rollout(percent=0, halted="6 of 86 updates failed")
    decision = decide(policy(entry("1.0"), entry("1.1", rollout=halted)), device("1.0"), NOW)

    assert isinstance(decision, Hold)
    assert decision.reasons[0].text.endswith("1.1 (1) was halted: 6 of 86 updates failed.")
