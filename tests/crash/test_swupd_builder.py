"""A builder is killed at every durable step and started again: devices see the old version or the new one, whole."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from overhaul.dialects.swupd.checking import check_tree
from overhaul.dialects.swupd.names import parse_version
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.storage import Storage
from overhaul.progress import Silence
from tests.crash.killing import run_killed_at
from tests.swupd_trees import TIMESTAMP, Tree, write_tree

OPTIONS = BuildOptions(workers=1, fullfile_level=0, pack_level=0)
TREE: Tree = {"/usr/lib/os-release": b"VERSION_ID=10\n", "/usr/bin/tool": b"tool" * 100}


def process(storage: Path, version: int) -> None:
    Storage(storage).process(version, options=OPTIONS, timestamp=TIMESTAMP, progress=Silence())


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    """Return a place in memory where there is one: what a killed process leaves is the same there, and syncing is not
    waited for some hundred times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as directory:
        yield Path(directory)


def test_a_builder_killed_anywhere_leaves_a_whole_tree_and_finishes_when_run_again(storage: Path) -> None:
    write_tree(storage / "image/10/os-core", TREE)
    process(storage, 10)
    write_tree(storage / "image/20/os-core", {**TREE, "/usr/bin/tool": b"tool" * 99 + b"new!", "/more": b"x"})
    web = storage / "www"
    expected = None
    point = 0
    while True:
        ended = run_killed_at(lambda: process(storage, 20), point)
        shown = parse_version((web / "version/format4/latest").read_bytes())
        assert shown in {10, 20}
        assert check_tree(web, certificate=None, progress=Silence()).problems == ()
        process(storage, 20)
        found = {
            path.relative_to(web): path.read_bytes()
            for path in sorted(web.rglob("*"))
            if path.is_file() and path.name != ".builder.lock"
        }
        assert not [path for path in found if path.parts[0].startswith(".")]
        expected = expected or found
        assert found == expected
        if ended is not None:
            break
        # Back to the state before: what the version added goes away, as if it had never been begun.
        for name in ("version/format4/latest", "version/latest_version"):
            (web / name).write_bytes(b"10\n")
        for name in ("LAST_VER", "latest.version"):
            (storage / "image" / name).write_bytes(b"10\n")
        write_tree(web / "20", {})
        (web / "20").rmdir()
        # The first points are dense and alike; each full file has the same five.
        point += 1 if point < 40 else 3
    assert point > 40
