"""Archives written by hand: whatever a member is, it comes back, here and in the system's own programs."""

import io
import stat
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.mutations import fuzzing, judged, mutated

from overhaul.dialects.swupd.packing import MalformedCompressionError, compress, decompress, split_streams
from overhaul.dialects.swupd.tars import END, MalformedTarError, Member, encode_header, padding, read_tar

_KINDS = st.sampled_from((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK))


@st.composite
def members(draw: st.DrawFn) -> tuple[Member, bytes]:
    """Return a member with its content, with every number and name an archive can hold."""
    kind = draw(_KINDS)
    content = draw(st.binary(max_size=1500)) if kind == stat.S_IFREG else b""
    target = draw(st.binary(min_size=1, max_size=300)).replace(b"\0", b"x") if kind == stat.S_IFLNK else b""
    names = st.text("abc-0.", min_size=1, max_size=240).map(lambda name: f"n{name}")
    xattrs = st.dictionaries(st.sampled_from((b"user.a", b"security.selinux")), st.binary(max_size=40))
    return Member(
        name=draw(names),
        mode=kind | (0o777 if kind == stat.S_IFLNK else draw(st.integers(0, 0o7777))),
        uid=draw(st.integers(0, (1 << 32) - 1)),
        gid=draw(st.integers(0, (1 << 32) - 1)),
        size=len(content),
        mtime=draw(st.integers(0, 8**11 - 1)),
        target=target,
        xattrs=tuple(sorted(draw(xattrs).items())),
    ), content


def archive(items: list[tuple[Member, bytes]]) -> bytes:
    return b"".join(encode_header(one) + content + padding(len(content)) for one, content in items) + END


@given(st.lists(members(), max_size=5))
def test_members_come_back_as_they_were(items: list[tuple[Member, bytes]]) -> None:
    data = archive(items)
    assert [(member, bytes(view)) for member, view in read_tar(data, name="x")] == items
    with tarfile.open(fileobj=io.BytesIO(data)) as judge:
        found = judge.getmembers()
    assert [(one.name, one.uid, one.gid, one.uname, one.gname) for one in found] == [
        (member.name, member.uid, member.gid, "", "") for member, _content in items
    ]
    assert [one.mode for one in found] == [stat.S_IMODE(member.mode) for member, _content in items]
    targets = [one.linkname.encode("utf-8", "surrogateescape") for one in found]
    assert targets == [member.target for member, _content in items]


_SAMPLE = archive(
    [
        (Member(name="a" * 150, mode=0o100644, uid=1, gid=2, size=5, xattrs=((b"user.a", b"b"),)), b"hello"),
        (Member(name="link", mode=0o120777, uid=0, gid=0, target=b"t" * 120), b""),
    ]
)


@fuzzing(300)
@given(mutated(_SAMPLE, places=range(0, len(_SAMPLE), 8)))
def test_spoilt_archives_are_read_or_refused(data: bytes) -> None:
    judged(lambda: list(read_tar(data, name="x")), refusal=MalformedTarError)


def test_archives_that_are_cut_short_are_refused() -> None:
    for end in range(0, len(_SAMPLE) - 512, 64):
        with pytest.raises(MalformedTarError):
            list(read_tar(_SAMPLE[:end], name="x"))


def test_devices_and_hard_links_are_refused() -> None:
    for kind in (tarfile.CHRTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("x")
        info.type, info.linkname = kind, "y"
        with pytest.raises(MalformedTarError, match="kind"):
            list(read_tar(info.tobuf() + END, name="x"))


@given(st.binary(max_size=40_000), st.sampled_from(("smallest", "xz", "gzip", "zstd")))
def test_what_is_compressed_comes_back_within_its_bound(data: bytes, how: str) -> None:
    packed = compress(data + END, how=how, level=1)  # type: ignore[arg-type]
    assert decompress(packed, name="x", limit=len(data) + len(END)) == data + END
    with pytest.raises(MalformedCompressionError):
        decompress(packed, name="x", limit=len(data) + len(END) - 1)


@pytest.mark.parametrize("how", ["xz", "gzip", "zstd"])
def test_streams_behind_one_another_are_told_apart(how: str) -> None:
    parts = [bytes([number]) * 70_000 * number for number in range(1, 30)]
    data = b"".join(compress(part, how=how, level=0) for part in parts)  # type: ignore[arg-type]
    assert list(split_streams(io.BytesIO(data), name="x")) == parts
    with pytest.raises(MalformedCompressionError):
        list(split_streams(io.BytesIO(data[:-9]), name="x"))
