"""Wrong clocks and long sleeps: devices whose time is nowhere near, and one that missed three years of new keys."""

import contextlib
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.signed_tree import NOON, STABLE, Device, MemoryFetcher, SignedTree

from overhaul.errors import TrustError
from overhaul.trust.editor import MetadataEditor
from overhaul.trust.refusals import RollbackError, StaleRepositoryError

YEAR_1970 = datetime(1970, 1, 1, tzinfo=UTC)
YEAR_2099 = datetime(2099, 12, 31, tzinfo=UTC)


@pytest.fixture
def tree(tmp_path: Path) -> SignedTree:
    made = SignedTree(tmp_path / "keys", products=["alpha"])
    made.put(STABLE, b"stable 1")
    return made


def _device(tree: SignedTree, state: Path) -> Device:
    return Device(state, "memory:", tree.files["metadata/1.root.json"], MemoryFetcher(tree.files))


def _read(device: Device) -> bytes:
    repository = device.repository()
    repository.refresh()
    return repository.read_target(STABLE)


def _renew_all(editor: MetadataEditor) -> None:
    for role in editor.role_names:
        editor.renew(role)


def _sleep_three_years(tree: SignedTree) -> datetime:
    """Rotate root five times in three years, and every other role at least once."""
    others = iter(["timestamp", "snapshot", "targets", "alpha", "alpha-policy"])
    for _ in range(5):
        tree.now += timedelta(days=219)
        tree.rotate("root")
        tree.rotate(next(others))
        tree.edit(lambda editor: editor.refresh())
    tree.put(STABLE, b"stable 2")
    return tree.now


@pytest.mark.parametrize("clock", ["right", "1970", "where it stopped"])
def test_a_device_that_slept_through_five_root_rotations_and_three_years_follows(
    tree: SignedTree, tmp_path: Path, clock: str
) -> None:
    device = _device(tree, tmp_path / "state")
    assert _read(device) == b"stable 1"
    before = dict(tree.files)
    awake = _sleep_three_years(tree)
    device.clock.moment = {"right": awake, "1970": YEAR_1970, "where it stopped": NOON}[clock]

    assert _read(device) == b"stable 2"

    assert tree.version("root") >= 6
    assert device.repository().time_floor == awake
    # What it trusted before it slept is worth nothing any more, whatever its clock says.
    tree.files.clear()
    tree.files.update(before)
    with pytest.raises(TrustError, match=r"goes back|not signed by enough|expired"):
        _read(device)


def test_a_device_that_was_never_on_in_three_years_starts_from_the_first_root(tree: SignedTree, tmp_path: Path) -> None:
    device = _device(tree, tmp_path / "state")
    device.clock.moment = _sleep_three_years(tree)

    assert _read(device) == b"stable 2"


def test_a_sleeper_whose_network_breaks_in_the_chain_of_roots_goes_on_where_it_was(
    tree: SignedTree, tmp_path: Path
) -> None:
    device = _device(tree, tmp_path / "state")
    assert _read(device) == b"stable 1"
    device.clock.moment = _sleep_three_years(tree)
    whole = dict(tree.files)
    # A mirror that has only the first three of the new roots.
    for version in range(5, tree.version("root") + 1):
        del tree.files[f"metadata/{version}.root.json"]
    with pytest.raises(StaleRepositoryError):
        _read(device)
    assert (device.state / "metadata/root_history/4.root.json").exists()
    tree.files.update(whole)

    assert _read(device) == b"stable 2"


def test_a_clock_in_2099_refuses_everything_learns_nothing_and_costs_nothing_when_set_right(
    tree: SignedTree, tmp_path: Path
) -> None:
    device = _device(tree, tmp_path / "state")
    device.clock.moment = YEAR_2099
    with pytest.raises(StaleRepositoryError):
        _read(device)
    assert device.repository().time_floor < NOON + timedelta(days=1)

    device.clock.moment = NOON

    assert _read(device) == b"stable 1"


def test_a_clock_in_1970_lets_nothing_in_that_ended_before_what_it_has_seen(tree: SignedTree, tmp_path: Path) -> None:
    device = _device(tree, tmp_path / "state")
    device.clock.moment = YEAR_1970
    old = dict(tree.files)
    assert _read(device) == b"stable 1"
    tree.now += timedelta(days=400)
    tree.edit(_renew_all)
    tree.put(STABLE, b"stable 2")
    assert _read(device) == b"stable 2"
    assert device.repository().time_floor == tree.now

    fresh = _device(tree, tmp_path / "fresh")
    fresh.clock.moment = YEAR_1970
    assert _read(fresh) == b"stable 2"
    tree.files.clear()
    tree.files.update(old)
    for one in (device, fresh):
        with pytest.raises(TrustError, match=r"goes back|expired"):
            _read(one)


@pytest.mark.parametrize("seed", range(5))
def test_a_clock_that_jumps_never_brings_an_old_state_back_and_never_locks_a_device_out(
    tree: SignedTree, tmp_path: Path, seed: int
) -> None:
    device, rng = _device(tree, tmp_path / "state"), random.Random(seed)
    seen = 0
    states = [dict(tree.files)]
    for step in range(2, 14):
        tree.now += timedelta(days=rng.choice([0, 1, 5]), hours=1)
        tree.edit(lambda editor: editor.refresh())
        tree.put(STABLE, f"stable {step}".encode())
        states.append(dict(tree.files))
        device.clock.moment = rng.choice(
            [
                YEAR_1970,
                YEAR_2099,
                tree.now,
                NOON - timedelta(days=9),
                tree.now + timedelta(days=rng.randrange(-40, 40)),
            ]
        )
        served = rng.choice([states[-1], states[-1], rng.choice(states)])
        tree.files.clear()
        tree.files.update(served)
        floor = device.repository().time_floor
        # Any other refusal than these two would be wrong here.
        with contextlib.suppress(StaleRepositoryError, RollbackError):
            got = int(_read(device).split()[1])
            assert got >= seen
            seen = got
        assert floor <= device.repository().time_floor <= tree.now
        tree.files.clear()
        tree.files.update(states[-1])

    device.clock.moment = tree.now
    assert _read(device) == b"stable 13"
