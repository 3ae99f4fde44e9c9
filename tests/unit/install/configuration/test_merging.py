"""The three-way merge as values, and as trees that the kernel puts together."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tools import need

from overhaul.install.configuration.layers import write_upper
from overhaul.install.configuration.merging import Change, Fate, Merge, merge
from overhaul.install.configuration.scanning import scan
from overhaul.release.configuration import Node, NodeKind, Tree, holders_of, parent_of

ROOT = Node(kind=NodeKind.DIRECTORY, mode=0o755)


def file(text: bytes, mode: int = 0o644) -> Node:
    return Node(kind=NodeKind.FILE, mode=mode, size=len(text), sha256=hashlib.sha256(text).digest())


def directory(mode: int = 0o755) -> Node:
    return Node(kind=NodeKind.DIRECTORY, mode=mode)


def link(target: bytes) -> Node:
    return Node(kind=NodeKind.LINK, mode=0o777, target=target)


class Texts:
    """Contents by digest, whoever is asked."""

    def __init__(self, *texts: bytes) -> None:
        self.texts = {hashlib.sha256(text).digest(): text for text in texts}

    def base(self, _path: bytes, node: Node) -> bytes | None:
        return self.texts.get(node.sha256 or b"")

    here = release = base


def merged(
    base: Tree, here: Tree, release: Tree, *texts: bytes, keep: tuple[str, ...] = (), follow: tuple[str, ...] = ()
) -> Merge:
    trees = [{b"": ROOT, **tree} for tree in (base, here, release)]
    return merge(*trees, contents=Texts(*texts), keep=keep, follow=follow)


def fates(result: Merge) -> dict[bytes, Fate]:
    return {item.path: item.fate for item in result.items}


A, B, C = b"one\n", b"two\n", b"three\n"


@pytest.mark.parametrize(
    ("base", "here", "release", "fate", "result"),
    [
        (A, A, A, None, A),
        (A, B, A, Fate.KEPT, B),
        (A, A, B, Fate.TAKEN, B),
        (A, B, B, Fate.SAME, B),
        (A, B, C, Fate.CONFLICT, B),
        (None, B, None, Fate.KEPT, B),
        (None, None, B, Fate.TAKEN, B),
        (None, B, C, Fate.CONFLICT, B),
        (None, B, B, Fate.SAME, B),
        (A, None, A, Fate.KEPT, None),
        (A, A, None, Fate.TAKEN, None),
        (A, None, None, Fate.SAME, None),
        (A, None, B, Fate.CONFLICT, None),
        (A, B, None, Fate.CONFLICT, B),
    ],
)
def test_a_file_is_whose_it_was_changed_by(
    base: bytes | None, here: bytes | None, release: bytes | None, fate: Fate | None, result: bytes | None
) -> None:
    before, now, after = ({} if text is None else {b"x": file(text)} for text in (base, here, release))

    found = merged(before, now, after, A, B, C)

    assert fates(found).get(b"x") == fate
    assert (found.nodes[b"x"].node if b"x" in found.nodes else None) == (None if result is None else file(result))


def test_the_release_of_a_conflict_lies_beside() -> None:
    found = merged({b"x": file(A)}, {b"x": file(B)}, {b"x": file(C, 0o600)}, A, B, C)

    assert found.nodes[b"x.new"].node == file(C, 0o600)
    assert found.nodes[b"x.new"].data == C
    assert found.items[0].beside == b"x.new"


def test_nothing_that_is_shipped_under_that_name_is_overwritten() -> None:
    found = merged({b"x": file(A)}, {b"x": file(B)}, {b"x": file(C), b"x.new": file(A)}, A, B, C)

    assert found.nodes[b"x.new"].node == file(A)
    assert found.items[0].beside is None


def test_permissions_of_one_side_and_the_content_of_the_other_go_together() -> None:
    found = merged({b"x": file(A)}, {b"x": file(A, 0o600)}, {b"x": file(B)}, A, B)

    assert found.nodes[b"x"].node == file(B, 0o600)
    assert found.nodes[b"x"].data == B
    assert fates(found) == {b"x": Fate.MERGED}


def test_what_is_to_be_kept_stays_whatever_the_release_does() -> None:
    found = merged(
        {b"d": directory(), b"d/x": file(A)},
        {b"d": directory(), b"d/x": file(A)},
        {b"d": directory(), b"d/x": file(B)},
        keep=("/etc/d",),
    )  # fmt: skip

    assert found.nodes[b"d/x"].node == file(A)
    assert fates(found)[b"d/x"] is Fate.KEPT


def test_what_programs_make_follows_the_release() -> None:
    for here in ({b"ld.so.cache": file(B)}, {}):
        found = merged({b"ld.so.cache": file(A)}, here, {b"ld.so.cache": file(C)}, follow=("/etc/ld.so.cache",))

        assert found.nodes[b"ld.so.cache"].node == file(C)
        assert fates(found) == {b"ld.so.cache": Fate.TAKEN}


def test_a_directory_that_is_needed_here_stays_where_the_release_has_a_file() -> None:
    base: Tree = {b"d": directory(), b"d/x": file(A)}
    found = merged(base, {b"d": directory(), b"d/x": file(B)}, {b"d": file(C)}, A, B, C)

    assert found.nodes[b"d"].node == directory()
    assert found.nodes[b"d/x"].node == file(B)
    assert found.nodes[b"d.new"].node == file(C)
    assert fates(found)[b"d"] is Fate.CONFLICT


def test_what_the_release_puts_below_a_file_of_this_device_is_hidden_and_told() -> None:
    base: Tree = {b"d": directory()}
    found = merged(base, {b"d": link(b"/mnt")}, {b"d": directory(), b"d/x": file(A)}, A)

    assert found.nodes[b"d"].node == link(b"/mnt")
    assert b"d/x" not in found.nodes
    assert fates(found)[b"d/x"] is Fate.CONFLICT


def test_a_directory_removed_here_comes_back_for_what_the_release_adds() -> None:
    base: Tree = {b"d": directory(), b"d/x": file(A)}
    found = merged(base, {}, {**base, b"d/y": file(B)}, A, B)

    assert set(found.nodes) == {b"", b"d", b"d/y"}
    assert fates(found) == {b"d": Fate.TAKEN, b"d/x": Fate.KEPT, b"d/y": Fate.TAKEN}


def test_a_directory_removed_by_the_release_stays_for_what_was_added_here() -> None:
    base: Tree = {b"d": directory(), b"d/x": file(A)}
    found = merged(base, {**base, b"d/y": file(B)}, {}, A, B)

    assert set(found.nodes) == {b"", b"d", b"d/y"}
    assert found.items[0].release is Change.REMOVED


NAMES = st.sampled_from([b"a", b"b", b"b.new", b"\xff\n"])
CONTENTS = [b"", b"1\n2\n3\n", b"1\n2\n3\n4\n", b"0\n1\n2\n3\n", b"\0"]
LEAVES = st.one_of(
    st.builds(file, st.sampled_from(CONTENTS), st.sampled_from([0o644, 0o600])),
    st.builds(link, st.sampled_from([b"/x", b"y"])),
)


@st.composite
def trees(draw: st.DrawFn) -> dict[bytes, Node]:
    tree = {b"": directory()}
    for name in draw(st.sets(NAMES)):
        if draw(st.booleans()):
            tree[name] = draw(LEAVES)
            continue
        tree[name] = directory(draw(st.sampled_from([0o755, 0o700])))
        for below in draw(st.sets(NAMES)):
            tree[name + b"/" + below] = draw(LEAVES)
    return tree


def lay_out(tree: Tree, place: Path, texts: Texts) -> None:
    """Make a tree on disk."""
    for path in sorted(tree):
        node, name = tree[path], place / os.fsdecode(path)
        if node.kind is NodeKind.LINK:
            name.symlink_to(os.fsdecode(node.target))
            continue
        if node.kind is NodeKind.DIRECTORY:
            name.mkdir()
        else:
            name.write_bytes(texts.base(path, node) or b"")
        name.chmod(node.mode)


@given(base=trees(), here=trees(), release=trees())
def test_every_result_is_a_tree_in_which_nothing_of_this_device_is_lost_untold(
    base: dict[bytes, Node], here: dict[bytes, Node], release: dict[bytes, Node]
) -> None:
    found = merge(base, here, release, contents=Texts(*CONTENTS))

    for path in found.nodes:
        assert all(found.nodes[holder].node.kind is NodeKind.DIRECTORY for holder in holders_of(path))
    told = fates(found)
    for path, node in here.items():
        if base.get(path) != node and release.get(path) != node and not path.endswith(b".new"):
            # Changed here alone or by both: it is there as it was, or merged.
            assert told[path] in {Fate.KEPT, Fate.MERGED, Fate.CONFLICT}
            assert path in found.nodes
            assert found.nodes[path].node == node or told[path] is Fate.MERGED


@settings(max_examples=10)
@given(cases=st.lists(st.tuples(trees(), trees(), trees()), min_size=8, max_size=8))
def test_a_layer_over_the_release_shows_exactly_what_was_promised(
    tmp_path_factory: pytest.TempPathFactory, cases: list[tuple[dict[bytes, Node], ...]]
) -> None:
    place = tmp_path_factory.mktemp("layers")
    texts = Texts(*CONTENTS)
    script = ""
    promised: list[Merge] = []
    for number, (base, here, release) in enumerate(cases):
        root = place / str(number)
        root.mkdir()
        for name, tree in (("here", here), ("release", release)):
            lay_out(tree, root / name, texts)
        found = merge(base, scan(root / "here").nodes, scan(root / "release").nodes, contents=texts)
        write_upper(root / "upper", found, release=scan(root / "release").nodes, here=root / "here")
        for name in ("work", "mounted", "shown"):
            (root / name).mkdir()
        script += (
            f"cd {root}; mount -t overlay overlay -o lowerdir=release,upperdir=upper,workdir=work mounted; "
            "cp -a mounted/. shown; umount mounted\n"
        )
        promised.append(found)

    subprocess.run([need("unshare"), "--mount", "sh", "-ec", script], check=True)

    for number, found in enumerate(promised):
        assert scan(place / str(number) / "shown").nodes == {path: one.node for path, one in found.nodes.items()}


def test_paths_have_parents() -> None:
    assert parent_of(b"a/b") == b"a"
    assert list(holders_of(b"a/b")) == [b"a", b""]
