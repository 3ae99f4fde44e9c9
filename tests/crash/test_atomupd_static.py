"""A static server that is killed at any moment leaves whole files only, and the next run ends what it began."""

import os
import shutil
from pathlib import Path

import msgspec

from overhaul.dialects.atomupd.static_cli import main
from tests.atomupd_pools import put_image, write_configuration
from tests.crash.killing import run_killed_at


def _files(tree: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in tree.rglob("*") if path.is_file() and path.name[0] != "."}


def test_a_tree_that_was_being_written_is_whole_after_the_next_run(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    put_image(pool, "3.7.1", "20240101")
    configuration = write_configuration(tmp_path / "s.conf", pool, Branches="stable")
    first = tmp_path / "first"
    first.mkdir()
    before = Path.cwd()
    os.chdir(first)
    try:
        assert main(["-c", str(configuration)]) == 0
        old = _files(first)
        put_image(pool, "3.7.2", "20240102")
        point, passed = 0, None
        while passed is None:
            tree = Path(shutil.copytree(first, tmp_path / f"killed {point}"))
            os.chdir(tree)
            passed = run_killed_at(lambda: _generated(configuration), point)
            found = _files(tree)
            # Each name holds the old bytes or the new ones, never a part of them.
            assert all(msgspec.json.decode(data) is not None for data in found.values())
            assert old.keys() <= found.keys()
            assert main(["-c", str(configuration)]) == 0
            assert b"20240102.0" in _files(tree)["20240101.0.json"]
            assert not [path for path in tree.rglob("*") if path.name.endswith(".tmp")]
            point += 1
    finally:
        os.chdir(before)

    assert passed > 5


def _generated(configuration: Path) -> None:
    assert main(["-c", str(configuration)]) == 0
