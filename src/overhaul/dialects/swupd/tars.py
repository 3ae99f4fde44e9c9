"""tar archives of swupd: written by hand, header by header, and read strictly.

Written are plain ustar headers with numeric owners and empty user and group names: a client resolves names first,
so a name that the device maps to another number would change the object's hash. What a plain header cannot hold
(long names and targets, extended attributes, huge numbers) goes into a pax header before it. Nothing depends on the
machine or the time of writing.
"""

import stat
from collections.abc import Iterator
from struct import Struct

import msgspec

from overhaul.errors import TrustError

BLOCK = 512
#: What ends an archive.
END = bytes(2 * BLOCK)

_HEADER = Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
_CHECKSUM = slice(148, 156)
_USTAR = (b"ustar\0", b"00")
_FILE, _OLD_FILE, _HARD_LINK, _LINK, _DIRECTORY, _PAX, _PAX_GLOBAL = b"0", b"\0", b"1", b"2", b"5", b"x", b"g"
_XATTR_KEY = b"SCHILY.xattr."
_NAME_MAX = 100
_ID_MAX = 8**7 - 1
_SIZE_MAX = 8**11 - 1
_PAX_MAX = 1 << 20

Buffer = bytes | bytearray | memoryview


class MalformedTarError(TrustError):
    """An archive that no builder of swupd writes."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The archive {name} cannot be used: {reason}. Its publisher must build it again.")


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One object in an archive: a regular file, a directory or a symbolic link."""

    name: str
    #: The whole st_mode.
    mode: int
    uid: int
    gid: int
    #: Bytes of content; 0 for all but files.
    size: int = 0
    #: Seconds since 1970 UTC.
    mtime: int = 0
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of `size` bytes of content."""
    return bytes(-size % BLOCK)


def encode_header(member: Member) -> bytes:
    """Return everything that stands before the content of a member."""
    name = member.name.encode()
    if stat.S_ISDIR(member.mode):
        kind, name = _DIRECTORY, name + b"/"
    else:
        kind = _LINK if stat.S_ISLNK(member.mode) else _FILE
    pax = b""
    if len(name) > _NAME_MAX:
        pax += _pax_record(b"path", name)
    if len(member.target) > _NAME_MAX:
        pax += _pax_record(b"linkpath", member.target)
    for key, number, largest in (("uid", member.uid, _ID_MAX), ("gid", member.gid, _ID_MAX),
                                 ("size", member.size, _SIZE_MAX)):  # fmt: skip
        if number > largest:
            pax += _pax_record(key.encode(), b"%d" % number)
    pax += b"".join(_pax_record(_XATTR_KEY + key, value) for key, value in member.xattrs)
    plain = _plain_header(name, kind, member)
    if not pax:
        return plain
    about = Member(name="PaxHeader", mode=stat.S_IFREG | 0o644, uid=0, gid=0, size=len(pax))
    return _plain_header(b"PaxHeader", _PAX, about) + pax + padding(len(pax)) + plain


def _plain_header(name: bytes, kind: bytes, member: Member) -> bytes:
    mtime = min(max(member.mtime, 0), _SIZE_MAX)
    mode = 0o777 if kind == _LINK else stat.S_IMODE(member.mode)
    head = bytearray(
        _HEADER.pack(
            name[:_NAME_MAX], b"%07o" % mode, b"%07o" % _fitting(member.uid, _ID_MAX),
            b"%07o" % _fitting(member.gid, _ID_MAX), b"%011o" % _fitting(member.size, _SIZE_MAX), b"%011o" % mtime,
            b"        ", kind, member.target[:_NAME_MAX], *_USTAR, b"", b"", b"0000000", b"0000000", b"",
        )
    )  # fmt: skip
    head[_CHECKSUM] = b"%06o\0 " % sum(head)
    return bytes(head)


def _fitting(number: int, largest: int) -> int:
    """Return `number`, or 0 where a pax record holds it."""
    return number if number <= largest else 0


def _pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    digits = len(str(length))
    # The length counts its own digits, which can make it one digit longer.
    total = length + len(str(length + digits))
    return b"%d %s=%s\n" % (total, key, value)


def read_tar(data: Buffer, *, name: str) -> Iterator[tuple[Member, memoryview]]:
    """Yield each member of an archive in memory with its content.

    Hard links are refused, as is everything that no manifest could list. Whether names are harmless is for the
    caller, who knows which ones it expects.

    Raises:
        MalformedTarError: The archive is damaged, or holds what it may not.
    """
    view = memoryview(data)
    position = 0
    pax: dict[bytes, bytes] = {}
    while position + BLOCK <= len(view):
        block = bytes(view[position : position + BLOCK])
        if not any(block):
            if view[position:].nbytes and any(bytes(view[position:])):
                raise MalformedTarError(name=name, reason="something follows its end")
            return
        fields = _HEADER.unpack(block)
        stated = _octal(fields[6], name)
        if stated != sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" "):
            raise MalformedTarError(name=name, reason="a header is damaged")
        kind = fields[7]
        size = int(pax[b"size"]) if b"size" in pax else _octal(fields[4], name)
        begin = position + BLOCK
        end = begin + size
        if end > len(view):
            raise MalformedTarError(name=name, reason="it is cut short")
        position = end + -size % BLOCK
        if kind == _PAX:
            pax = _read_pax(bytes(view[begin:end]), name)
            continue
        if kind == _PAX_GLOBAL:
            continue
        yield _member(fields, kind, pax, size, name), view[begin:end]
        pax = {}
    raise MalformedTarError(name=name, reason="it has no end")


def _member(fields: tuple[bytes, ...], kind: bytes, pax: dict[bytes, bytes], size: int, archive: str) -> Member:
    kinds = {_FILE: stat.S_IFREG, _OLD_FILE: stat.S_IFREG, _LINK: stat.S_IFLNK, _DIRECTORY: stat.S_IFDIR}
    if kind not in kinds or (kind not in {_FILE, _OLD_FILE} and size):
        raise MalformedTarError(name=archive, reason=f"it holds something of the kind {kind!r}")
    prefix = fields[15].rstrip(b"\0")
    plain = fields[0].partition(b"\0")[0]
    path = pax.get(b"path", prefix + b"/" + plain if prefix else plain)
    mode = 0o777 if kind == _LINK else _octal(fields[1], archive) & 0o7777
    xattrs = ((key.removeprefix(_XATTR_KEY), value) for key, value in pax.items() if key.startswith(_XATTR_KEY))
    return Member(
        name=path.rstrip(b"/").decode("utf-8", "surrogateescape"),
        mode=kinds[kind] | mode,
        uid=int(pax[b"uid"]) if b"uid" in pax else _octal(fields[2], archive),
        gid=int(pax[b"gid"]) if b"gid" in pax else _octal(fields[3], archive),
        size=size,
        mtime=_octal(fields[5], archive),
        target=pax.get(b"linkpath", fields[8].partition(b"\0")[0]) if kind == _LINK else b"",
        xattrs=tuple(sorted(xattrs)),
    )


def _octal(field: bytes, name: str) -> int:
    if field[0] & 0x80:  # GNU's numbers in base 256
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.rstrip(b"\0 ") or b"0", 8)
    except ValueError as error:
        raise MalformedTarError(name=name, reason="a header is damaged") from error


def _read_pax(data: bytes, name: str) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(data) <= _PAX_MAX:
        length, space, _ = data[position : position + 12].partition(b" ")
        if not space or not length.isdigit() or not len(length) + 3 < int(length) <= len(data) - position:
            break
        record = data[position + len(length) + 1 : position + int(length)]
        key, sign, value = record.partition(b"=")
        if not sign or not value.endswith(b"\n"):
            break
        records[key] = value[:-1]
        position += int(length)
    numbers = [records[key] for key in (b"uid", b"gid", b"size") if key in records]
    if position != len(data) or not all(number.isdigit() and len(number) < 20 for number in numbers):
        raise MalformedTarError(name=name, reason="a pax header is damaged")
    return records
