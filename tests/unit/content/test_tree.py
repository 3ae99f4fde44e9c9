"""A tree becomes entries, and each of its files is read once for all takers."""

import os
import stat
import threading
from collections import Counter
from pathlib import Path

import pytest

from overhaul.content.tree import FileTaker, TreeEntry, UnreadableTreeError, read_files, scan_tree


def make_tree(root: Path) -> None:
    (root / "etc").mkdir(parents=True)
    (root / "etc/hosts").write_bytes(b"127.0.0.1 localhost\n")
    (root / "etc/empty").touch()
    (root / "etc/link").symlink_to("hosts")
    os.link(root / "etc/hosts", root / "hosts.again")
    os.mkfifo(root / "pipe")
    (root / os.fsdecode(b"odd\xff\nname")).write_bytes(b"odd")
    with (root / "big").open("wb") as stream:
        stream.truncate(9 << 20)


def test_entries_come_by_bytewise_path_with_the_root_first(tmp_path: Path) -> None:
    make_tree(tmp_path)
    entries = scan_tree(tmp_path)
    paths = [entry.path for entry in entries]
    assert paths == sorted(paths)
    assert paths[0] == b""
    assert b"odd\xff\nname" in paths
    by_path = {entry.path: entry for entry in entries}
    assert by_path[b"etc/link"].target == b"hosts"
    assert by_path[b"etc/link"].is_link
    assert stat.S_ISFIFO(by_path[b"pipe"].mode)
    assert by_path[b"etc/hosts"].identity == by_path[b"hosts.again"].identity
    assert by_path[b"etc/hosts"].links == 2


def test_extended_attributes_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    try:
        os.setxattr(tmp_path / "file", "user.note", b"\x00kept")
    except OSError:  # a file system that has none for users still shows those of the system
        pytest.skip("this file system has no user attributes")
    (entry,) = (entry for entry in scan_tree(tmp_path) if entry.path == b"file")
    assert entry.xattrs == ((b"user.note", b"\x00kept"),)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_taker_gets_every_file_with_all_of_its_bytes(tmp_path: Path, workers: int) -> None:
    make_tree(tmp_path)
    entries = scan_tree(tmp_path)
    taken: list[dict[bytes, bytes]] = [{}, {}]
    lock = threading.Lock()

    def taker(number: int) -> FileTaker:
        def take(entry: TreeEntry, content: memoryview) -> None:
            with lock:
                taken[number][entry.path] = bytes(content)

        return take

    read_files(tmp_path, entries, [taker(0), taker(1)], workers=workers)
    expected = {entry.path: (tmp_path / os.fsdecode(entry.path)).read_bytes() for entry in entries if entry.is_file}
    assert taken == [expected, expected]


def test_names_of_one_object_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tree(tmp_path)
    opened: Counter[bytes] = Counter()
    real_open = os.open

    def counting(path: bytes, flags: int) -> int:
        opened[path] += 1
        return real_open(path, flags)

    monkeypatch.setattr("overhaul.content.tree.os.open", counting)
    read_files(tmp_path, scan_tree(tmp_path), [lambda _entry, _content: None] * 3, workers=2)
    monkeypatch.undo()
    assert set(opened.values()) == {1}
    assert len(opened) == 4


def test_a_file_that_changed_since_the_scan_is_refused(tmp_path: Path) -> None:
    make_tree(tmp_path)
    entries = scan_tree(tmp_path)
    (tmp_path / "etc/empty").write_bytes(b"no longer")
    with pytest.raises(UnreadableTreeError, match="etc/empty"):
        read_files(tmp_path, entries, [lambda _entry, _content: None], workers=2)


def test_an_error_of_a_taker_ends_the_reading(tmp_path: Path) -> None:
    make_tree(tmp_path)

    def refuse(_entry: TreeEntry, _content: memoryview) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        read_files(tmp_path, scan_tree(tmp_path), [refuse], workers=2)


def test_a_tree_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnreadableTreeError):
        scan_tree(tmp_path / "nowhere")
