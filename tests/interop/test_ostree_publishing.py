"""The publisher beside real ostree: at the same time, killed at every step, pruned, exported, deployed and served."""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.crash.killing import run_killed_at
from tests.gpg_keys import gpg_home
from tests.ostree_trees import BRANCH, TIME, commit_ours, make_tree, ostree
from tests.tools import need

from overhaul.cli.ostree import command
from overhaul.dialects.ostree.archive import ArchiveRepository, ClashingBranchError, UnusableRepositoryError
from overhaul.dialects.ostree.commit import CommitEntry, TreeCommitter, UncommittableTreeError
from overhaul.dialects.ostree.exporting import Export, Exported, export
from overhaul.dialects.ostree.heads import deltas_in, move_heads
from overhaul.dialects.ostree.pruning import prune
from overhaul.progress import Silence


def _export(base: Path, edition: int, *, at: int, image: bool = False) -> Exported:
    tree = base / f"tree{edition}"
    if not tree.exists():
        make_tree(tree, edition=edition)
        (tree / "usr/lib/os-release").write_text("ID=kiosk\nPRETTY_NAME=Kiosk\n")
    request = Export(
        tree=tree,
        repository=base / "repo",
        branch=BRANCH,
        image_repository=base / "image" if image else None,
        needs_kernel=False,
        timestamp=at,
    )
    return export(request, signers=[], workers=2, progress=Silence())


def test_an_export_goes_on_where_the_last_one_ended_and_repeats_nothing(tmp_path: Path) -> None:
    first = _export(tmp_path, 1, at=TIME, image=True)
    assert first.is_new
    again = _export(tmp_path, 1, at=TIME + 50, image=True)
    assert (again.is_new, again.commit, again.new_objects) == (False, first.commit, 0)
    second = _export(tmp_path, 2, at=TIME + 100, image=True)
    repository = ArchiveRepository(tmp_path / "repo")
    assert repository.commit(bytes.fromhex(second.commit)).parent == bytes.fromhex(first.commit)
    assert ArchiveRepository(tmp_path / "image").branches() == {BRANCH: bytes.fromhex(second.commit)}
    assert len(second.deltas) == 1
    for repo in (tmp_path / "repo", tmp_path / "image"):
        assert "no errors found" in ostree("fsck", repo=repo)


def test_a_fresh_device_of_the_image_sees_no_update(tmp_path: Path) -> None:
    """refkit committed once more to publish, so that every fresh device updated to what it had."""
    _export(tmp_path, 1, at=TIME)
    _export(tmp_path, 2, at=TIME + 1, image=True)
    device = tmp_path / "device"
    ostree("init", "--mode=bare-user", repo=device)
    ostree("pull-local", "--remote=updates", tmp_path / "image", BRANCH, repo=device)
    before = ostree("rev-parse", f"updates:{BRANCH}", repo=device)
    ostree("remote", "add", "--no-gpg-verify", "updates", f"file://{tmp_path / 'repo'}", repo=device)
    ostree("pull", "updates", BRANCH, repo=device)
    assert ostree("rev-parse", f"updates:{BRANCH}", repo=device) == before


def test_an_export_killed_at_any_step_leaves_the_old_state_or_the_new_and_is_finished_by_the_next(
    tmp_path: Path,
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    old = _export(base, 1, at=TIME).commit
    make_tree(base / "tree2", edition=2)
    (base / "tree2/usr/lib/os-release").write_text("ID=kiosk\n")
    point = 0
    heads = set()
    while True:
        work = tmp_path / "work"
        subprocess.run(["cp", "-a", base, work], check=True)
        passed = run_killed_at(lambda: _ignore(_export(tmp_path / "work", 2, at=TIME + 1)), point)
        repository = ArchiveRepository(work / "repo")
        head = repository.resolve(BRANCH)
        assert head is not None
        heads.add(head.hex())
        assert all(map(repository.has, (name for name in repository.reachable(head) if name.type != 6)))
        done = _export(work, 2, at=TIME + 1)
        assert repository.resolve(BRANCH) == bytes.fromhex(done.commit)
        assert len(deltas_in(repository)) == 1
        assert not list((work / "repo/tmp").glob("overhaul-*"))
        if point % 40 == 0:
            assert "no errors found" in ostree("fsck", repo=work / "repo")
        subprocess.run(["rm", "-rf", work], check=True)
        if passed is not None:
            break
        point += 1 if point < 20 else 3
    assert heads == {old, done.commit}
    assert point > 40


def _ignore(_value: object) -> None:
    """Take a result that nobody wants."""


def test_real_ostree_commits_and_prunes_while_we_publish(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    tree = make_tree(tmp_path / "theirs")
    ours = ArchiveRepository.create(repo)
    script = "for i in 1 2 3 4 5 6; do ostree --repo=$1 commit -b theirs/$i --tree=dir=$2 -s $i || exit 1; done"
    script += "; ostree --repo=$1 prune --refs-only || exit 1; ostree --repo=$1 summary -u"
    with subprocess.Popen(
        [need("sh"), "-c", script, "sh", repo, tree], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as busy:
        for number in range(4):
            root = make_tree(tmp_path / f"ours{number}", edition=number + 1)
            commit_ours(ours, root, at=TIME + number)
            with ours.writing():
                move_heads(ours, {}, signers=[], now=TIME + number)
        assert busy.stderr is not None
        said = busy.stderr.read().decode()
        assert busy.wait() == 0, said
    with ours.writing():
        move_heads(ours, {}, signers=[], now=TIME + 99)
    assert "no errors found" in ostree("fsck", repo=repo)
    assert set(ours.branches()) == {BRANCH, *(f"theirs/{number}" for number in range(1, 7))}
    assert len(ostree("remote", "add", "--no-gpg-verify", "self", f"file://{repo}", repo=repo)) == 0
    assert set(ostree("remote", "refs", "self", repo=repo).split()) == {f"self:{name}" for name in ours.branches()}


def test_we_wait_for_the_lock_that_real_ostree_holds(tmp_path: Path) -> None:
    """Our exclusive lock keeps a real `ostree prune` out, and our shared one keeps it out, too."""
    ours = ArchiveRepository.create(tmp_path / "repo")
    commit_ours(ours, make_tree(tmp_path / "tree"))
    ostree("config", "set", "core.lock-timeout-secs", "0", repo=ours.path)
    for lock in (ours.alone, ours.adding):
        with lock():
            assert "lock" in ostree("prune", repo=ours.path, status=1).lower()
    ostree("prune", repo=ours.path)


def test_pruning_keeps_what_devices_need_and_nothing_else(tmp_path: Path) -> None:
    ours = ArchiveRepository.create(tmp_path / "repo")
    commits = []
    for number in range(5):
        tree = make_tree(tmp_path / f"tree{number}", edition=number + 2)
        commits.append(bytes.fromhex(commit_ours(ours, tree, at=TIME + number * 86_400)))
    for source, target in ((commits[0], commits[1]), (commits[3], commits[4])):
        ostree("static-delta", "generate", f"--from={source.hex()}", f"--to={target.hex()}", repo=ours.path)
    now = TIME + 4 * 86_400 + 10.0
    with ours.writing():
        told = prune(ours, depth=1, keep_s=0, now=now, dry_run=True)
        before = ours.present()
        assert told.commits
        done = prune(ours, depth=1, keep_s=0, now=now)
        assert done == told
        assert len(before) - len(ours.present()) == done.objects
        assert prune(ours, depth=1, keep_s=0, now=now).objects == 0
    assert set(done.commits) == {commit.hex() for commit in commits[:3]}
    assert set(deltas_in(ours)) == {(commits[3], commits[4])}
    assert "no errors found" in ostree("fsck", repo=ours.path)
    device = tmp_path / "device"
    ostree("init", "--mode=bare-user", repo=device)
    ostree("remote", "add", "--no-gpg-verify", "updates", f"file://{ours.path}", repo=device)
    ostree("pull", "updates", BRANCH, repo=device)


def test_young_commits_stay_whatever_their_depth(tmp_path: Path) -> None:
    ours = ArchiveRepository.create(tmp_path / "repo")
    for number in range(4):
        commit_ours(ours, make_tree(tmp_path / f"tree{number}", edition=number + 2), at=TIME + number)
    with ours.writing():
        assert prune(ours, depth=0, keep_s=1000, now=TIME + 10.0).objects == 0
        assert len(prune(ours, depth=0, keep_s=1000, now=TIME + 5000.0).commits) == 3


def test_ostree_deploys_an_exported_tree(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "rootfs")
    (tree / "usr/lib/os-release").write_text("ID=kiosk\nPRETTY_NAME=Kiosk 1\n")
    (tree / "etc").mkdir()
    (tree / "etc/issue").write_text("welcome\n")
    (tree / "boot").mkdir()
    (tree / "boot/vmlinuz-6.1").write_text("kernel")
    (tree / "boot/initrd.img-6.1").write_text("initramfs")
    request = Export(tree=tree, repository=tmp_path / "repo", branch=BRANCH, version="1.0", timestamp=TIME)
    done = export(request, signers=[], workers=2, progress=Silence())
    sysroot = tmp_path / "sysroot"
    sysroot.mkdir()
    try:
        ostree("admin", "init-fs", sysroot)
        ostree("admin", "os-init", f"--sysroot={sysroot}", "kiosk")
        ostree("pull-local", "--remote=updates", tmp_path / "repo", BRANCH, repo=sysroot / "ostree/repo")
        ostree("admin", "deploy", f"--sysroot={sysroot}", "--os=kiosk", f"updates:{BRANCH}")
        deployed = sysroot / f"ostree/deploy/kiosk/deploy/{done.commit}.0"
        assert (deployed / "etc/issue").read_text() == "welcome\n"
        assert (deployed / "usr/bin/tool").stat().st_mode & 0o7777 == 0o4755
        assert done.commit in ostree("admin", "status", f"--sysroot={sysroot}")
        entries = list((sysroot / "boot/loader/entries").glob("*.conf"))
        assert "Kiosk 1" in entries[0].read_text()
    finally:
        subprocess.run(["chattr", "-R", "-i", sysroot], check=False, capture_output=True)


def _run(*arguments: str | Path, environment: Mapping[str, str] | None = None, code: int = 0) -> str:
    done = CliRunner().invoke(command, list(map(str, arguments)), env=environment or {}, catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


def test_the_commands_take_the_old_settings_from_the_environment(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / "usr/lib/os-release").write_text("ID=kiosk\n")
    with gpg_home("good@example.org") as home:
        old = {"OSTREE_GPGDIR": str(home), "OSTREE_GPGID": "good@example.org", "SOURCE_DATE_EPOCH": str(TIME)}
        for name in ("OSTREE_EXPORT", "OSTREE_REPO"):
            repo = tmp_path / name
            said = _run(
                "commit", tree, "--branch", BRANCH, "--no-kernel", "--json", environment={**old, name: str(repo)}
            )
            assert json.loads(said)["new"] is True
            device = tmp_path / f"device-{name}"
            ostree("init", "--mode=bare-user", repo=device)
            _run("remote", "--into", device, environment={**old, "OSTREE_REMOTE": f"file://{repo}"})
            ostree("config", "set", 'remote "updates".gpg-verify-summary', "true", repo=device)
            ostree("pull", "updates", BRANCH, repo=device)
        (tree / "usr/lib/more").write_text("more")
        said = _run("commit", tree, "--branch", BRANCH, "--no-kernel", environment={**old, "OSTREE_REPO": str(repo)})
        assert re.search("delta   from [0-9a-f]{12}: ", said)
        assert BRANCH in _run("list", repo)
        for name in ("OSTREE_EXPORT", "OSTREE_REPO"):
            assert BRANCH in _run("list", environment={name: str(repo)})
        assert "Made a delta" in _run("delta", repo, BRANCH, "--from-nothing", environment=old)
        assert "is current" in _run("summary", environment={**old, "OSTREE_REPO": str(repo)})
        assert "Wrote" in _run("summary", repo, "--force", environment=old)
        assert "Would remove 1 commits" in _run("prune", repo, "--depth", "0", "--keep-days", "0", "--dry-run")
        assert "Removed 1 commits" in _run("prune", repo, "--depth", "0", "--keep-days", "0", environment=old)
        ostree("pull", "updates", BRANCH, repo=device)


def test_a_commit_without_a_key_has_to_be_asked_for(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    nothing = {"OSTREE_GPGDIR": "", "OSTREE_GPGID": "", "OSTREE_EXPORT": str(tmp_path / "repo")}
    assert "--unsigned" in _run("commit", tree, "--branch", BRANCH, code=2, environment=nothing)
    assert not (tmp_path / "repo").exists()


def test_a_plan_is_printed_and_nothing_written(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / "usr/lib/os-release").write_text("ID=kiosk\n")
    assert "sysroot: empty directory added" in _run("prepare", tree, "--plan", "--no-kernel")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]
    assert "Wrote" in _run("prepare", tree, tmp_path / "out", "--no-kernel")
    assert "prepared already" in _run("prepare", tmp_path / "out", "--plan", "--no-kernel")


def test_trees_and_repositories_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    ours = ArchiveRepository.create(tmp_path / "repo")
    tree = make_tree(tmp_path / "tree")
    os.mkfifo(tree / "usr/pipe")
    with pytest.raises(UncommittableTreeError, match="pipe"):
        commit_ours(ours, tree)
    (tree / "usr/pipe").unlink()
    (Path(os.fsdecode(os.fsencode(tree) + b"/usr/\xff"))).touch()
    with pytest.raises(UncommittableTreeError, match="UTF-8"):
        commit_ours(ours, tree)
    assert ours.branches() == {}
    ostree("init", "--mode=bare-user", repo=tmp_path / "bare")
    for place in (tmp_path / "bare", tmp_path / "nothing"):
        with pytest.raises(UnusableRepositoryError):
            ArchiveRepository(place)
    entry = CommitEntry(path=b"a/b", mode=0o100644, uid=0, gid=0)
    with ours.batch() as batch, pytest.raises(UncommittableTreeError, match="directory is not part"):
        TreeCommitter(ours, batch, [CommitEntry(path=b"", mode=0o40755, uid=0, gid=0), entry]).finish()
    commit_ours(ours, make_tree(tmp_path / "good"))
    with pytest.raises(ClashingBranchError, match="inside or above"):
        commit_ours(ours, tmp_path / "good", branch=f"{BRANCH}/deeper")
