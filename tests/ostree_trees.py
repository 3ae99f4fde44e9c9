"""Trees, commits and the real `ostree` command, for tests of repositories."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from overhaul.content.tree import scan_tree
from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.commit import commit_tree, entries_of
from overhaul.dialects.ostree.gvariant import Variant
from overhaul.dialects.ostree.objects import Commit
from overhaul.dialects.ostree.signatures import Signer
from overhaul.progress import Silence
from tests.tools import need

BRANCH = "kiosk/x86_64/shop"
TIME = 1_700_000_000


def ostree(*arguments: str | Path, status: int = 0, repo: Path | None = None) -> str:
    """Run the real command; its words are what is returned."""
    place = [] if repo is None else [f"--repo={repo}"]
    done = subprocess.run(
        [need("ostree"), *map(str, arguments[:1]), *place, *map(str, arguments[1:])],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == status, done.stderr + done.stdout
    return done.stdout + done.stderr


def make_tree(root: Path, *, edition: int = 1) -> Path:
    """Make a tree with all that a commit can hold."""
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/lib/empty").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"#!/bin/sh\necho %d\n" % edition + bytes(range(256)) * 300)
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "usr/bin/same").write_bytes(b"never changes\n" * 1000)
    os.link(root / "usr/bin/same", root / "usr/bin/same-again")
    (root / "usr/bin/link").symlink_to("tool")
    (root / "usr/lib/größe").write_text(f"edition {edition}")
    (root / "usr/lib/empty-file").touch(mode=0o600)
    if edition == 1:
        (root / "usr/lib/goes").write_text("gone in the second")
    else:
        (root / "usr/lib/comes").write_text("new in the second")
    os.chown(root / "usr/lib/empty-file", 1000, 100)
    os.setxattr(root / "usr/lib/größe", "user.zeta", b"1")
    os.setxattr(root / "usr/lib/größe", "user.alpha", b"22")
    os.setxattr(root / "usr/lib/empty", "user.d", b"dirattr")
    (root / "usr/lib/empty").chmod(0o2775)
    return root


def commit_ours(
    repository: ArchiveRepository, root: Path, *, at: int = TIME, signers: Sequence[Signer] = (), branch: str = BRANCH
) -> str:
    """Commit a tree as `ostree commit` would."""
    with repository.writing():
        parent = repository.resolve(branch)
        return commit_tree(
            repository,
            root,
            entries_of(scan_tree(root)),
            lambda stored: Commit(
                timestamp=at,
                root_tree=stored.tree,
                root_meta=stored.meta,
                subject="a subject",
                body="a body",
                parent=parent,
                metadata={"version": Variant("s", "1.0"), "ostree.ref-binding": Variant("as", (branch,))},
            ),
            branch=branch,
            signers=signers,
            workers=2,
            progress=Silence(),
        ).hex()


def commit_theirs(repo: Path, root: Path, *, at: int = TIME) -> str:
    """Let the real command commit the same."""
    return ostree(
        "commit",
        f"--branch={BRANCH}",
        f"--tree=dir={root}",
        "--subject=a subject",
        "--body=a body",
        "--add-metadata-string=version=1.0",
        f"--timestamp=@{at}",
        repo=repo,
    ).strip()
