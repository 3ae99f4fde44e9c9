"""The one private thing of python-tuf we rely on, and the start from a given root."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.signed_tree import NOON, STABLE, Clock, MemoryFetcher, SignedTree
from tuf.api.exceptions import ExpiredMetadataError

from overhaul.trust._updater import SeamFetcher, TimedUpdater
from overhaul.trust.client import TrustedRepository, TrustStateError
from overhaul.trust.refusals import StaleRepositoryError, UnusableRootError


@pytest.fixture
def tree(tmp_path: Path) -> SignedTree:
    tree = SignedTree(tmp_path / "keys")
    tree.put(STABLE, b"stable 1")
    return tree


def _updater(tree: SignedTree, directory: Path, moment: datetime) -> TimedUpdater:
    directory.mkdir()
    return TimedUpdater(
        directory=directory,
        base_url="memory:",
        bootstrap=tree.files["metadata/1.root.json"],
        fetcher=SeamFetcher(MemoryFetcher(tree.files)),
        reckon=lambda _root: moment,
    )


def _repository(tree: SignedTree, state: Path, root: bytes) -> TrustedRepository:
    return TrustedRepository(
        state_directory=state,
        base_url="memory:/",
        bootstrap_root=root,
        fetcher=MemoryFetcher(tree.files),
        clock=Clock(),
    )


def test_expiry_is_judged_by_the_given_time_alone(tree: SignedTree, tmp_path: Path) -> None:
    """The system's clock is long past, or long before, what is signed here: it must not count."""
    _updater(tree, tmp_path / "noon", NOON).refresh()

    late = _updater(tree, tmp_path / "late", NOON + timedelta(days=3))
    with pytest.raises(ExpiredMetadataError):
        late.refresh()
    assert late.reference == NOON + timedelta(days=3)


def test_loaded_metadata_is_judged_again_by_a_later_time(tree: SignedTree, tmp_path: Path) -> None:
    updater = _updater(tree, tmp_path / "state", NOON)
    updater.refresh()
    updater.judge("alpha-policy", NOON + timedelta(hours=1))

    with pytest.raises(StaleRepositoryError) as caught:
        updater.judge("alpha-policy", NOON + timedelta(days=8))

    assert caught.value.role == "snapshot"


@pytest.mark.parametrize("root", [b"", b"{}", b"junk", b'{"signed":{"_type":"root"},"signatures":[]}'])
def test_a_device_given_no_usable_root_says_so(tree: SignedTree, tmp_path: Path, root: bytes) -> None:
    with pytest.raises(UnusableRootError):
        _repository(tree, tmp_path / "state", root).refresh()


def test_a_root_whose_own_keys_did_not_sign_it_is_no_start(tree: SignedTree, tmp_path: Path) -> None:
    with pytest.raises(UnusableRootError):
        _repository(tree, tmp_path / "state", tree.forge("root", signatures=1)).refresh()


def test_a_state_directory_that_cannot_be_used_is_named(tree: SignedTree, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(TrustStateError, match="file"):
        _repository(tree, tmp_path / "file" / "state", tree.files["metadata/1.root.json"]).refresh()


def test_the_floor_of_a_fresh_device_is_the_beginning_of_time(tree: SignedTree, tmp_path: Path) -> None:
    repository = _repository(tree, tmp_path / "state", tree.files["metadata/1.root.json"])

    assert repository.time_floor == datetime(1970, 1, 1, tzinfo=UTC)
