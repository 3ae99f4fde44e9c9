"""Acts as values: what they lead to is known before they are done, and every one has its command."""

import msgspec
import pytest

from overhaul.errors import InputError
from overhaul.policy.document import Policy, PolicyEntry
from overhaul.policy.edit import RecalledReleaseError, UnknownReleaseError
from overhaul.policy.rollout import Rollout, RolloutStep
from overhaul.server.operators.acts import Act, ActKind, UnusableActError, changed, parse_steps, preview

NOW = 1_800_000_000
ENTRY = PolicyEntry(variant="shop", arch="amd64", version="1.1", build_id="b2", rollout=Rollout(percent=5, seed="s"))
BETA = Policy(product="kiosk", channel="beta", revision=7, signed_at=NOW, entries=(ENTRY,))


def _act(kind: ActKind, **changes: object) -> Act:
    fields: dict[str, object] = {
        "kind": kind, "product": "kiosk", "variant": "shop", "arch": "amd64", "version": "1.1", "build_id": "b2",
        "channel": "beta", "revision": 7,
    }  # fmt: skip
    return msgspec.convert(fields | changes, Act)


@pytest.mark.parametrize(
    ("act", "words", "added", "command"),
    [
        (_act(ActKind.ROLLOUT, percent=25), "5 % → 25 %", 20, "channel rollout kiosk/shop/amd64/1.1/b2 25"),
        (_act(ActKind.ROLLOUT, percent=100), "5 % → open to all", 95, "channel rollout kiosk/shop/amd64/1.1/b2 all"),
        (_act(ActKind.ROLLOUT), "5 % → open to all", 95, "channel rollout kiosk/shop/amd64/1.1/b2 all"),
        (_act(ActKind.ROLLOUT, percent=1), "5 % → 1 %", 0, "channel rollout kiosk/shop/amd64/1.1/b2 1"),
        (_act(ActKind.PAUSE), "5 % → 0 %", 0, "channel rollout kiosk/shop/amd64/1.1/b2 0"),
        (
            _act(ActKind.RECALL, reason="it's bad", allow_lower=True),
            "5 % → recalled: it's bad",
            0,
            "release recall kiosk/shop/amd64/1.1/b2 --channel beta --reason 'it'\"'\"'s bad' --allow-lower",
        ),
        (
            _act(ActKind.PROMOTE, source="beta", channel="stable", percent=10, revision=0),
            "not in the channel → 10 %",
            10,
            "release promote kiosk/shop/amd64/1.1/b2 --from beta --to stable --rollout 10",
        ),
    ],
)
def test_what_an_act_changes_is_said_before_it_is_done(act: Act, words: str, added: float, command: str) -> None:
    shown = preview(act, {"beta": BETA}, now=NOW, repository="/srv/updates")
    assert shown.words == words
    assert shown.added_percent == added
    assert shown.revision == act.revision
    assert shown.changes
    assert shown.command.startswith(f"overhaul {command}")
    assert shown.command.endswith("--repository /srv/updates")


@pytest.mark.parametrize(
    ("rollout", "act", "warning"),
    [
        (
            Rollout(percent=0, halted="6 of 86 updates failed"),
            ActKind.PROMOTE,
            "was halted by what devices reported: 6",
        ),
        (
            Rollout(percent=0, halted="6 of 86 updates failed"),
            ActKind.ROLLOUT,
            "was halted by what devices reported: 6",
        ),
        (Rollout(percent=0, halted="6 of 86 updates failed"), ActKind.PAUSE, ""),
        (Rollout(percent=0), ActKind.PROMOTE, "In beta it is held at 0 %"),
        (Rollout(percent=0, steps=(RolloutStep(since=NOW, percent=1),)), ActKind.PROMOTE, ""),
        (Rollout(percent=0), ActKind.ROLLOUT, ""),
        (None, ActKind.PROMOTE, ""),
    ],
)
def test_whoever_opens_what_is_shut_is_told_why_it_is(rollout: Rollout | None, act: ActKind, warning: str) -> None:
    policy = msgspec.structs.replace(BETA, entries=(msgspec.structs.replace(ENTRY, rollout=rollout),))
    promotion = {"source": "beta", "channel": "stable", "revision": 0} if act is ActKind.PROMOTE else {}

    shown = preview(_act(act, percent=3, **promotion), {"beta": policy}, now=NOW, repository=".")

    assert warning in shown.warning
    assert bool(warning) == bool(shown.warning)


def test_the_devices_that_come_first_stay_the_same_ones() -> None:
    for act in (_act(ActKind.PAUSE), _act(ActKind.ROLLOUT, percent=50)):
        entry = changed(act, {"beta": BETA}, now=NOW).entry(act.release)
        assert entry is not None
        assert entry.rollout is not None
        assert entry.rollout.seed == "s"


def test_what_a_channel_does_not_allow_is_refused_before_it_is_done() -> None:
    gone = changed(_act(ActKind.RECALL, reason="it is bad"), {"beta": BETA}, now=NOW)
    with pytest.raises(RecalledReleaseError):
        preview(_act(ActKind.PAUSE), {"beta": gone}, now=NOW, repository=".")
    with pytest.raises(UnknownReleaseError):
        preview(_act(ActKind.PAUSE, version="9"), {"beta": BETA}, now=NOW, repository=".")
    with pytest.raises(UnknownReleaseError):
        preview(_act(ActKind.PROMOTE, source="dev", channel="stable"), {"beta": BETA}, now=NOW, repository=".")
    with pytest.raises(InputError):
        preview(_act(ActKind.RECALL), {"beta": BETA}, now=NOW, repository=".")


def test_doing_what_is_so_already_changes_nothing() -> None:
    assert not preview(_act(ActKind.ROLLOUT, percent=5), {"beta": BETA}, now=NOW, repository=".").changes


def test_steps_are_read_as_people_write_them() -> None:
    assert parse_steps("2027-01-15 08:00 10\n\n 2027-01-16T00:00:00+02:00=all \n2027-01-17 25%") == (
        RolloutStep(since=1_800_000_000, percent=10),
        RolloutStep(since=1_800_050_400, percent=100),
        RolloutStep(since=1_800_144_000, percent=25),
    )
    assert parse_steps("") == ()
    for line in ("soon 10", "2027-01-15", "2027-01-15 many", "2027-01-15 101", "2027-01-15 nan", "9999-99-99 5"):
        with pytest.raises(UnusableActError, match="is not a step"):
            parse_steps(line)


@pytest.mark.parametrize(
    "changes",
    [{"percent": 101}, {"percent": -1}, {"revision": -1}, {"product": "../x"}, {"reason": "x" * 501}],
)
def test_an_act_that_cannot_be_meant_is_none(changes: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        _act(ActKind.ROLLOUT, **changes)
