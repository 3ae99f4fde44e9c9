"""Editing published metadata: what is written, in which order, and what happens after a crash."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.signed_tree import BETA, NOON, RELEASE, STABLE, SignedTree
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from overhaul.trust.editor import (
    MetadataEditor,
    ProductExistsError,
    RefreshReport,
    RepositoryExistsError,
    TargetInfo,
    UnknownProductError,
)
from overhaul.trust.keyring import Keyring, MissingKeyError
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key, target_key
from overhaul.trust.refusals import BadSignatureError, MixAndMatchError, UnknownTargetError, WrongTargetError
from overhaul.trust.roles import SIGNED_AT
from overhaul.trust.verify import Fault, verify_metadata


@pytest.fixture
def tree(tmp_path: Path) -> SignedTree:
    return SignedTree(tmp_path / "keys", products=["alpha"])


def _editor(tree: SignedTree) -> MetadataEditor:
    return MetadataEditor(tree.files.get, tree.keyring, tree.now)


def _faults(tree: SignedTree) -> list[str]:
    return [finding.sentence for finding in verify_metadata(tree.files.get, now=tree.now).findings]


def test_a_new_repository_is_written_with_its_timestamp_last(tmp_path: Path) -> None:
    tree = SignedTree(tmp_path / "keys", products=["alpha"], with_builds=True)

    assert sorted(tree.files) == [
        "metadata/1.alpha-policy.json",
        "metadata/1.alpha.json",
        "metadata/1.builds.json",
        "metadata/1.root.json",
        "metadata/1.snapshot.json",
        "metadata/1.targets.json",
        TIMESTAMP_KEY,
    ]
    assert list(tree.files)[-1] == TIMESTAMP_KEY
    assert _faults(tree) == []


def test_every_role_says_when_it_was_signed(tree: SignedTree) -> None:
    tree.put(STABLE, b"stable 1")

    for key in [key for key in tree.files if key.startswith("metadata/")]:
        assert tree.read(key).signed.unrecognized_fields[SIGNED_AT] == int(NOON.timestamp())


def test_a_new_target_touches_its_role_snapshot_and_timestamp_only(tree: SignedTree) -> None:
    written = tree.put(STABLE, b"stable 1")

    digest = tree.read("metadata/2.alpha-policy.json").signed.targets[STABLE].hashes["sha256"]
    assert written == [
        target_key(STABLE, digest),
        "metadata/2.alpha-policy.json",
        "metadata/2.snapshot.json",
        TIMESTAMP_KEY,
    ]
    assert tree.files[target_key(STABLE, digest)] == b"stable 1"


def test_the_same_bytes_again_change_nothing(tree: SignedTree) -> None:
    tree.put(STABLE, b"stable 1")

    assert tree.put(STABLE, b"stable 1") == []


def test_targets_can_be_listed_read_and_removed(tree: SignedTree) -> None:
    tree.put(STABLE, b"stable 1")
    tree.put(BETA, b"beta 1")
    tree.put(RELEASE, b"release 1")
    editor = _editor(tree)

    assert list(editor.targets()) == [BETA, STABLE, RELEASE]
    assert list(editor.targets("alpha/policy/")) == [BETA, STABLE]
    assert editor.targets(STABLE)[STABLE].size == 8
    assert editor.read_target(RELEASE) == b"release 1"
    tree.edit(lambda editor: editor.remove_target(BETA))
    assert list(_editor(tree).targets("alpha/policy/")) == [STABLE]
    with pytest.raises(UnknownTargetError):
        _editor(tree).read_target(BETA)


def test_an_editor_sees_its_own_changes(tree: SignedTree) -> None:
    editor = _editor(tree)
    editor.put_target(STABLE, b"stable 1")

    assert editor.read_target(STABLE) == b"stable 1"
    assert isinstance(editor.targets()[STABLE], TargetInfo)
    assert tree.put(BETA, b"x")
    assert STABLE not in _editor(tree).targets()


def test_asking_for_the_changes_twice_gives_the_same(tree: SignedTree) -> None:
    editor = _editor(tree)
    editor.put_target(STABLE, b"stable 1")

    assert editor.changes() == editor.changes()


def test_a_publish_that_died_before_its_timestamp_is_simply_run_again(tree: SignedTree) -> None:
    tree.put(STABLE, b"stable 1")
    served = dict(tree.files)
    for survivors in range(4):  # of target, role, snapshot, timestamp
        tree.files.clear()
        tree.files.update(served)
        editor = _editor(tree)
        editor.put_target(STABLE, b"dies")
        tree.files.update(editor.changes()[:survivors])
        assert _editor(tree).read_target(STABLE) == b"stable 1"

        tree.put(STABLE, b"another try")

        assert _editor(tree).read_target(STABLE) == b"another try"
        assert _faults(tree) == []


def test_a_creation_that_died_before_its_timestamp_is_simply_run_again(tree: SignedTree) -> None:
    del tree.files[TIMESTAMP_KEY]
    tree.edit(lambda editor: editor.create(["alpha"]))

    assert _faults(tree) == []


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "alpha", "alpha-policy"])
def test_a_rotation_that_died_before_its_timestamp_is_rolled_forward(tree: SignedTree, role: str) -> None:
    tree.put(STABLE, b"stable 1")
    tree.keyring.renew(role)
    editor = _editor(tree)
    editor.rotate(role)
    tree.files.update(editor.changes()[:-1])

    tree.put(STABLE, b"stable 2")
    if role not in {"root", "targets", "snapshot", "timestamp"}:
        # Their delegation was never referenced, so the old keys still stand until it is done again.
        tree.edit(lambda editor: editor.rotate(role))

    assert _faults(tree) == []
    assert _editor(tree).read_target(STABLE) == b"stable 2"


def test_a_repository_is_created_only_once(tree: SignedTree) -> None:
    with pytest.raises(RepositoryExistsError):
        tree.edit(lambda editor: editor.create(["alpha"]))


def test_a_product_can_be_added_once_its_keys_are_there(tree: SignedTree) -> None:
    with pytest.raises(MissingKeyError):
        tree.edit(lambda editor: editor.add_product("beta"))
    tree.keyring.add_roles(["beta", "beta-policy"])
    tree.edit(lambda editor: editor.add_product("beta"))

    assert _editor(tree).products == ("alpha", "beta")
    assert _faults(tree) == []
    with pytest.raises(ProductExistsError):
        tree.edit(lambda editor: editor.add_product("beta"))


def test_a_product_the_repository_does_not_carry_is_named(tree: SignedTree) -> None:
    for path in ("beta/policy/stable.json", "beta/releases/desk/amd64/1/2.json"):
        with pytest.raises(UnknownProductError) as caught:
            tree.put(path, b"x")
        assert (caught.value.product, caught.value.known) == ("beta", ("alpha",))


def test_nothing_is_signed_without_enough_keys(tree: SignedTree) -> None:
    (tree.keyring.directory / "alpha-2.pem").unlink()
    before = dict(tree.files)

    with pytest.raises(MissingKeyError) as caught:
        tree.put(RELEASE, b"release 1")

    assert (caught.value.role, caught.value.have, caught.value.need) == ("alpha", 1, 2)
    assert tree.files == before
    # The policy key is another one, so recalls and rollouts go on.
    tree.put(STABLE, b"stable 1")


def test_a_refresh_signs_the_timestamp_alone_while_nothing_else_is_due(tree: SignedTree) -> None:
    assert tree.edit(lambda editor: editor.refresh()) == [TIMESTAMP_KEY]
    assert tree.version("timestamp") == 2


def _refreshed(tree: SignedTree) -> RefreshReport:
    reports: list[RefreshReport] = []
    tree.edit(lambda editor: reports.append(editor.refresh()))
    return reports[0]


def test_a_refresh_renews_what_is_near_its_end(tree: SignedTree) -> None:
    tree.now += timedelta(days=70)
    report = _refreshed(tree)

    assert report == RefreshReport(renewed=("snapshot", "timestamp", "alpha-policy"), expiring=())
    assert _faults(tree) == []


def test_a_refresh_with_online_keys_only_reports_what_it_cannot_renew(tree: SignedTree) -> None:
    for path in tree.keyring.directory.glob("*.pem"):
        if not path.name.startswith(("snapshot", "timestamp", "alpha-policy")):
            path.unlink()
    tree.now += timedelta(days=300)
    report = _refreshed(tree)

    assert report.renewed == ("snapshot", "timestamp", "alpha-policy")
    assert [(item.role, item.keys_held, item.threshold) for item in report.expiring] == [
        ("root", 0, 2),
        ("targets", 0, 2),
        ("alpha", 0, 2),
    ]
    assert _faults(tree) == []


@pytest.mark.parametrize("role", ["alpha", "alpha-policy", "targets", "snapshot", "timestamp"])
def test_an_editor_believes_nothing_that_the_right_keys_did_not_sign(tree: SignedTree, role: str) -> None:
    """Otherwise a thief of the storage would have the publisher sign what he slipped in."""
    forged = tree.forge(role, signed_by="root")
    if role == "timestamp":
        tree.files[TIMESTAMP_KEY] = forged
    elif role == "snapshot":
        tree.announce(forged)
    else:
        tree.relist((role, forged))
    before = dict(tree.files)

    def publish(editor: MetadataEditor) -> None:
        editor.put_target(STABLE, b"x")
        editor.put_target(RELEASE, b"x")

    with pytest.raises(BadSignatureError):
        tree.edit(publish)

    assert tree.files == before


def test_an_editor_does_not_follow_a_root_that_its_predecessor_did_not_sign(tree: SignedTree, tmp_path: Path) -> None:
    thief = Keyring.generate(tmp_path / "thief", products=[])
    tree.files["metadata/2.root.json"] = tree.usurp(thief)

    with pytest.raises(BadSignatureError):
        tree.put(STABLE, b"x")
    assert [finding.fault for finding in verify_metadata(tree.files.get, now=NOON).findings] == [Fault.UNTRUSTED]


def test_an_editor_notices_a_role_file_that_is_not_the_listed_one(tree: SignedTree) -> None:
    tree.files[tree.key_of("alpha-policy")] += b" "

    with pytest.raises(MixAndMatchError):
        tree.put(STABLE, b"x")


def test_an_editor_notices_a_target_that_is_not_the_signed_one(tree: SignedTree) -> None:
    [key, *_rest] = tree.put(STABLE, b"stable 1")
    tree.files[key] = b"stable X"

    with pytest.raises(WrongTargetError):
        _editor(tree).read_target(STABLE)


def test_the_old_and_the_new_root_keys_both_sign_a_new_root(tree: SignedTree) -> None:
    first = tree.read("metadata/1.root.json").signed
    written = tree.rotate("root")

    assert written == ["metadata/2.root.json", TIMESTAMP_KEY]
    second = tree.read("metadata/2.root.json")
    for judge in (first, second.signed):
        judge.verify_delegate("root", second.signed_bytes, second.signatures)
    assert not set(first.roles["root"].keyids) & set(second.signed.roles["root"].keyids)


def test_a_root_cannot_be_rotated_without_the_old_keys(tree: SignedTree) -> None:
    for path in tree.keyring.directory.glob("root-*.pem"):
        path.unlink()

    with pytest.raises(MissingKeyError):
        tree.rotate("root")


class _Memory(FetcherInterface):
    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        key = url.removeprefix("memory:/")
        if key not in self._files:
            raise DownloadHTTPError("missing", 404)
        return iter([self._files[key]])


def test_an_unchanged_python_tuf_client_accepts_what_is_published(tmp_path: Path) -> None:
    tree = SignedTree(tmp_path / "keys", with_builds=True)
    # Its client takes the time from the system's clock, so the tree is signed by that clock.
    tree.now = datetime.now(UTC)
    first_root = tree.files["metadata/1.root.json"]
    tree.edit(lambda editor: editor.refresh())
    for role in ("root", "alpha", "alpha-policy", "targets", "snapshot", "timestamp"):
        tree.rotate(role)
    tree.put(STABLE, b"stable 1")
    tree.put(RELEASE, b"release 1")
    tree.put("builds/openwrt/0123/image.json", b"built")
    (tmp_path / "client").mkdir()
    updater = Updater(
        metadata_dir=str(tmp_path / "client"),
        metadata_base_url="memory:/metadata/",
        target_base_url="memory:/targets/",
        target_dir=str(tmp_path / "client"),
        fetcher=_Memory(tree.files),
        bootstrap=first_root,
    )
    updater.refresh()

    for path, data in ((STABLE, b"stable 1"), (RELEASE, b"release 1"), ("builds/openwrt/0123/image.json", b"built")):
        target = updater.get_targetinfo(path)
        assert target is not None
        assert Path(updater.download_target(target)).read_bytes() == data


def test_names_on_disk_are_those_of_consistent_snapshots() -> None:
    assert metadata_key("alpha", 3) == "metadata/3.alpha.json"
    assert target_key("a/b/c.json", "00") == "targets/a/b/00.c.json"
