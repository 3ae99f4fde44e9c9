"""What a device trusts survives a kill at any moment of a refresh."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from overhaul.trust.refusals import RollbackError
from tests.crash.killing import run_killed_at
from tests.signed_tree import NOON, STABLE, Device, MemoryFetcher, SignedTree


def test_a_refresh_killed_anywhere_leaves_the_old_trust_or_the_new_and_can_be_run_again(tmp_path: Path) -> None:
    tree = SignedTree(tmp_path / "keys")
    tree.put(STABLE, b"stable 1")
    old = dict(tree.files)
    device = Device(tmp_path / "state", "memory:", tree.files["metadata/1.root.json"], MemoryFetcher(tree.files))
    repository = device.repository()
    repository.refresh()
    repository.read_target(STABLE)
    shutil.copytree(tmp_path / "state", tmp_path / "before")
    tree.now += timedelta(hours=1)
    tree.rotate("root")
    tree.put(STABLE, b"stable 2")
    new = dict(tree.files)

    def update() -> None:
        repository = device.repository()
        repository.refresh()
        repository.read_target(STABLE)

    point, passed, seen = 0, None, set()
    while passed is None:
        shutil.rmtree(tmp_path / "state")
        shutil.copytree(tmp_path / "before", tmp_path / "state", symlinks=True)
        tree.files.clear()
        tree.files.update(new)
        passed = run_killed_at(update, point)

        assert device.repository().time_floor in {NOON, tree.now}
        # A thief who replays the old repository gets at most what was still trusted.
        tree.files.clear()
        tree.files.update(old)
        try:
            repository = device.repository()
            repository.refresh()
            seen.add(repository.read_target(STABLE))
        except RollbackError:
            seen.add(b"refused")
        # The genuine repository goes on from there.
        tree.files.clear()
        tree.files.update(new)
        repository = device.repository()
        repository.refresh()
        assert repository.read_target(STABLE) == b"stable 2"
        assert not (tmp_path / "state" / "working").exists()
        point += 1

    assert passed > 15
    assert seen == {b"stable 1", b"refused"}


@pytest.mark.parametrize("name", ["floor.json", "poll.json", "metadata/timestamp.json", "metadata/alpha-policy.json"])
def test_a_damaged_file_of_the_trust_state_is_fetched_again(tmp_path: Path, name: str) -> None:
    tree = SignedTree(tmp_path / "keys")
    tree.put(STABLE, b"stable 1")
    device = Device(tmp_path / "state", "memory:", tree.files["metadata/1.root.json"], MemoryFetcher(tree.files))
    repository = device.repository()
    repository.refresh()
    repository.read_target(STABLE)
    sound = device.trusted()
    (tmp_path / "state" / name).write_bytes(b"\x00")

    repository = device.repository()
    repository.poll()
    repository.refresh()

    assert repository.read_target(STABLE) == b"stable 1"
    assert device.trusted()[name] == sound[name]
