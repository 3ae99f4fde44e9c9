"""The ways to a version: `check` applies what devices would, and names whatever would not make what it says."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from tests.swupd_trees import PLAIN, Tree, build, lines, write_tree

from overhaul.dialects.swupd.checking import Checked, check_tree
from overhaul.dialects.swupd.published import manifest_hash
from overhaul.progress import Silence

NOISE = random.Random(9)
LIBRARY = NOISE.randbytes(30_000)
CHANGED = LIBRARY[:9000] + b"changed" + LIBRARY[9000:]
FIRST: Tree = {"/usr/lib/libx.so.1.2": LIBRARY, "/usr/bin/tool": LIBRARY[::-1], "/usr/share": None}
SECOND: Tree = {
    "/usr/lib/libx.so.1.3": CHANGED,
    "/usr/bin/tool": CHANGED[::-1],
    "/usr/share": None,
    "/usr/new": b"new!!",
}
#: Bytes of packs can be found and spoilt.
OPEN = replace(PLAIN, compression="none")


def publish(work: Path, *trees: Tree, format_number: int = 4) -> Path:
    web = work / "www"
    for number, tree in enumerate(trees, 1):
        root = write_tree(work / "root", tree)
        options = replace(OPEN, format=format_number)
        build(web, root, version=10 * number, previous=10 * number - 10, options=options)
    return web


def check(web: Path) -> Checked:
    return check_tree(web, certificate=None, progress=Silence())


def spoil(file: Path, found: bytes, put: bytes) -> None:
    data = file.read_bytes()
    assert data.count(found) == 1
    file.write_bytes(data.replace(found, put))


def test_a_tree_that_shows_no_version_is_not_right(tmp_path: Path) -> None:
    (problem,) = check(tmp_path / "www").problems
    assert "devices see no version" in problem


@pytest.mark.parametrize("format_number", [3, 4])
def test_packs_from_every_older_version_are_applied(tmp_path: Path, format_number: int) -> None:
    third = {**SECOND, "/usr/bin/tool": LIBRARY[::-1] + b"third"}
    web = publish(tmp_path, FIRST, SECOND, third, format_number=format_number)
    found = check(web)
    assert found.problems == ()
    # From version 10 the library and the tool, from version 20 the tool.
    assert (found.deltas, found.untried_deltas) == (3, 0)


def test_a_delta_that_makes_something_else_is_named(tmp_path: Path) -> None:
    web = publish(tmp_path, FIRST, SECOND)
    digest = lines(web, 20)["/usr/lib/libx.so.1.3"].hash
    (delta,) = (web / "20/delta").glob(f"*-{digest}")
    whole = delta.read_bytes()
    spoil(web / "20/pack-os-core-from-10.tar", whole, whole[:-1] + bytes([whole[-1] ^ 1]))
    (problem,) = check(web).problems
    assert delta.name in problem


def test_an_object_under_a_wrong_name_is_named(tmp_path: Path) -> None:
    web = publish(tmp_path, FIRST, SECOND)
    for pack in ("pack-os-core-from-10.tar", "pack-os-core-from-0.tar"):
        spoil(web / "20" / pack, b"new!!", b"old!!")
    problems = check(web).problems
    digest = lines(web, 20)["/usr/new"].hash
    assert len(problems) == 2
    assert all(digest in problem for problem in problems)


def test_a_pack_that_is_cut_short_is_named(tmp_path: Path) -> None:
    web = publish(tmp_path, FIRST, SECOND)
    pack = web / "20/pack-os-core-from-10.tar"
    pack.write_bytes(pack.read_bytes()[: pack.stat().st_size // 2])
    (problem,) = check(web).problems
    assert str(pack) in problem


def test_a_manifest_delta_that_makes_another_manifest_is_named(tmp_path: Path) -> None:
    web = publish(tmp_path, FIRST, SECOND)
    (web / "20/Manifest-os-core-delta-from-10").write_bytes(b"BSDIFF4V")
    (problem,) = check(web).problems
    assert "Manifest-os-core-delta-from-10" in problem


def test_a_change_that_devices_would_not_see_is_named(tmp_path: Path) -> None:
    web = publish(tmp_path, FIRST, SECOND)
    line = lines(web, 20)["/usr/bin/tool"]
    manifest, mom = web / "20/Manifest.os-core", web / "20/Manifest.MoM"
    before = manifest_hash(manifest.read_bytes())
    spoil(manifest, f"{line.hash}\t20\t".encode(), f"{line.hash}\t10\t".encode())
    spoil(mom, before.encode(), manifest_hash(manifest.read_bytes()).encode())
    (web / f"20/files/{line.hash}.tar").rename(web / f"10/files/{line.hash}.tar")
    (web / "20/Manifest-os-core-delta-from-10").unlink()
    (problem,) = check(web).problems
    assert "/usr/bin/tool" in problem
    assert "keep what they have" in problem


def test_a_delta_whose_old_object_was_pruned_is_counted(tmp_path: Path) -> None:
    web = publish(tmp_path, FIRST, SECOND)
    old = lines(web, 10)["/usr/bin/tool"].hash
    (web / f"10/files/{old}.tar").unlink()
    found = check(web)
    assert (found.problems, found.deltas, found.untried_deltas) == ((), 1, 1)
