"""Whatever two trees follow one another, a device can make the second: every line leads to the object it names."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.swupd_trees import Line, Tree, build, lines, oracle_hash, write_tree

from overhaul.dialects.swupd.checking import check_tree
from overhaul.progress import Silence

_PARTS = st.sampled_from(("a", "b", "usr", "boot", "ü", "odd name", "x.1", "x.2"))
_PATHS = st.lists(_PARTS, min_size=1, max_size=3).map(lambda parts: "/" + "/".join(parts))
_OBJECTS = st.one_of(
    st.none(), st.binary(max_size=40).map(lambda data: data * 30), st.sampled_from(("a", "../b", "/x"))
)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Return a tree in which nothing lies below what is no directory."""
    tree: Tree = {}
    for path, what in sorted(draw(st.dictionaries(_PATHS, _OBJECTS, max_size=12)).items()):
        above = [path.rsplit("/", count)[0] for count in range(1, path.count("/"))]
        if all(tree.get(folder) is None for folder in above):
            tree[path] = what
    return tree


def core(web: Path, version: int) -> dict[str, Line]:
    """Return the lines of os-core in a version; without a change they stand in an older one's directory."""
    return lines(web, lines(web, version, "MoM")["os-core"].version)


@settings(max_examples=15, suppress_health_check=list(HealthCheck))
@given(st.lists(trees(), min_size=2, max_size=3))
def test_any_versions_in_a_row_are_whole(versions: list[Tree]) -> None:
    work = Path(tempfile.mkdtemp())
    try:
        web = work / "www"
        for number, tree in enumerate(versions, 1):
            root = write_tree(work / "root", tree)
            build(web, root, version=10 * number, previous=10 * number - 10)
            listed = {name: line for name, line in core(web, 10 * number).items() if line.flags[1] == "."}
            assert listed.keys() == {f"/{path.relative_to(root)}" for path in root.rglob("*")}
            for name, line in listed.items():
                assert oracle_hash(root / name[1:]) == line.hash
                assert (web / f"{line.version}/files/{line.hash}.tar").is_file()
            before = core(web, 10 * number - 10) if number > 1 else {}
            for name, line in before.items():
                now = core(web, 10 * number).get(name)
                # What is gone is said to be gone: only a ghost that was shown once may be missing.
                assert now is not None or line.flags == ".g.."
                if now is not None and (now.flags, now.hash) == (line.flags, line.hash):
                    assert now.version == line.version
            assert check_tree(web, certificate=None, progress=Silence()).problems == ()
    finally:
        shutil.rmtree(work)
