"""What people and programs are shown of a policy."""

import pytest

from overhaul.policy.document import Policy, PolicyEntry, Recall
from overhaul.policy.rollout import Rollout
from overhaul.server.catalogue import Catalogue
from overhaul.server.views import EntryState, channel_views

NOW = 1_800_000_000


def _shown(rollout: Rollout | None, recall: Recall | None = None) -> tuple[EntryState, float, str]:
    entry = PolicyEntry(variant="v", arch="amd64", version="1", build_id="b", rollout=rollout, recall=recall)
    policy = Policy(product="kiosk", channel="stable", revision=2, signed_at=NOW, entries=(entry,))
    (channel,) = channel_views(Catalogue(pointer_etag="", roles=(), releases=(), policies=(policy,)), now=NOW)
    (view,) = channel.entries
    return view.state, view.percent, view.halted


@pytest.mark.parametrize(
    ("rollout", "shown"),
    [
        (None, (EntryState.OPEN, 100.0, "")),
        (Rollout(percent=100), (EntryState.OPEN, 100.0, "")),
        (Rollout(percent=25), (EntryState.ROLLING_OUT, 25.0, "")),
        (Rollout(percent=0), (EntryState.PAUSED, 0.0, "")),
        (Rollout(percent=0, halted="12 of 40 came to nothing"), (EntryState.PAUSED, 0.0, "12 of 40 came to nothing")),
    ],
)
def test_a_rollout_is_shown_as_it_stands(rollout: Rollout | None, shown: tuple[EntryState, float, str]) -> None:
    assert _shown(rollout) == shown


def test_a_recalled_release_is_open_to_nobody_whatever_its_rollout_says() -> None:
    assert _shown(Rollout(percent=50), Recall(reason="bad", since=NOW))[:2] == (EntryState.RECALLED, 0.0)
