"""Delta indexes: real ostree lists and uses ours, we use its own, and they never name a delta that is gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.loopback import LoopbackServer, serving
from tests.ostree_scene import OstreeDevice, Publisher, quiet_directory
from tests.ostree_trees import BRANCH, TIME, commit_ours, make_tree, ostree

from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.delta_make import make_static_delta
from overhaul.dialects.ostree.device.updating import Mode, Result, run_cycle
from overhaul.dialects.ostree.heads import deltas_in, move_heads
from overhaul.dialects.ostree.layout import delta_index_path
from overhaul.dialects.ostree.pruning import prune
from overhaul.dialects.ostree.summary import Deltas, decode_delta_index, decode_summary
from overhaul.progress import Silence


def indexes(repository: Path) -> dict[str, Deltas]:
    """Return what each index lists, by its path."""
    found = sorted(repository.glob("delta-indexes/*/*"))
    return {str(path.relative_to(repository)): decode_delta_index(path.read_bytes(), what="index") for path in found}


@pytest.fixture
def ours(tmp_path: Path) -> ArchiveRepository:
    return ArchiveRepository.create(tmp_path / "ours")


@pytest.fixture
def commits(ours: ArchiveRepository, tmp_path: Path) -> list[bytes]:
    """Return three commits; to the second there is a delta from the first and one from nothing."""
    trees = [make_tree(tmp_path / f"tree{number}", edition=number) for number in (1, 2, 3)]
    made = [bytes.fromhex(commit_ours(ours, tree, at=TIME + 86_400 * n)) for n, tree in enumerate(trees)]
    for source in (made[0], None):
        make_static_delta(ours, source, made[1], workers=1, progress=Silence())
    make_static_delta(ours, made[1], made[2], workers=1, progress=Silence())
    point(ours, made[1])
    return made


def point(ours: ArchiveRepository, commit: bytes) -> bool:
    """Let the branch name a commit."""
    with ours.writing():
        return move_heads(ours, {BRANCH: commit}, signers=[], now=TIME)


def test_our_indexes_hold_what_ostree_writes_in_its_own(ours: ArchiveRepository, commits: list[bytes]) -> None:
    made = indexes(ours.path)
    assert {path: set(found) for path, found in made.items()} == {
        delta_index_path(commits[1]): {(commits[0], commits[1]), (None, commits[1])},
        delta_index_path(commits[2]): {(commits[1], commits[2])},
    }
    assert set(ostree("static-delta", "indexes", repo=ours.path).split()) == {one.hex() for one in commits[1:]}
    ostree("static-delta", "reindex", repo=ours.path)
    assert indexes(ours.path) == made
    # What it wrote is right, too, and is left alone.
    assert not point(ours, commits[1])


@pytest.mark.parametrize("is_from_nothing", [False, True])
def test_ostree_finds_our_delta_by_its_index_alone(
    ours: ArchiveRepository, commits: list[bytes], tmp_path: Path, is_from_nothing: bool
) -> None:
    ostree("config", "set", "core.no-deltas-in-summary", "true", repo=ours.path)
    reopened = ArchiveRepository(ours.path)
    device = tmp_path / "device"
    ostree("init", "--mode=bare-user", repo=device)
    with serving(ours.path) as server:
        ostree("remote", "add", "--no-gpg-verify", "updates", server.url, repo=device)
        if not is_from_nothing:
            point(reopened, commits[0])
            ostree("pull", "updates", BRANCH, repo=device)
        assert point(reopened, commits[1])
        assert decode_summary((ours.path / "summary").read_bytes()).deltas == {}
        server.requests.clear()
        ostree("pull", "--require-static-deltas", "updates", BRANCH, repo=device)
        assert delta_index_path(commits[1]) in [seen.path for seen in server.requests]
    assert ostree("rev-parse", f"updates:{BRANCH}", repo=device).strip() == commits[1].hex()
    ostree("fsck", repo=device)


def test_an_index_goes_with_the_last_delta_that_it_lists(ours: ArchiveRepository, commits: list[bytes]) -> None:
    point(ours, commits[2])
    with ours.writing():
        prune(ours, depth=0, keep_s=86_400 * 1.5, now=TIME + 86_400 * 2.0)
    assert set(deltas_in(ours)) == {(None, commits[1]), (commits[1], commits[2])}
    point(ours, commits[2])
    assert set(indexes(ours.path)[delta_index_path(commits[1])]) == {(None, commits[1])}
    with ours.writing():
        prune(ours, depth=0, keep_s=0, now=TIME + 86_400 * 9.0)
    point(ours, commits[2])
    assert indexes(ours.path) == {}
    assert "No static deltas indexes" in ostree("static-delta", "indexes", repo=ours.path)


@pytest.fixture
def place() -> Iterator[Path]:
    with quiet_directory() as made:
        yield made


def pulled(publisher: Publisher, server: LoopbackServer, device: OstreeDevice) -> list[str]:
    """Return what the device asks for to get a commit to which the real ostree made a delta."""
    first = publisher.publish("1", {"usr/lib/big": "line of text\n" * 2000})
    device.install()
    second = publisher.publish("2", {"usr/lib/big": "line of text\n" * 2001})
    publisher.make_delta(first, second)
    server.requests.clear()
    assert run_cycle(device.updater(), Mode.BOTH).result is Result.DEPLOYED
    device.fsck()
    return [seen.path for seen in server.requests]


@pytest.mark.parametrize("is_listed_in_summary", [False, True])
def test_a_device_asks_for_the_index_only_when_the_summary_does_not_list_the_delta(
    place: Path, is_listed_in_summary: bool
) -> None:
    publisher = Publisher(place / "publisher")
    hidden = "false" if is_listed_in_summary else "true"
    ostree("config", "set", "core.no-deltas-in-summary", hidden, repo=publisher.repository)
    with serving(publisher.repository) as server:
        paths = pulled(publisher, server, OstreeDevice.make(place / "device", server.url))
    assert any(path.startswith("deltas/") for path in paths)
    assert not [path for path in paths if path.endswith((".filez", ".dirtree"))]
    assert any(path.startswith("delta-indexes/") for path in paths) is not is_listed_in_summary
