"""`overhaul keys drill`: what stolen keys are worth, tried on a twin; and any theft below the thresholds."""

import itertools
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile import signed_files
from tests.published import PublishedRepository

from overhaul.cli import keys as keys_cli
from overhaul.progress import Silence
from overhaul.publishing.drill import drill
from overhaul.publishing.keys import rotate_role
from overhaul.trust import drill as rehearsing
from overhaul.trust.drill import Power, Shape, power_of, rehearse, thefts
from overhaul.trust.editor import Owner, UnknownProductError
from overhaul.trust.roles import TOP_LEVEL

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
ROLES = (*TOP_LEVEL, "alpha", "alpha-policy")
ONLINE = {"snapshot": 1, "timestamp": 1}


def _owners(**keys: tuple[int, int]) -> dict[str, Owner]:
    counts = {**dict.fromkeys(ROLES, (1, 1)), **{name.replace("_", "-"): count for name, count in keys.items()}}
    return {
        role: Owner(keyids=tuple(f"{role}{number}" for number in range(count)), threshold=threshold)
        for role, (count, threshold) in counts.items()
    }


@pytest.mark.parametrize(
    ("theft", "power"),
    [
        ({}, Power.NOTHING),
        ({"root": 1, "targets": 1}, Power.NOTHING),
        ({"root": 2}, Power.EVERYTHING),
        ({"targets": 2, "alpha": 1, "alpha-policy": 1}, Power.NOTHING),
        ({"snapshot": 1}, Power.NOTHING),
        ({"timestamp": 1}, Power.FREEZE),
        (ONLINE, Power.FREEZE),
        ({**ONLINE, "targets": 1}, Power.FREEZE),
        ({**ONLINE, "targets": 2}, Power.FOREIGN_RELEASE),
        ({**ONLINE, "alpha-policy": 1}, Power.POLICY),
        ({**ONLINE, "alpha": 1}, Power.FREEZE),
        ({**ONLINE, "alpha": 1, "alpha-policy": 1}, Power.FOREIGN_RELEASE),
    ],
)
def test_what_a_theft_is_worth(theft: dict[str, int], power: Power) -> None:
    owners = _owners(root=(3, 2), targets=(3, 2))

    assert power_of(theft, owners, "alpha") is power
    rehearsal = rehearse(Shape(owners=owners, targets={}), theft, product="alpha", now=NOW)
    assert (rehearsal.seen, rehearsal.seen_again) == (power, Power.NOTHING)
    assert rehearsal.is_sound
    assert (rehearsal.followed is None) == (power is Power.EVERYTHING)


def test_every_number_of_every_roles_keys_is_rehearsed() -> None:
    owners = _owners(root=(3, 2), alpha=(2, 2))
    tried = thefts(owners, "alpha")

    for role in ROLES:
        for count in range(1, len(owners[role].keyids) + 1):
            assert {role: count} in tried
    assert {**ONLINE, "alpha": 1, "root": 1} in [{role: n for role, n in one.items() if n} for one in tried]


@st.composite
def _thefts_below(draw: st.DrawFn) -> tuple[dict[str, Owner], dict[str, int]]:
    """Any counts and thresholds, and any number of keys below the threshold of each role."""
    counts = {}
    for role in ROLES:
        keys = draw(st.integers(1, 3))
        counts[role] = (keys, draw(st.integers(1, keys)))
    owners = _owners(**counts)
    return owners, {role: draw(st.integers(0, counts[role][1] - 1)) for role in ROLES}


@settings(max_examples=25)
@given(_thefts_below())
def test_any_keys_below_every_threshold_get_nothing_installed(case: tuple[dict[str, Owner], dict[str, int]]) -> None:
    owners, theft = case

    rehearsal = rehearse(Shape(owners=owners, targets={}), theft, product="alpha", now=NOW)

    assert (rehearsal.expected, rehearsal.seen, rehearsal.seen_again) == (Power.NOTHING,) * 3
    assert rehearsal.followed is True


@settings(max_examples=15)
@given(_thefts_below(), st.sets(st.sampled_from([*ONLINE, "alpha-policy"])))
def test_online_keys_on_top_of_them_get_no_foreign_release_installed(
    case: tuple[dict[str, Owner], dict[str, int]], also: set[str]
) -> None:
    owners, theft = case
    theft = {**theft, **{role: owners[role].threshold for role in also}}

    rehearsal = rehearse(Shape(owners=owners, targets={}), theft, product="alpha", now=NOW)

    assert rehearsal.is_sound
    assert rehearsal.seen <= Power.POLICY


def test_a_drill_leaves_the_repository_alone_and_says_what_it_saw(tmp_path: Path) -> None:
    made = PublishedRepository(tmp_path / "repository")
    made.publish("1.0", "b1", image_size=70_000)
    before = (
        signed_files(made.public),
        {path.name: path.read_bytes() for path in made.repository.keys_directory.iterdir()},
    )
    there = ["--repository", str(made.directory)]

    document = CliRunner().invoke(keys_cli.command, ["drill", "--json", *there])
    text = CliRunner().invoke(keys_cli.command, ["drill", "--product", "alpha", *there])

    assert (document.exit_code, text.exit_code) == (0, 0), (document.exception, text.exception)
    report = json.loads(document.stdout)
    root = next(one for one in report["roles"] if one["role"] == "root")
    # Of the eight sets of three keys, four have fewer than two.
    assert (root["harmless_sets"], root["signing_sets"]) == (4, 4)
    assert root["with_online"] == "everything"
    assert "BAD" not in text.stdout
    assert "alpha: stolen 1 snapshot, 1 timestamp: freeze; device follows; thief again: nothing" in text.stdout
    assert before == (
        signed_files(made.public),
        {path.name: path.read_bytes() for path in made.repository.keys_directory.iterdir()},
    )
    with pytest.raises(UnknownProductError):
        drill(made.repository, product="beta", progress=Silence())


def test_a_drill_says_which_keys_a_recovery_will_need(tmp_path: Path) -> None:
    made = PublishedRepository(tmp_path / "repository")
    rotate_role(made.repository, "root", keys=4, threshold=3)
    for file in [key.file for key in made.repository.keyring.role("root").keys[:2]]:
        (made.repository.keys_directory / file).unlink()

    text = CliRunner().invoke(keys_cli.command, ["drill", "--repository", str(made.directory)])

    assert "Recovery will need the keys of root, which are not here." in text.stdout
    assert text.exit_code == 0


def test_a_recovery_that_does_not_work_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = PublishedRepository(tmp_path / "repository")
    monkeypatch.setattr(rehearsing._Twin, "recover", lambda _self, _won: None)

    answer = CliRunner().invoke(keys_cli.command, ["drill", "--repository", str(made.directory)])

    assert type(answer.exception).__name__ == "TrustError"
    assert "BAD alpha" in answer.stdout


def test_every_subset_of_the_keys_of_a_role_is_counted() -> None:
    keys, threshold = 4, 3
    harmless = [
        subset for size in range(keys + 1) for subset in itertools.combinations(range(keys), size) if size < threshold
    ]
    from overhaul.publishing.drill import signing_sets

    assert signing_sets(keys=keys, threshold=threshold) == 2**keys - len(harmless)
