"""OSTree's decoders under bytes nobody vouches for: a refusal in one sentence, or a value that writes back the same."""

import hashlib
import io
import lzma
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.dialects.ostree.delta_apply import DeltaSource, FileSink, apply_part
from overhaul.dialects.ostree.errors import DeltaSourceMissingError, MalformedOstreeDataError, WrongChecksumError
from overhaul.dialects.ostree.filez import FileHeader, open_filez, pack_filez
from overhaul.dialects.ostree.gvariant import Variant, decode, encode
from overhaul.dialects.ostree.objects import (
    Commit,
    Dirmeta,
    Dirtree,
    ObjectName,
    ObjectType,
    TreeDirectory,
    TreeFile,
    decode_commit,
    decode_dirmeta,
    decode_dirtree,
    decode_metadata,
    encode_commit,
    encode_dirmeta,
    encode_dirtree,
    encode_metadata,
)
from overhaul.dialects.ostree.static_delta import (
    PAYLOAD_TYPE,
    SUPERBLOCK_TYPE,
    DeltaPart,
    decode_superblock,
    unpack_part,
)
from overhaul.dialects.ostree.summary import Summary, SummaryEntry, decode_summary, encode_summary
from tests.fuzz.mutations import fuzzing, judged, outside_bytes

_SUM = bytes(range(32))
_TREE = encode_dirtree(Dirtree((TreeFile("a", _SUM), TreeFile("b", _SUM)), (TreeDirectory("c", _SUM, _SUM),)))
_META = encode_dirmeta(Dirmeta(uid=1, gid=2, mode=0o40755, xattrs=((b"user.x", b"1"),)))
_COMMIT_VALUE = Commit(
    timestamp=1, root_tree=_SUM, root_meta=_SUM, subject="s", metadata={"version": Variant("s", "1")}
)
_COMMIT = encode_commit(_COMMIT_VALUE)
_SUMMARY = encode_summary(
    Summary(
        branches={"a/b": SummaryEntry(commit=_SUM, commit_size=9, timestamp=5, version="1")},
        deltas={(None, _SUM): _SUM, (_SUM, _SUM): _SUM},
        last_modified=7,
    )
)
_DETACHED = encode_metadata(
    {"ostree.gpgsigs": Variant("aay", (b"x", b"yy")), "n": Variant("v", Variant("(yt)", (1, 2)))}
)


@fuzzing(400)
@given(data=outside_bytes(_TREE, _META, _COMMIT, _SUMMARY, _DETACHED))
def test_metadata_of_any_kind_is_refused_or_writes_back_the_same(data: bytes) -> None:
    tree = judged(lambda: decode_dirtree(data), refusal=MalformedOstreeDataError)
    assert tree is None or encode_dirtree(tree) == data
    meta = judged(lambda: decode_dirmeta(data), refusal=MalformedOstreeDataError)
    if meta is not None and list(meta.xattrs) == sorted(meta.xattrs):
        assert encode_dirmeta(meta) == data
    judged(lambda: decode_commit(data), refusal=MalformedOstreeDataError)
    judged(lambda: decode_summary(data), refusal=MalformedOstreeDataError)
    detached = judged(lambda: decode_metadata(data, what="test"), refusal=MalformedOstreeDataError)
    assert detached is None or encode_metadata(detached) == data


_TYPES = ("a{sv}", "(a(say)a(sayay))", "aas", "(yta(uay)mnms)", "v", "av", "(bnqiuxtd)", "a(yt)", "mas", "aay")


@fuzzing(400)
@given(data=outside_bytes(_DETACHED, _TREE, b"\0" * 24 + b"\0(tt)"), type_string=st.sampled_from(_TYPES))
def test_values_of_any_type_are_refused_or_write_back_the_same(data: bytes, type_string: str) -> None:
    value = judged(lambda: (decode(type_string, data, what="test"),), refusal=MalformedOstreeDataError)
    if value is not None and value[0] == value[0]:
        assert encode(type_string, value[0]) == data


def test_variants_that_nest_without_end_are_refused() -> None:
    value = Variant("y", 1)
    for _ in range(200):
        value = Variant("v", value)
    with pytest.raises(MalformedOstreeDataError, match="nest"):
        decode("v", encode("v", value), what="test")
    deep = b"\0" + b"\0" + b"a" * 200 + b"y"
    with pytest.raises(MalformedOstreeDataError):
        decode("v", deep, what="test")


_FILEZ = b"".join(pack_filez(FileHeader(uid=0, gid=0, mode=0o100644), b"hello " * 500))


@fuzzing(300)
@given(data=outside_bytes(_FILEZ, b"".join(pack_filez(FileHeader(uid=0, gid=0, mode=0o120777, target="x"), b""))))
def test_packed_files_are_refused_or_have_the_size_they_say(data: bytes) -> None:
    def read() -> tuple[int, int]:
        filez = open_filez(io.BytesIO(data), what="test")
        if filez.size > 1 << 20:
            raise MalformedOstreeDataError(what="test", reason="big")
        return filez.size, sum(map(len, filez.content()))

    found = judged(read, refusal=MalformedOstreeDataError)
    assert found is None or found[0] == found[1]


class _Objects:
    """Has one old file, and takes what it is given."""

    def open_source(self, checksum: bytes) -> DeltaSource:
        if checksum != _SUM:
            raise DeltaSourceMissingError(checksum=checksum.hex())
        return _Old()

    def put_metadata(self, name: ObjectName, data: bytes) -> None:
        """Take it."""

    def open_file(self, checksum: bytes, header: FileHeader, size: int) -> FileSink:
        return _Taker(size)


class _Old:
    size = 100

    def read(self, offset: int, size: int) -> bytes:
        assert 0 <= offset <= offset + size <= 100
        return b"o" * size

    def close(self) -> None:
        """Do nothing."""


class _Taker:
    def __init__(self, size: int) -> None:
        self.left = size

    def write(self, data: bytes | memoryview) -> None:
        self.left -= len(data)
        assert self.left >= 0

    def finish(self) -> None:
        raise AssertionError("a file that was never hashed right is kept")

    def discard(self) -> None:
        """Do nothing."""


_PATCH = b"".join(n.to_bytes(8, "little") for n in (10, 5, 1 << 63 | 3)) + b"\1" * 10 + b"new! "
_OPERATIONS = b"o\0\0\x0fr\0B\x20\x27c" + b"o\0\0\x0ar\0w\5\5Rw\5\0c" + b"S\0\0\5\0"
_PAYLOAD = encode(PAYLOAD_TYPE, (((0, 0, 0xA4810000),), ((),), _SUM + _PATCH, _OPERATIONS))
_PART = DeltaPart(
    sha256=_SUM, size=1, unpacked_size=1000, objects=tuple(ObjectName(ObjectType.FILE, _SUM) for _ in range(3))
)


@fuzzing(500)
@given(data=outside_bytes(_PAYLOAD))
def test_operations_never_reach_outside_or_keep_a_wrong_file(data: bytes) -> None:
    judged(
        lambda: apply_part(_PART, data, _Objects(), what="test"),
        refusal=(MalformedOstreeDataError, WrongChecksumError, DeltaSourceMissingError),
    )


_SUPERBLOCK = encode(
    SUPERBLOCK_TYPE,
    (
        [("ostree.endianness", Variant("y", ord("l")))],
        1,
        _SUM,
        _SUM,
        ((), b"", (), "", "", 0, _SUM, _SUM),
        b"",
        [(0, _SUM, 5, 6, bytes([1]) + _SUM)],
        [(1, _SUM, 5, 6)],
    ),
)


@fuzzing(300)
@given(data=outside_bytes(_SUPERBLOCK))
def test_superblocks_are_refused_in_one_sentence(data: bytes) -> None:
    judged(lambda: decode_superblock(data), refusal=(MalformedOstreeDataError, WrongChecksumError))


def test_a_part_that_unpacks_to_more_than_it_says_is_refused() -> None:
    packed = b"x" + lzma.compress(bytes(64 << 20))
    part = DeltaPart(sha256=hashlib.sha256(packed).digest(), size=len(packed), unpacked_size=1, objects=())
    with pytest.raises(MalformedOstreeDataError, match="more or less"):
        unpack_part(part, packed, what="test")


def test_a_part_that_takes_much_memory_to_unpack_is_refused() -> None:
    packed = b"x" + _with_dictionary_of_512_mib(lzma.compress(b"few"))
    part = DeltaPart(sha256=hashlib.sha256(packed).digest(), size=len(packed), unpacked_size=3, objects=())
    with pytest.raises(MalformedOstreeDataError, match=r"[Mm]emory"):
        unpack_part(part, packed, what="test")


def _with_dictionary_of_512_mib(data: bytes) -> bytes:
    """Return an .xz whose only block says that it needs a dictionary of 512 MiB."""
    begin = 12
    size = (data[begin] + 1) * 4
    header = bytearray(data[begin : begin + size - 4])
    place = header.index(b"\x21\x01", 2) + 2
    header[place] = 34
    return data[:begin] + bytes(header) + zlib.crc32(header).to_bytes(4, "little") + data[begin + size :]
