"""What `overhaul ostree` says to people who mistype: the right name of what is wrong, and what to do."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.ostree_trees import BRANCH, commit_ours, make_tree

from overhaul.cli.ostree import command
from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.exporting import Export, add_remote, export
from overhaul.dialects.ostree.signatures import SigningFailedError
from overhaul.errors import OverhaulError
from overhaul.progress import Silence


@pytest.fixture
def ours(tmp_path: Path) -> ArchiveRepository:
    repository = ArchiveRepository.create(tmp_path / "repo")
    commit_ours(repository, make_tree(tmp_path / "tree"))
    return repository


def said(*arguments: object) -> str:
    """Return the sentence with which a command ends."""
    done = CliRunner().invoke(command, [str(one) for one in arguments])
    assert isinstance(done.exception, OverhaulError), done.output
    return str(done.exception)


@pytest.mark.parametrize("name", ["kiosk/x86_64/shpo", "a" * 64, "abcdef"])
def test_a_name_of_nothing_is_told_with_where_to_look(ours: ArchiveRepository, name: str) -> None:
    for arguments in ((ours.path, name), (ours.path, BRANCH, "--from", name)):
        sentence = said("delta", *arguments, "--unsigned")
        assert sentence == (
            f"{ours.path} has no branch and no commit {name}; `overhaul ostree list {ours.path}` shows what it has."
        )


@pytest.mark.parametrize("branch", ["kiosk", "kiosk/x86_64", f"{BRANCH}/deeper", f"{BRANCH}/deeper/still"])
def test_a_branch_that_clashes_is_refused_before_the_tree_is_read(
    ours: ArchiveRepository, tmp_path: Path, branch: str
) -> None:
    before = ours.present()
    tree = make_tree(tmp_path / "other", edition=2)
    sentence = said("commit", tree, "--repository", ours.path, "--branch", branch, "--unsigned", "--no-kernel")
    assert f"cannot have the branch {branch}" in sentence
    assert ours.present() == before


class LostKey:
    """A key whose token was taken out."""

    metadata_key = "ostree.gpgsigs"

    def sign(self, data: bytes) -> bytes:
        """Refuse."""
        raise SigningFailedError(key="lost", reason=f"{len(data)} bytes and no token")


def test_a_key_that_does_not_sign_is_told_before_the_tree_is_read(ours: ArchiveRepository, tmp_path: Path) -> None:
    before = ours.present()
    tree = make_tree(tmp_path / "other", edition=2)
    request = Export(tree=tree, repository=ours.path, branch=BRANCH, layout=None, timestamp=1)
    with pytest.raises(SigningFailedError):
        export(request, signers=[LostKey()], workers=1, progress=Silence())
    assert ours.present() == before


def test_a_remote_that_no_client_could_use_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[core]\nrepo_version=1\nmode=bare\n")
    before = (tmp_path / "config").read_text()
    for name, url, reason in (
        ("updates", "ftp://there/", "no https, http or file address"),
        ("updates", "https://there/\ngpg-verify=false", "no https, http or file address"),
        ('up"]', "https://there/", "letters, digits"),
    ):
        with pytest.raises(OverhaulError, match=reason):
            add_remote(tmp_path, name=name, url=url, keys=b"")
    assert (tmp_path / "config").read_text() == before


def test_a_remote_that_leads_elsewhere_is_left_and_told(tmp_path: Path) -> None:
    (tmp_path / "config").write_text('[core]\nmode=bare\n\n[remote "updates"]\nurl=https://here/\n')
    with pytest.raises(OverhaulError, match="remote updates with another URL; take it out with `ostree remote delete"):
        add_remote(tmp_path, name="updates", url="https://there/", keys=b"")
    with pytest.raises(OverhaulError, match="SYSROOT/ostree/repo"):
        add_remote(tmp_path / "nothing", name="updates", url="https://there/", keys=b"")
