"""Objects have the bytes and names that OSTree's own command gives them; the vectors were made with it."""

import io
import zlib

import pytest

from overhaul.dialects.ostree.errors import MalformedOstreeDataError, WrongChecksumError
from overhaul.dialects.ostree.filez import (
    FileHeader,
    file_checksum,
    filez_header,
    framed_header,
    open_filez,
    pack_filez,
)
from overhaul.dialects.ostree.gvariant import Variant, encode
from overhaul.dialects.ostree.objects import (
    Commit,
    Dirmeta,
    Dirtree,
    ObjectName,
    ObjectType,
    TreeDirectory,
    TreeFile,
    check_object,
    checksum_of,
    decode_commit,
    decode_dirmeta,
    decode_dirtree,
    encode_commit,
    encode_dirmeta,
    encode_dirtree,
)

_HELLO = "44f778e59f0a4748d6b0c90a47347212a231c4ad1e8f7ea5c5dffc7749153a6b"
_EMPTY = "cc700d46f407c6c5ab2d5dde474366a928b7398277e61162e7f8ec06f469f07e"
_EMPTY_0600 = "d3fa9214de0816a2cf5475da17be2036ae0eda3df526eff7c1ddee082c6e5b58"
_LINK = "f66efa496a72379413c44593de510dc344beb045294f1a543da87b2b6118db35"
_SETUID = "de953b993c977f782cf0990325551ecbc6598bf8a513f0734a440af8d4e8e1fe"
_XATTRS = "2e740393efb435a036f6675b6325cbe4bdb7ce26aaf2153890182ca0ebdc38d5"
_EMPTY_TREE = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
_META = "446a0ef11b7cc167f3b603e585c7eeeeb675faa412d5ec73f62988eb0b6c5488"
_ONE_FILE_TREE = "543a20395440e1532968267036c901e738f6a0c704f8be3b08945fa8d26664cb"
_FIRST_COMMIT = "0cb000e3e48d271a74dfb49e720240af7590e373fbc578253135b279e9166709"


def _file(
    mode: int, *, uid: int = 0, gid: int = 0, target: str = "", xattrs: tuple[tuple[bytes, bytes], ...] = ()
) -> FileHeader:
    return FileHeader(uid=uid, gid=gid, mode=mode, target=target, xattrs=xattrs)


@pytest.mark.parametrize(
    ("header", "content", "name"),
    [
        (_file(0o100644), b"hello\n", _HELLO),
        (_file(0o100644), b"", _EMPTY),
        (_file(0o100600), b"", _EMPTY_0600),
        (_file(0o120777, target="hello.txt"), b"", _LINK),
        (_file(0o104755), b"#!/bin/sh\n", _SETUID),
        (
            _file(0o100640, uid=1000, gid=100, xattrs=((b"user.zeta", b"1"), (b"user.alpha", b"22"))),
            b"x\n",
            _XATTRS,
        ),
    ],
)
def test_file_objects_are_named_as_ostree_names_them(header: FileHeader, content: bytes, name: str) -> None:
    assert file_checksum(header, content).hex() == name


def test_a_header_has_the_bytes_ostree_hashes() -> None:
    expected = "00000012 00000000 00000000 00000000 000081a4 00000000 00 11"
    assert framed_header(_file(0o100644)) == bytes.fromhex(expected)
    xattrs = ((b"user.alpha", b"22"), (b"user.zeta", b"1"))
    assert framed_header(_file(0o100640, uid=1000, gid=100, xattrs=xattrs)) == bytes.fromhex(
        "0000002e 00000000 000003e8 00000064 000081a0 00000000 00 757365722e616c7068610032320b"
        "757365722e7a65746100310a 0e1a 11"
    )


def test_a_packed_file_is_byte_for_byte_that_of_ostree() -> None:
    assert b"".join(pack_filez(_file(0o100644), b"hello\n")) == bytes.fromhex(
        "0000001a 00000000 0000000000000006 00000000 00000000 000081a4 00000000 00 19 cb48cdc9c9e70200"
    )


def test_directories_have_the_names_ostree_gives_them() -> None:
    assert encode_dirtree(Dirtree()) == b"\0"
    assert checksum_of(encode_dirtree(Dirtree())).hex() == _EMPTY_TREE
    one = Dirtree((TreeFile("e", bytes.fromhex(_EMPTY)),))
    assert encode_dirtree(one) == bytes.fromhex("6500" + _EMPTY + "022324")
    assert checksum_of(encode_dirtree(one)).hex() == _ONE_FILE_TREE
    assert checksum_of(encode_dirmeta(Dirmeta(uid=0, gid=0, mode=0o40755))).hex() == _META
    meta = Dirmeta(uid=1000, gid=100, mode=0o42775, xattrs=((b"user.d", b"dirattr"),))
    assert encode_dirmeta(meta) == bytes.fromhex("000003e800000064000045fd 757365722e640064697261747472 07 0f")
    assert checksum_of(encode_dirmeta(meta)).hex() == "f0d1a60952c2d7bc29193dde050458afe2e838121649f69bafc53b1dd0342f54"


def test_commits_have_the_bytes_and_names_ostree_gives_them() -> None:
    empty, meta = bytes.fromhex(_EMPTY_TREE), bytes.fromhex(_META)
    first = Commit(timestamp=1_700_000_000, root_tree=empty, root_meta=meta, subject="empty tree")
    data = encode_commit(first)
    assert data == bytes.fromhex(
        "656d7074792074726565 00 00 00000000 000000006553f100" + _EMPTY_TREE + _META + "380c0b000000"
    )
    assert checksum_of(data).hex() == _FIRST_COMMIT
    second = Commit(
        timestamp=1_700_000_001,
        root_tree=bytes.fromhex(_ONE_FILE_TREE),
        root_meta=meta,
        subject="b",
        parent=bytes.fromhex(_FIRST_COMMIT),
    )
    assert (
        checksum_of(encode_commit(second)).hex() == "dd4b5b45bdb7bda80443b7ee5844cebe09fe123357fc89d1e2b4f8dd1d8aef2c"
    )


def test_a_commit_of_a_whole_tree_with_its_branch_has_the_name_ostree_gives_it() -> None:
    meta = bytes.fromhex(_META)
    sub = encode_dirtree(
        Dirtree((TreeFile("run.sh", bytes.fromhex(_SETUID)), TreeFile("empty-file", bytes.fromhex(_EMPTY_0600))))
    )
    assert checksum_of(sub).hex() == "e3a87d73b060dbcdec53ae99f6896f1bd8279b21e6362cae2bb18b6baaa68cbb"
    root = encode_dirtree(
        Dirtree(
            (TreeFile("link", bytes.fromhex(_LINK)), TreeFile("hello.txt", bytes.fromhex(_HELLO))),
            (
                TreeDirectory("sub", checksum_of(sub), meta),
                TreeDirectory("empty", bytes.fromhex(_EMPTY_TREE), meta),
            ),
        )
    )
    assert checksum_of(root).hex() == "30ad786d55e7e0d011bd1639147aa2bb62324dfaf02501bae6eb45e1e6a53440"
    commit = Commit(
        timestamp=1_700_000_000,
        root_tree=checksum_of(root),
        root_meta=meta,
        subject="subj",
        body="body",
        metadata={"ostree.ref-binding": Variant("as", ("t/main",))},
    )
    data = encode_commit(commit)
    assert data.hex().startswith("6f73747265652e7265662d62696e64696e67000000000000742f6d61696e000700617313247375626a00")
    assert data.hex().endswith("582f2a252525")
    assert checksum_of(data).hex() == "be4b205a16d08daf4eaac53c7123bc5f59f932265a786e542206643c8392cf34"
    assert commit.content_checksum == "c392877727b5212143df4ef1a09ab46a3e38884644def904bfbf0c82b74a53e0"
    assert decode_commit(data) == commit
    assert decode_commit(data).ref_bindings == ("t/main",)


def test_what_is_written_reads_back() -> None:
    tree = Dirtree((TreeFile("a", b"1" * 32), TreeFile("b", b"2" * 32)), (TreeDirectory("c", b"3" * 32, b"4" * 32),))
    assert decode_dirtree(encode_dirtree(tree)) == tree
    meta = Dirmeta(uid=7, gid=8, mode=0o41777, xattrs=((b"security.selinux", b"x\0"),))
    assert decode_dirmeta(encode_dirmeta(meta)) == meta


_SUM = b"s" * 32


@pytest.mark.parametrize(
    ("files", "directories"),
    [
        ([("..", _SUM)], []),
        ([(".", _SUM)], []),
        ([("", _SUM)], []),
        ([("a/b", _SUM)], []),
        ([("../../etc/passwd", _SUM)], []),
        ([("x" * 256, _SUM)], []),
        ([("b", _SUM), ("a", _SUM)], []),
        ([("a", _SUM), ("a", _SUM)], []),
        ([("a", _SUM)], [("a", _SUM, _SUM)]),
        ([("a", _SUM[1:])], []),
        ([], [("a", _SUM, b"")]),
        ([], [("..", _SUM, _SUM)]),
    ],
)
def test_a_directory_with_names_that_are_none_is_refused(files: object, directories: object) -> None:
    with pytest.raises(MalformedOstreeDataError):
        decode_dirtree(encode("(a(say)a(sayay))", (files, directories)))


@pytest.mark.parametrize("mode", [0o100644, 0o120777, 0, 0o40755 | 1 << 20])
def test_directory_metadata_with_another_mode_is_refused(mode: int) -> None:
    with pytest.raises(MalformedOstreeDataError):
        decode_dirmeta(encode_dirmeta(Dirmeta(uid=0, gid=0, mode=mode)))


def test_an_object_with_other_bytes_than_its_name_is_refused() -> None:
    name = ObjectName(ObjectType.DIRTREE, bytes.fromhex(_EMPTY_TREE))
    check_object(name, b"\0")
    with pytest.raises(WrongChecksumError, match=r"expected 6e340b9c.*found"):
        check_object(name, b"\1")


def _unpacked(data: bytes) -> tuple[FileHeader, bytes]:
    filez = open_filez(io.BytesIO(data), what="file")
    return filez.header, b"".join(filez.content())


@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(1 << 20), b"abc" * 200_000])
def test_packed_files_unpack_in_pieces_of_bounded_size(content: bytes) -> None:
    header = _file(0o100755, xattrs=((b"security.capability", b"\1\0\0\2"),))
    packed = b"".join(pack_filez(header, content, level=1))
    assert _unpacked(packed) == (header, content)
    filez = open_filez(io.BytesIO(packed), what="file")
    assert all(len(piece) <= 1 << 17 for piece in filez.content())


def test_packed_files_that_lie_about_their_size_are_refused() -> None:
    header = _file(0o100644)
    packer = zlib.compressobj(wbits=-15)
    stream = packer.compress(b"hello\n") + packer.flush()
    for size in (0, 5, 7, 1 << 60):
        with pytest.raises(MalformedOstreeDataError):
            _unpacked(filez_header(header, size) + stream)
    with pytest.raises(MalformedOstreeDataError):
        _unpacked(filez_header(header, 6) + stream + b"more")


def test_a_packed_file_cut_anywhere_is_refused() -> None:
    packed = b"".join(pack_filez(_file(0o100644), b"hello hello hello"))
    for end in range(len(packed)):
        with pytest.raises(MalformedOstreeDataError):
            _unpacked(packed[:end])


@pytest.mark.parametrize(
    "header",
    [
        _file(0o040755),
        _file(0o020644),
        _file(0o120777),
        _file(0o100644, target="x"),
        _file(0),
    ],
)
def test_packed_files_that_are_neither_file_nor_link_are_refused(header: FileHeader) -> None:
    packed = filez_header(header, 0) + b"\3\0"
    with pytest.raises(MalformedOstreeDataError):
        _unpacked(packed)
