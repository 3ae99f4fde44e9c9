"""Changes of a policy: each gives the next revision, and nonsense is refused in a sentence."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.policy.building import NOW, POLICIES, device, entry, policy, recall, release, situations

from overhaul.errors import InputError
from overhaul.policy import edit
from overhaul.policy.document import Floor, Policy, PolicyEntry, decode_policy, encode_policy
from overhaul.policy.facts import DeviceFacts
from overhaul.policy.hardware import Absent, HardwareRules
from overhaul.policy.rollout import Rollout
from overhaul.policy.selection import Offer, decide
from overhaul.release.names import UnusableNameError

LATER = NOW + 60
FLOOR = Floor(variant="lite", arch="amd64")
CHECKPOINT = entry("2.0", checkpoint=True)


def _versions(document: Policy) -> list[str]:
    return [each.version for each in document.entries]


def test_the_first_policy_of_a_channel_is_empty() -> None:
    first = edit.new_policy(product="weather", channel="beta", now=NOW)

    assert (first.revision, first.signed_at, first.entries) == (1, NOW, ())
    with pytest.raises(UnusableNameError, match="channel 'Beta'"):
        edit.new_policy(product="weather", channel="Beta", now=NOW)


def test_a_put_entry_stands_in_its_place_at_the_next_revision() -> None:
    after = edit.put_entry(policy(entry("1.0"), entry("10.0")), entry("9.0"), now=LATER)

    assert _versions(after) == ["1.0", "9.0", "10.0"]
    assert (after.revision, after.signed_at) == (2, LATER)


@pytest.mark.parametrize(
    "again",
    [
        lambda held: edit.put_entry(held, entry("1.0"), now=LATER),
        lambda held: edit.replace_entry(held, entry("1.0"), now=LATER),
        lambda held: edit.set_rollout(held, release("1.0"), None, now=LATER),
        lambda held: edit.set_floor(held, FLOOR, now=LATER),
        lambda held: edit.promote(policy(entry("1.0"), channel="beta"), held, release("1.0"), now=LATER),
    ],
)
def test_a_change_that_alters_nothing_gives_no_new_revision(again: Callable[[Policy], Policy]) -> None:
    held = policy(entry("1.0"))

    assert again(held) is held


def test_a_release_is_put_once() -> None:
    held = policy(entry("1.0"))

    for twin in (entry("1.0", urgent=True), entry("1.0.0")):
        with pytest.raises(edit.DuplicateReleaseError, match=r"already holds 1\.0 \(1\)"):
            edit.put_entry(held, twin, now=LATER)


def test_an_entry_that_could_never_be_installed_is_refused() -> None:
    held = policy(entry("2.0"), floors=(msgspec.structs.replace(FLOOR, minimum="2.0"),))

    with pytest.raises(edit.UnreachableReleaseError, match=r"below 2\.0, the lowest version"):
        edit.put_entry(held, entry("1.0"), now=LATER)
    with pytest.raises(edit.UnreachableReleaseError, match=r"cannot require version 3\.1"):
        edit.put_entry(held, entry("3.0", requires="3.1"), now=LATER)
    with pytest.raises(UnusableNameError, match="version '1/0'"):
        edit.put_entry(held, entry("1/0"), now=LATER)


def test_an_entry_is_replaced_as_a_whole() -> None:
    after = edit.replace_entry(policy(entry("1.0")), entry("1.0", urgent=True, notes_url="https://x"), now=LATER)

    assert after.entries == (entry("1.0", urgent=True, notes_url="https://x"),)
    assert after.revision == 2


def test_replacing_neither_takes_back_a_recall_nor_removes_a_needed_checkpoint() -> None:
    held = policy(entry("1.0", recall=recall()), CHECKPOINT)

    with pytest.raises(edit.RecalledReleaseError, match="does not come back"):
        edit.replace_entry(held, entry("1.0"), now=LATER)
    with pytest.raises(edit.NeededCheckpointError, match=r"jump over checkpoint .* 2\.0 \(1\)"):
        edit.replace_entry(held, entry("2.0"), now=LATER)
    with pytest.raises(InputError, match="recall it by itself"):
        edit.replace_entry(held, msgspec.structs.replace(CHECKPOINT, recall=recall()), now=LATER)


@pytest.mark.parametrize(
    "change",
    [
        lambda held: edit.replace_entry(held, entry("7.0"), now=LATER),
        lambda held: edit.drop_entry(held, release("7.0"), now=LATER),
        lambda held: edit.set_rollout(held, release("7.0"), None, now=LATER),
        lambda held: edit.recall(held, release("7.0"), recall(), now=LATER),
        lambda held: edit.promote(held, policy(channel="beta"), release("7.0"), now=LATER),
    ],
)
def test_an_unknown_release_is_named(change: Callable[[Policy], Policy]) -> None:
    with pytest.raises(edit.UnknownReleaseError, match=r"stable does not hold weather/lite/amd64 7\.0 \(1\)"):
        change(policy(entry("1.0")))


def test_the_release_of_another_product_is_unknown() -> None:
    other = msgspec.structs.replace(release("1.0"), product="climate")

    with pytest.raises(edit.UnknownReleaseError):
        edit.drop_entry(policy(entry("1.0")), other, now=LATER)


def test_a_dropped_release_is_gone() -> None:
    assert _versions(edit.drop_entry(policy(entry("1.0"), entry("2.0")), release("1.0"), now=LATER)) == ["2.0"]


def test_a_checkpoint_is_dropped_only_when_nobody_supported_is_below_it() -> None:
    held = policy(CHECKPOINT, entry("3.0"))
    at_it, above = (msgspec.structs.replace(FLOOR, support=version) for version in ("2.0", "2.1"))

    for needed in (held, edit.set_floor(held, at_it, now=NOW)):
        with pytest.raises(edit.NeededCheckpointError):
            edit.drop_entry(needed, release("2.0"), now=LATER)
    assert _versions(edit.drop_entry(edit.set_floor(held, above, now=NOW), release("2.0"), now=LATER)) == ["3.0"]


def test_a_rollout_is_set_and_not_for_a_recalled_release() -> None:
    held = policy(entry("1.0"), entry("2.0", recall=recall("it is hot.")))

    after = edit.set_rollout(held, release("1.0"), Rollout(percent=5), now=LATER)

    assert after.entries[0].rollout == Rollout(percent=5)
    with pytest.raises(edit.RecalledReleaseError, match=r"recalled \(it is hot\) and does not come back"):
        edit.set_rollout(held, release("2.0"), None, now=LATER)


def test_a_recall_keeps_the_time_of_the_first() -> None:
    once = edit.recall(policy(entry("1.0")), release("1.0"), recall(), now=LATER)

    twice = edit.recall(once, release("1.0"), recall("worse than thought", since=LATER, allow_lower=True), now=LATER)

    assert twice.entries[0].recall == recall("worse than thought", since=NOW, allow_lower=True)
    assert (once.revision, twice.revision) == (2, 3)


def test_a_recall_has_a_reason() -> None:
    with pytest.raises(InputError, match="needs a reason"):
        edit.recall(policy(entry("1.0")), release("1.0"), recall(" "), now=LATER)


def test_only_another_live_checkpoint_stands_in_for_a_recalled_one() -> None:
    gone = entry("2.2", checkpoint=True, recall=recall())
    held = policy(entry("1.0"), CHECKPOINT, entry("2.1", checkpoint=True), gone)

    for version in ("1.0", "2.0", "2.2", "9.9"):
        with pytest.raises(edit.UnusableReplacementError, match="cannot stand in for checkpoint"):
            edit.recall(held, release("2.0"), recall(replaced_by=(version, "1")), now=LATER)
    with pytest.raises(edit.UnusableReplacementError, match="is no checkpoint"):
        edit.recall(held, release("1.0"), recall(replaced_by=("2.1", "1")), now=LATER)
    assert edit.recall(held, release("2.0"), recall(replaced_by=("2.1", "1")), now=LATER).entries[1].recall is not None


def test_floors_are_set_one_for_each_variant_and_arch_and_removed_when_empty() -> None:
    held = policy(entry("1.0"), entry("2.0"), entry("2.0", variant="full"))
    full = Floor(variant="full", arch="amd64", minimum="2.0")

    both = edit.set_floor(edit.set_floor(held, msgspec.structs.replace(FLOOR, support="1.0"), now=NOW), full, now=NOW)

    assert both.floors == (full, msgspec.structs.replace(FLOOR, support="1.0"))
    assert edit.set_floor(both, FLOOR, now=LATER).floors == (full,)


def test_a_floor_above_everything_that_can_be_offered_is_refused() -> None:
    held = policy(entry("1.0"), entry("2.0", recall=recall()))

    for floor in (Floor(variant="lite", arch="amd64", minimum="1.1"), Floor(variant="lite", arch="amd64", support="2")):
        with pytest.raises(edit.UnreachableReleaseError, match=r"the newest is 1\.0 \(1\)"):
            edit.set_floor(held, floor, now=LATER)
    with pytest.raises(edit.UnreachableReleaseError, match="the newest is none"):
        edit.set_floor(held, Floor(variant="other", arch="amd64", minimum="1.0"), now=LATER)


def test_a_release_is_promoted_with_its_rules_and_a_rollout_of_its_own() -> None:
    source = policy(
        entry("2.0", rollout=Rollout(percent=100, seed="x"), checkpoint=True, requires="1.0"), channel="beta"
    )

    after = edit.promote(source, policy(entry("1.0")), release("2.0"), rollout=Rollout(percent=10), now=LATER)

    assert after.channel == "stable"
    assert after.entries[1] == entry("2.0", rollout=Rollout(percent=10), checkpoint=True, requires="1.0")


def test_a_recalled_release_is_not_promoted() -> None:
    with pytest.raises(edit.RecalledReleaseError):
        edit.promote(policy(entry("2.0", recall=recall()), channel="beta"), policy(), release("2.0"), now=LATER)


def test_a_release_is_promoted_once() -> None:
    source = policy(entry("2.0"), channel="beta")

    with pytest.raises(edit.DuplicateReleaseError):
        edit.promote(source, policy(entry("2.0", urgent=True)), release("2.0"), now=LATER)


@pytest.mark.parametrize("changes", [{"channel": "stable"}, {"channel": "beta", "product": "climate"}])
def test_a_release_is_promoted_between_two_channels_of_one_product(changes: dict[str, str]) -> None:
    with pytest.raises(InputError, match="between two channels of one product"):
        edit.promote(policy(entry("2.0"), **changes), policy(), release("2.0"), now=LATER)


def test_nothing_is_promoted_past_a_checkpoint_that_stays_behind() -> None:
    source = policy(CHECKPOINT, entry("3.0"), channel="beta")
    target = policy(entry("1.0"))

    with pytest.raises(edit.NeededCheckpointError, match="promote it first"):
        edit.promote(source, target, release("3.0"), now=LATER)

    with_it = edit.promote(source, target, release("2.0"), now=LATER)
    assert _versions(edit.promote(source, with_it, release("3.0"), now=LATER)) == ["1.0", "2.0", "3.0"]


def test_a_replacement_is_promoted_in_place_of_the_recalled_checkpoint() -> None:
    retired = msgspec.structs.replace(CHECKPOINT, recall=recall(replaced_by=("2.1", "1")))
    source = policy(retired, entry("2.0.5"), entry("2.1", checkpoint=True), entry("3.0"), channel="beta")

    with pytest.raises(edit.NeededCheckpointError):
        edit.promote(source, policy(), release("3.0"), now=LATER)
    with_it = edit.promote(source, policy(), release("2.1"), now=LATER)
    assert _versions(edit.promote(source, with_it, release("3.0"), now=LATER)) == ["2.1", "3.0"]
    with pytest.raises(edit.NeededCheckpointError):
        edit.promote(source, with_it, release("2.0.5"), now=LATER)


EDITS: list[Callable[[Policy, PolicyEntry], Policy]] = [
    lambda held, each: edit.put_entry(held, msgspec.structs.replace(each, build_id="77"), now=LATER),
    lambda held, each: edit.drop_entry(held, each.release_id("weather"), now=LATER),
    lambda held, each: edit.set_rollout(held, each.release_id("weather"), Rollout(percent=33), now=LATER),
    lambda held, each: edit.recall(held, each.release_id("weather"), recall("again"), now=LATER),
    lambda held, each: edit.set_floor(held, msgspec.structs.replace(FLOOR, minimum=each.version), now=LATER),
]


@given(POLICIES, st.lists(st.tuples(st.sampled_from(EDITS), st.integers(0, 7)), max_size=6))
def test_whatever_is_done_to_a_policy_it_stays_one_that_devices_read(
    held: Policy, acts: list[tuple[Callable[[Policy, PolicyEntry], Policy], int]]
) -> None:
    for act, place in acts:
        if not held.entries:
            return
        try:
            after = act(held, held.entries[place % len(held.entries)])
        except InputError:
            continue
        assert after is held or after.revision == held.revision + 1
        assert decode_policy(encode_policy(after)) == after
        held = after


def test_a_recall_takes_the_offer_away_and_a_promotion_makes_one() -> None:
    beta = policy(entry("2.0"), channel="beta")
    stable = edit.promote(beta, policy(), release("2.0"), now=LATER)

    assert isinstance(decide(stable, device("1.0"), LATER), Offer)
    assert not isinstance(decide(edit.recall(stable, release("2.0"), recall(), now=LATER), device("1.0"), LATER), Offer)


RELEASES = [entry(f"1.{number}") for number in range(10)]


def test_old_releases_of_which_every_device_has_a_better_one_are_left_out() -> None:
    kept = edit.keep_newest(policy(*RELEASES), release("1.9"), count=4, now=LATER)

    assert _versions(kept) == ["1.6", "1.7", "1.8", "1.9"]
    assert (kept.revision, kept.signed_at) == (2, LATER)
    assert edit.keep_newest(kept, release("1.9"), count=4, now=LATER) is kept


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout": Rollout(percent=50)},
        {"hardware": HardwareRules(allow=(Absent(fact="board"),))},
        {"recall": recall()},
    ],
)
def test_what_lies_above_the_newest_release_that_is_open_to_all_stays(changes: dict[str, object]) -> None:
    narrow = [msgspec.structs.replace(each, **changes) for each in RELEASES[3:]]
    kept = edit.keep_newest(policy(*RELEASES[:3], *narrow), release("1.9"), count=1, now=LATER)

    assert _versions(kept) == [f"1.{number}" for number in range(2, 10)]


def test_checkpoints_recalled_releases_and_the_one_just_published_stay() -> None:
    entries = [
        entry("1.0", checkpoint=True),
        entry("1.1", recall=recall()),
        entry("1.2"),
        entry("1.3"),
        *RELEASES[4:],
        entry("1.0", variant="full"),
    ]
    kept = edit.keep_newest(policy(*entries), release("1.3"), count=2, now=LATER)

    assert sorted(each.version for each in kept.entries if each.variant == "lite") == [
        "1.0",
        "1.1",
        "1.3",
        "1.8",
        "1.9",
    ]
    assert any(each.variant == "full" for each in kept.entries)


def test_where_a_release_requires_a_version_nothing_is_left_out() -> None:
    whole = policy(*RELEASES[:9], entry("1.9", requires="1.5"))

    assert edit.keep_newest(whole, release("1.9"), count=1, now=LATER) is whole


@given(situations(), st.integers(1, 3))
def test_no_device_loses_its_way_by_what_is_left_out(situation: tuple[Policy, DeviceFacts], count: int) -> None:
    whole, facts = situation
    newest = whole.entries_for(variant="lite", arch="amd64")
    if not newest or facts.refused:
        return
    kept = edit.keep_newest(whole, newest[0].release_id("weather"), count=count, now=NOW)
    before, after = decide(whole, facts, NOW), decide(kept, facts, NOW)

    if isinstance(before, Offer) and not before.goes_back:
        assert isinstance(after, Offer)
        assert after.entry == before.entry
    else:
        assert not isinstance(after, Offer) or after.goes_back
