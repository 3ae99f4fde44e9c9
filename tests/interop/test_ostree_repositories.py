"""Repositories of ours and of Debian's ostree are one format: each reads, checks and pulls what the other wrote."""

from pathlib import Path

import pytest
from tests.ostree_trees import BRANCH, TIME, commit_ours, commit_theirs, make_tree, ostree

from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.commit import copy_commit
from overhaul.dialects.ostree.filez import file_checksum
from overhaul.dialects.ostree.objects import ObjectType


@pytest.fixture
def trees(tmp_path: Path) -> tuple[Path, Path]:
    """Return two editions of a tree."""
    return make_tree(tmp_path / "one"), make_tree(tmp_path / "two", edition=2)


def test_a_tree_gets_the_commit_that_ostree_gives_it(tmp_path: Path, trees: tuple[Path, Path]) -> None:
    ours = ArchiveRepository.create(tmp_path / "ours")
    ostree("init", "--mode=archive", repo=tmp_path / "theirs")
    for number, tree in enumerate(trees):
        assert commit_ours(ours, tree, at=TIME + number) == commit_theirs(tmp_path / "theirs", tree, at=TIME + number)
    assert ours.present() == ArchiveRepository(tmp_path / "theirs").present()


def test_ostree_checks_lists_logs_and_checks_out_our_repository(tmp_path: Path, trees: tuple[Path, Path]) -> None:
    ours = ArchiveRepository.create(tmp_path / "ours")
    for number, tree in enumerate(trees):
        head = commit_ours(ours, tree, at=TIME + number)
    assert "no errors found" in ostree("fsck", repo=ours.path)
    assert "/usr/lib/größe" in ostree("ls", "-RCX", BRANCH, repo=ours.path)
    log = ostree("log", BRANCH, repo=ours.path)
    assert log.count("commit ") == 2
    assert f"commit {head}" in log
    assert "Version: 1.0" in ostree("show", BRANCH, repo=ours.path)
    ostree("checkout", "-U", BRANCH, tmp_path / "out", repo=ours.path)
    assert (tmp_path / "out/usr/bin/tool").read_bytes() == (trees[1] / "usr/bin/tool").read_bytes()
    assert "usr/lib/goes" in ostree("diff", f"{BRANCH}^", BRANCH, repo=ours.path)


def test_we_read_and_check_every_object_of_ostrees_repository(tmp_path: Path, trees: tuple[Path, Path]) -> None:
    repo = tmp_path / "theirs"
    ostree("init", "--mode=archive", repo=repo)
    head = commit_theirs(repo, trees[0])
    theirs = ArchiveRepository(repo)
    assert theirs.branches() == {BRANCH: bytes.fromhex(head)}
    files = 0
    for name in theirs.reachable(bytes.fromhex(head)):
        if name.type is ObjectType.FILE:
            with theirs.open_file(name.checksum) as filez:
                assert file_checksum(filez.header, b"".join(filez.content())) == name.checksum
            files += 1
        elif name.type is not ObjectType.COMMITMETA:
            theirs.read(name)
    assert files == len({name for name in theirs.present() if name.type is ObjectType.FILE})


def test_a_commit_copied_to_another_repository_keeps_its_name_and_is_whole(
    tmp_path: Path, trees: tuple[Path, Path]
) -> None:
    common = ArchiveRepository.create(tmp_path / "common")
    for number, tree in enumerate(trees):
        head = commit_ours(common, tree, at=TIME + number)
    image = ArchiveRepository.create(tmp_path / "image")
    assert copy_commit(common, image, bytes.fromhex(head)) == len(image.present())
    image.set_branch(BRANCH, bytes.fromhex(head))
    ostree("fsck", repo=image.path)
    assert ostree("rev-parse", BRANCH, repo=image.path).strip() == head
    assert copy_commit(common, image, bytes.fromhex(head)) == 0


def test_ostree_pulls_from_our_repository_whole_and_then_what_is_new(tmp_path: Path, trees: tuple[Path, Path]) -> None:
    ours = ArchiveRepository.create(tmp_path / "ours")
    device = tmp_path / "device"
    ostree("init", "--mode=bare-user", repo=device)
    ostree("remote", "add", "--no-gpg-verify", "updates", f"file://{ours.path}", repo=device)
    for number, tree in enumerate(trees):
        head = commit_ours(ours, tree, at=TIME + number)
        ostree("pull", "updates", BRANCH, repo=device)
        assert ostree("rev-parse", f"updates:{BRANCH}", repo=device).strip() == head
    ostree("fsck", repo=device)
