"""What clients must find on a device to know themselves: its version, format, bundles, addresses and certificate.

A tree that was made for swupd has these files and keeps them, as long as they say what is being published. Into
any other tree they are put, so that whatever can boot can be updated:

    /usr/lib/os-release                         VERSION_ID=<version>
    /usr/share/defaults/swupd/format            the format to follow
    /usr/share/defaults/swupd/{content,version}url
    /usr/share/clear/bundles/<bundle>           empty: the bundle is installed
    /usr/share/clear/versionstamp               seconds since 1970: time is not before
    /usr/share/clear/update-ca/Swupd_Root.pem   what signatures must lead to
"""

import re
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass

from cryptography.hazmat.primitives.serialization import Encoding

from overhaul.dialects.swupd.fullfiles import PackedObject
from overhaul.dialects.swupd.names import CORE_BUNDLE
from overhaul.dialects.swupd.options import BuildOptions
from overhaul.dialects.swupd.tars import Member

OS_RELEASE = b"/usr/lib/os-release"
OTHER_OS_RELEASE = b"/etc/os-release"
FORMAT_FILE = b"/usr/share/defaults/swupd/format"
_DEFAULTS = b"/usr/share/defaults/swupd/"
_BUNDLES = b"/usr/share/clear/bundles/"
_STAMP = b"/usr/share/clear/versionstamp"
_CERTIFICATE = b"/usr/share/clear/update-ca/Swupd_Root.pem"
_VERSION_LINE = re.compile(rb"^VERSION_ID=.*\n?", re.MULTILINE)

#: Returns the content of a regular file of the tree at an absolute path; None where there is none.
ReadFile = Callable[[bytes], bytes | None]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the files are to say, which for the last version of a format is what its successor is."""

    version: int
    format: int
    timestamp: int
    options: BuildOptions


def complete_bundle(bundle: str, names: Collection[bytes], read: ReadFile, wanted: Wanted) -> dict[bytes, PackedObject]:
    """Return the objects, by absolute path, that a bundle with the paths `names` lacks or has wrong."""
    files: dict[bytes, bytes] = {}
    if _BUNDLES + bundle.encode() not in names:
        files[_BUNDLES + bundle.encode()] = b""
    if bundle == CORE_BUNDLE:
        files |= _core_files(names, read, wanted)
    made = {name: _file(content, wanted.timestamp) for name, content in files.items()}
    for name in list(made):
        folder = name.rpartition(b"/")[0]
        while folder and folder not in names and folder not in made:
            made[folder] = _directory(wanted.timestamp)
            folder = folder.rpartition(b"/")[0]
    return made


def _core_files(names: Collection[bytes], read: ReadFile, wanted: Wanted) -> dict[bytes, bytes]:
    files: dict[bytes, bytes] = {}
    found = read(OS_RELEASE)
    release = found if found is not None else read(OTHER_OS_RELEASE) or b"NAME=Linux\n"
    if found is None or stated_version(found) != wanted.version:
        line = b"VERSION_ID=%d\n" % wanted.version
        rest = _VERSION_LINE.sub(b"", release)
        files[OS_RELEASE] = (rest if not rest or rest.endswith(b"\n") else rest + b"\n") + line
    number = read(FORMAT_FILE)
    if number is None or number.strip() != b"%d" % wanted.format:
        files[FORMAT_FILE] = b"%d\n" % wanted.format
    options = wanted.options
    for name, url in ((b"contenturl", options.content_url), (b"versionurl", options.version_url)):
        if url and read(_DEFAULTS + name) is None:
            files[_DEFAULTS + name] = url.encode() + b"\n"
    if _STAMP not in names:
        files[_STAMP] = b"%d\n" % wanted.timestamp
    if options.signer is not None and _CERTIFICATE not in names:
        files[_CERTIFICATE] = options.signer.anchors[0].public_bytes(Encoding.PEM)
    return files


def stated_version(os_release: bytes) -> int | None:
    """Return the VERSION_ID in an os-release file when it is a number, as swupd's versions are."""
    lines = _VERSION_LINE.findall(os_release)
    value = lines[-1].partition(b"=")[2].strip().strip(b"\"'") if lines else b""
    return int(value) if value.isdigit() and len(value) <= 10 else None


def _file(content: bytes, timestamp: int) -> PackedObject:
    member = Member(name="", mode=stat.S_IFREG | 0o644, uid=0, gid=0, size=len(content), mtime=timestamp)
    return PackedObject(member, content)


def _directory(timestamp: int) -> PackedObject:
    return PackedObject(Member(name="", mode=stat.S_IFDIR | 0o755, uid=0, gid=0, mtime=timestamp), b"")
