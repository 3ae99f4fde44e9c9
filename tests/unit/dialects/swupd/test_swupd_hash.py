"""The hash of an object, judged by vectors that the original client made."""

import os
from pathlib import Path

import pytest

from overhaul.dialects.swupd.hash import NO_HASH, hash_directory, hash_file, hash_link, hash_path, hash_pieces

FILES = [
    (0o100644, 0, 0, b"test-data", "8286279c93f45c7ffa6b9ed440066de09716527346d9dd0239f50948e0e554f0"),
    (0o100644, 0, 0, b"", "28cb7c6cad23920f344157f48ae353caca34e9a2f5cff934a4fdaaf7509f2062"),
    (0o100755, 1000, 1000, b"hello\n", "eac13b8c4af1c1db24edd8b1a0a2075cf66cbccdcd01a51743db598f68730583"),
    (0o104755, 0, 0, b"hello\n", "d7c876b236c0b34a5302e904b7a72bee53ae971823ca1abbc571e3dd23c3a179"),
    (0o100640, 12, 34, b"abc", "dabd59b61c8f63c2f501bcaebd1d5a453d258ab6639bc16364a19edc95704934"),
    (0o100644, 0, 0, bytes(70000), "831b2683e32f01387657b2960c86945ecf68f07eac50b47bdc10fdb389d63f7e"),
]
LINKS = [
    (0, 0, b"target", "412aa3582723c2e7f0693017b428242d246ca6b2e1d87d4405d8a632d3e92298"),
    (0, 0, b"/usr/lib", "983e1873097feda3f0c447f767050d09054e6f5291a2da611f7e1029a38e84db"),
    (5, 6, b"../x", "e487f1a305957a67875c0f79a804e4aeb7ed803f7122a157f3e30eb3fcc3b743"),
]
DIRECTORIES = [
    (0o040755, "6c27df6efcd6fc401ff1bc67c970b83eef115f6473db4fb9d57e5de317eba96e"),
    (0o041777, "d93a5e9129361e28b9e244fe422234e3a1794b001a082aeb78e16fd881673a2b"),
]
TWO_XATTRS = ((b"user.a", b"one"), (b"user.b", b"two"))


@pytest.mark.parametrize(("mode", "uid", "gid", "content", "expected"), FILES)
def test_files_hash_as_in_the_original(mode: int, uid: int, gid: int, content: bytes, expected: str) -> None:
    assert hash_file(content, mode=mode, uid=uid, gid=gid) == expected
    pieces = [content[:3], content[3:]]
    assert hash_pieces(pieces, mode=mode, uid=uid, gid=gid, size=len(content)) == expected


@pytest.mark.parametrize(("uid", "gid", "target", "expected"), LINKS)
def test_links_hash_as_in_the_original(uid: int, gid: int, target: bytes, expected: str) -> None:
    assert hash_link(target, uid=uid, gid=gid) == expected


@pytest.mark.parametrize(("mode", "expected"), DIRECTORIES)
def test_directories_hash_as_in_the_original(mode: int, expected: str) -> None:
    assert hash_directory(mode=mode, uid=0, gid=0) == expected


def test_format_3_hashes_the_path_of_a_directory() -> None:
    hashes = {hash_directory(mode=0o040755, uid=0, gid=0, path=path) for path in (None, b"/usr", b"/usr/bin")}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("xattrs", "expected"),
    [
        (TWO_XATTRS, "b12251e74b729822b80c0aaa3f7fc48afb26b9c4047e05560a67b4e40495404c"),
        (TWO_XATTRS[::-1], "b12251e74b729822b80c0aaa3f7fc48afb26b9c4047e05560a67b4e40495404c"),
        (((b"user.e", b""),), "e2e1d8c98c7a5ca52a9bcd547320e425a380498ccf25f356c566711cb60a1e8c"),
    ],
)
def test_extended_attributes_count_in_the_order_of_their_names(
    xattrs: tuple[tuple[bytes, bytes], ...], expected: str
) -> None:
    assert hash_file(b"test-data", mode=0o100644, uid=0, gid=0, xattrs=xattrs) == expected


def test_a_directory_has_extended_attributes_too() -> None:
    expected = "df55890097bb4f8812839044ba2b2625aeb8e342466c47b438261e51c2db6bc0"
    assert hash_directory(mode=0o040755, uid=0, gid=0, xattrs=[(b"user.z", b"q")]) == expected


def test_what_lies_on_disk_hashes_like_its_facts(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(bytes(range(256)) * 8192)
    file.chmod(0o640)
    link.symlink_to("file")
    uid, gid = os.getuid(), os.getgid()
    assert hash_path(file) == hash_file(file.read_bytes(), mode=0o100640, uid=uid, gid=gid)
    assert hash_path(link) == hash_link(b"file", uid=uid, gid=gid)
    tmp_path.chmod(0o700)
    assert hash_path(tmp_path) == hash_directory(mode=0o040700, uid=uid, gid=gid)
    assert hash_path(tmp_path, path=b"/x") == hash_directory(mode=0o040700, uid=uid, gid=gid, path=b"/x")


def test_what_is_not_there_or_no_manifest_lists_has_no_hash(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert hash_path(tmp_path / "pipe") == hash_path(tmp_path / "nothing") == NO_HASH
