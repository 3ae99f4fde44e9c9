"""The publisher of a product: what it writes, what it points at, and what devices are never shown."""

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from overhaul.content.tree import read_files, scan_tree
from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.heads import deltas_in
from overhaul.dialects.ostree.objects import ObjectType, text_of
from overhaul.dialects.ostree.publish import OstreeDialect, UnwrittenReleaseError
from overhaul.dialects.ostree.settings import BadOstreeSettingError, OstreeSettings
from overhaul.dialects.ostree.summary import decode_summary
from overhaul.dialects.seam import DialectSource, Opened
from overhaul.progress import Silence
from overhaul.release.record import ReleaseId

_TIME = 1_700_000_000
_BRANCH = "kiosk/x86_64/shop/stable"


def _release(version: str) -> ReleaseId:
    return ReleaseId(product="kiosk", variant="shop", arch="x86_64", version=version, build_id=f"b{version}")


def _opened(*versions: str, channel: str = "stable") -> Opened:
    return Opened(channel=channel, variant="shop", arch="x86_64", releases=tuple(map(_release, versions)))


class _Product:
    """A product that is published with a clock of its own."""

    def __init__(self, base: Path, **settings: object) -> None:
        self.base = base
        self.now = _TIME + 1_000_000
        self.directory = base / "public/ostree/kiosk"
        table = {"unsigned": True, "needs_kernel": False, **settings}
        self.dialect = OstreeDialect(
            msgspec.convert(table, OstreeSettings),
            product="kiosk",
            directory=self.directory,
            base=base,
            clock=lambda: float(self.now),
        )
        self._works = 0

    def write(self, version: str, *, at: int = _TIME, content: str | None = None) -> bool:
        """Publish a release; return whether there was anything to write."""
        tree = self.base / f"tree-{version}"
        if not tree.exists():
            (tree / "usr/lib").mkdir(parents=True)
            (tree / "usr/lib/os-release").write_text("ID=kiosk\n")
            (tree / "etc").mkdir()
            (tree / "etc/issue").write_text("kiosk\n")
        (tree / "usr/lib/version").write_text((content or version) * 100)
        work = self.base / f"work-{self._works}"
        self._works += 1
        work.mkdir()
        source = DialectSource(release=_release(version), image=tree, tree=tree, entries=scan_tree(tree), timestamp=at)
        writer = self.dialect.writer(source, work=work, workers=2, progress=Silence())
        if writer is None:
            return False
        read_files(tree, source.entries, [writer.take], workers=2)
        writer.write()
        return True

    def point(self, *opened: Opened, recalled: Mapping[ReleaseId, str] | None = None) -> bool:
        return self.dialect.point(opened, recalled=recalled or {})

    @property
    def repository(self) -> ArchiveRepository:
        return ArchiveRepository(self.directory)

    def head(self, branch: str = _BRANCH) -> bytes:
        head = self.repository.resolve(branch)
        assert head is not None
        return head

    def shown(self) -> dict[str, bytes]:
        summary = decode_summary((self.directory / "summary").read_bytes())
        return {branch: entry.commit for branch, entry in summary.branches.items()}


@pytest.fixture
def product(tmp_path: Path) -> _Product:
    return _Product(tmp_path)


def test_what_is_written_is_shown_only_when_it_is_pointed_at(product: _Product) -> None:
    assert product.write("1.0")
    assert not (product.directory / "summary").exists()
    assert product.repository.resolve(_BRANCH) is None
    assert product.point(_opened("1.0"))
    assert product.shown() == {_BRANCH: product.head()}


def test_writing_and_pointing_again_change_nothing(product: _Product) -> None:
    product.write("1.0")
    product.point(_opened("1.0"))
    before = product.head()
    assert not product.write("1.0")
    product.now += 10
    assert not product.point(_opened("1.0"))
    assert product.head() == before


def test_a_release_that_no_channel_opens_yet_changes_nothing_for_devices(product: _Product) -> None:
    product.write("1.0")
    product.point(_opened("1.0"))
    product.write("1.1")
    head = product.head()
    assert not product.point(_opened("1.0"))
    assert product.head() == head
    # Its delta is ready all the same.
    assert decode_summary((product.directory / "summary").read_bytes()).deltas
    assert product.point(_opened("1.0", "1.1"))


def test_each_release_follows_the_one_before_and_has_a_delta_from_it(product: _Product) -> None:
    for number, version in enumerate(("1.0", "1.1", "1.2")):
        product.write(version, at=_TIME + number)
        product.point(_opened(*("1.0", "1.1", "1.2")[: number + 1]))
    head = product.head()
    ancestors = list(product.repository.ancestors(head))
    assert [product.repository.commit(commit).version for commit in ancestors] == ["1.1", "1.0"]
    assert set(deltas_in(product.repository)) == {(ancestors[0], head), (ancestors[1], ancestors[0])}
    assert decode_summary((product.directory / "summary").read_bytes()).deltas == deltas_in(product.repository)


def test_devices_that_never_saw_the_last_release_have_a_delta_to_the_next(product: _Product) -> None:
    product.write("1.0")
    product.point(_opened("1.0"), _opened("1.0", channel="beta"))
    shown = product.head()
    product.write("1.1")
    product.point(_opened("1.0"), _opened("1.0", "1.1", channel="beta"))
    beta = product.head("kiosk/x86_64/shop/beta")
    product.write("1.2")
    product.point(_opened("1.0", "1.1", "1.2"))
    assert {source for source, target in deltas_in(product.repository) if target == product.head()} == {shown, beta}
    assert not product.write("1.2")


def test_devices_that_went_back_from_a_recalled_release_have_a_delta_to_the_next(product: _Product) -> None:
    product.write("1.0")
    product.point(_opened("1.0"))
    product.write("1.1")
    product.point(_opened("1.0", "1.1"))
    recalled = {_release("1.1"): "it does not boot"}
    product.point(_opened("1.0"), recalled=recalled)
    again = product.head()
    # Its source is older than the recall.
    product.write("1.2", at=_TIME + 5)
    product.point(_opened("1.0", "1.2"), recalled=recalled)
    head = product.head()
    assert product.repository.commit(head).version == "1.2"
    assert (again, head) in deltas_in(product.repository)


def test_a_commit_tells_its_version_architecture_and_release(product: _Product) -> None:
    product.write("1.0")
    product.point(_opened("1.0"))
    commit = product.repository.commit(product.head())
    assert commit.timestamp == _TIME
    assert commit.subject == "Build b1.0 of shop 1.0 in kiosk"
    assert text_of(commit.metadata, "ostree.architecture") == "x86_64"
    assert commit.ref_bindings is None
    names = {entry.name for entry in product.repository.dirtree(commit.root_tree).directories}
    assert names >= {"usr", "var", "boot", "sysroot"}
    assert "etc" not in names


@pytest.mark.parametrize("later", [0, -5000])
def test_time_goes_on_from_commit_to_commit(product: _Product, later: int) -> None:
    product.write("1.0", at=_TIME)
    product.write("1.1", at=_TIME + later)
    product.point(_opened("1.0", "1.1"))
    assert product.repository.commit(product.head()).timestamp == _TIME + 1


def test_a_channel_shows_the_very_commit_that_another_showed(product: _Product) -> None:
    product.write("1.0")
    product.point(_opened("1.0", channel="beta"))
    product.point(_opened("1.0", channel="beta"), _opened("1.0"))
    assert product.head() == product.head("kiosk/x86_64/shop/beta")


def test_after_a_recall_the_good_tree_comes_again_as_something_newer(product: _Product) -> None:
    product.write("1.0", at=_TIME)
    product.point(_opened("1.0"))
    good = product.repository.commit(product.head())
    product.write("1.1", at=_TIME + 1)
    product.point(_opened("1.0", "1.1"))
    bad = product.head()
    recalled = {_release("1.1"): "it does not boot"}
    assert product.point(_opened("1.0"), recalled=recalled)
    again = product.repository.commit(product.head())
    assert (again.root_tree, again.root_meta) == (good.root_tree, good.root_meta)
    assert again.parent == bad
    assert again.timestamp > product.repository.commit(bad).timestamp
    assert again.ref_bindings == (_BRANCH,)
    assert again.subject == "1.0 again, because 1.1 is recalled: it does not boot"
    assert not product.point(_opened("1.0"), recalled=recalled)
    product.write("1.2", at=product.now + 1)
    product.point(_opened("1.0", "1.2"), recalled=recalled)
    assert product.repository.commit(product.head()).version == "1.2"


def test_a_recalled_release_with_nothing_good_before_it_is_shown_no_more(product: _Product) -> None:
    product.write("1.0")
    product.point(_opened("1.0"))
    assert not product.point(_opened())
    assert product.point(_opened(), recalled={_release("1.0"): "it burns"})
    assert product.shown() == {}
    assert product.repository.resolve(_BRANCH) is None


def test_two_channels_cannot_have_one_branch(tmp_path: Path) -> None:
    product = _Product(tmp_path, branch="{product}/{arch}/{variant}")
    product.write("1.0")
    with pytest.raises(BadOstreeSettingError, match="stable and another channel"):
        product.point(_opened("1.0", channel="beta"), _opened("1.0"))


def test_a_release_older_than_what_devices_have_is_committed_anew(product: _Product) -> None:
    product.write("1.0", at=_TIME)
    product.write("1.1", at=_TIME + 1)
    product.write("1.2", at=_TIME + 2)
    product.point(_opened("1.2"))
    product.point(_opened("1.1"), recalled={})
    again = product.repository.commit(product.head())
    assert again.version == "1.1"
    assert again.timestamp >= _TIME + 2


def test_builds_of_one_source_date_follow_by_their_history(product: _Product) -> None:
    product.write("1.0")
    product.point(_opened("1.0"))
    product.write("1.1")
    product.point(_opened("1.0", "1.1"))
    head = product.repository.commit(product.head())
    assert head.version == "1.1"
    assert head.subject.startswith("Build")


def test_commits_are_bound_to_the_branches_that_may_show_them(tmp_path: Path) -> None:
    product = _Product(tmp_path, bound_channels=["stable", "beta"])
    product.write("1.0")
    product.point(_opened("1.0"), _opened("1.0", channel="canary"))
    assert product.repository.commit(product.head()).ref_bindings == ("kiosk/x86_64/shop/beta", _BRANCH)
    canary = product.repository.commit(product.head("kiosk/x86_64/shop/canary"))
    assert canary.ref_bindings == ("kiosk/x86_64/shop/canary",)


def test_branches_can_be_named_as_refkit_names_them(tmp_path: Path) -> None:
    product = _Product(tmp_path, branch="{product}/{arch}/{variant}")
    product.write("1.0")
    product.point(_opened("1.0"))
    assert product.repository.commit(product.head("kiosk/x86_64/shop")).ref_bindings == ("kiosk/x86_64/shop",)


def test_the_image_repository_has_the_served_commit_alone(tmp_path: Path) -> None:
    product = _Product(tmp_path, branch="{product}/{arch}/{variant}", image_repository="images/{variant}-{arch}")
    for number, version in enumerate(("1.0", "1.1")):
        product.write(version, at=_TIME + number)
        product.point(_opened(*("1.0", "1.1")[: number + 1]))
    image = ArchiveRepository(tmp_path / "images/shop-x86_64")
    assert image.branches() == {"kiosk/x86_64/shop": product.head("kiosk/x86_64/shop")}
    assert sum(name.type is ObjectType.COMMIT for name in image.present()) == 1
    assert image.reachable(product.head("kiosk/x86_64/shop")) >= image.present()
    assert not product.write("1.1", at=_TIME + 1)


def test_files_that_are_there_are_not_packed_again(product: _Product) -> None:
    product.write("1.0", content="same")
    before = {name for name in product.repository.present() if name.type is ObjectType.FILE}
    product.write("1.1", content="same")
    assert {name for name in product.repository.present() if name.type is ObjectType.FILE} == before


def test_a_run_that_died_before_its_end_is_finished(product: _Product) -> None:
    product.write("1.0")
    product.write("1.1", at=_TIME + 1)
    repository = product.repository
    newest = "releases-newest/shop/x86_64"
    commit = repository.resolve(newest)
    assert commit is not None
    parent = repository.commit(commit).parent
    assert parent is not None
    repository.set_branch(newest, parent)
    for delta in (product.directory / "deltas").glob("*/*"):
        for file in delta.iterdir():
            file.unlink()
        delta.rmdir()
    assert product.write("1.1", at=_TIME + 1)
    assert repository.resolve(newest) == commit
    assert set(deltas_in(repository)) == {(parent, commit)}


def test_opening_what_was_never_written_is_refused(product: _Product) -> None:
    with pytest.raises(UnwrittenReleaseError, match=r"kiosk/shop/x86_64 1\.0"):
        product.point(_opened("1.0"))


def test_nothing_opened_makes_no_repository(product: _Product) -> None:
    assert not product.point(_opened())
    assert not product.directory.exists()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"unsigned": False}, "nothing would be signed"),
        ({"gpg_home": "keys"}, "need one another"),
        ({"layout": "odd"}, "neither refkit"),
        ({"branch": "{nothing}"}, "unknown field"),
        ({"branch": "../{product}"}, "no branch name"),
        ({"branch": "{product.__class__}"}, "no branch name"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(tmp_path: Path, settings: dict[str, object], reason: str) -> None:
    with pytest.raises(BadOstreeSettingError, match=reason):
        _Product(tmp_path, **settings)


def test_names_that_refs_do_not_take_are_escaped_without_clashes(tmp_path: Path) -> None:
    product = _Product(tmp_path)
    for version in ("1.0", "1.0~rc1", "1.0+1", "1.0_7e_rc1"):
        product.write(version)
    releases = [name for name in product.repository.branches() if name.startswith("releases/shop/x86_64/")]
    assert len(releases) == 4
