"""Manifests: the lists of a bundle's objects, and the MoM that lists the bundles. Text to values and back.

    MANIFEST<TAB>format
    key:<TAB>value                        header lines
    (empty line)
    FLAGS<TAB>HASH<TAB>VERSION<TAB>NAME   entries by version, then bytewise name

FLAGS are four characters: type, status, modifier and a mark. A path may have several entries that differ in their
modifier: variants of a file for processors with more instructions. Parsing is bounded by the limits of the original
client, takes nothing that it would refuse, and ignores header lines it does not know, as it does.
"""

import re
from collections.abc import Iterable

import msgspec

from overhaul.dialects.swupd.eras import NEWEST_FORMAT, NEWEST_VERSION, OLDEST_FORMAT
from overhaul.dialects.swupd.hash import NO_HASH
from overhaul.dialects.swupd.names import is_bundle_name
from overhaul.errors import TrustError

MAX_LINE = 8191
MAX_ENTRIES = 4_000_000
MAX_CONTENT_SIZE = 2_000_000_000_000
#: Above any manifest of `MAX_ENTRIES` usual names; a larger one is refused unread.
MAX_MANIFEST_BYTES = 1 << 30

_HEAD = re.compile(rb"MANIFEST\t([0-9]{1,10})\n")
_HEADER_LINE = re.compile(rb"([^\t\n]+):\t([^\n]*)")
_ENTRY = re.compile(rb"([FDLMI.])([.dge])([!-~])([!-~])\t([0-9a-f]{64})\t([0-9]{1,10})\t([^\n\t\0]+)\n")
_NUMBER = re.compile(r"[0-9]{1,16}", re.ASCII)
#: One for each manifest; of the others several may stand.
_SINGLE = frozenset({"version", "previous", "minversion", "filecount", "timestamp", "contentsize"})


class MalformedManifestError(TrustError):
    """Bytes that are no manifest."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The manifest {name} cannot be used: {reason}. Its publisher must build it again.")


class Entry(msgspec.Struct, frozen=True, gc=False, order=False):
    """One line of a manifest."""

    #: `F` file, `D` directory, `L` link, `M` bundle, `I` (dead), `.` nothing any more.
    kind: str
    #: `.` there, `d` deleted, `g` no longer listed but left on disks, `e` experimental bundle.
    status: str
    #: Which variant of an optimised file this is (see `variants` of the client); `.` for nearly all. Formats up to
    #: about 30 may hold `C`, `s` or `b` here, which say nothing that the path does not.
    modifier: str
    #: `x` exported binary, `r` renamed, else `.`.
    mark: str
    hash: str
    #: The version that last changed it, and whose directory holds its full file.
    version: int
    #: Absolute path, or the name of a bundle in a MoM.
    name: bytes

    @property
    def flags(self) -> str:
        """The four characters as they stand in the manifest."""
        return self.kind + self.status + self.modifier + self.mark

    @property
    def is_present(self) -> bool:
        """Whether the object belongs to the version: neither deleted nor ghosted."""
        return self.status in ".e"

    @property
    def is_deleted(self) -> bool:
        """Whether disks shall no longer hold it."""
        return self.status == "d"

    @property
    def is_ghosted(self) -> bool:
        """Whether it left the version but shall stay on disks."""
        return self.status == "g"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest of a bundle, or the MoM."""

    format: int
    version: int
    #: The version of the bundle's manifest before this; 0 for the first of a format.
    previous: int = 0
    #: Content older than this was made again; 0 where that never happened.
    minversion: int = 0
    #: Seconds since 1970 UTC.
    timestamp: int = 0
    content_size: int = 0
    #: `Deprecated` or another word of the bundle's makers.
    status: str = ""
    #: `update` in the last version of a format; nobody has read it since 2019.
    actions: str = ""
    includes: tuple[str, ...] = ()
    also_add: tuple[str, ...] = ()
    entries: tuple[Entry, ...] = ()


def deleted_entry(name: bytes, *, version: int, ghosted: bool = False) -> Entry:
    """Return the line for what was removed in `version`."""
    return Entry(".", "g" if ghosted else "d", ".", ".", NO_HASH, version, name)


def sort_key(entry: Entry) -> tuple[int, bytes, str]:
    """Return what the entries of a manifest are sorted by."""
    return entry.version, entry.name, entry.modifier


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of a manifest, its entries in their order."""
    lines = [
        f"MANIFEST\t{manifest.format}",
        f"version:\t{manifest.version}",
        f"previous:\t{manifest.previous}",
        *([f"minversion:\t{manifest.minversion}"] if manifest.minversion else []),
        f"filecount:\t{len(manifest.entries)}",
        f"timestamp:\t{manifest.timestamp}",
        f"contentsize:\t{manifest.content_size}",
        *([f"status:\t{manifest.status}"] if manifest.status else []),
        *(f"includes:\t{name}" for name in manifest.includes),
        *(f"also-add:\t{name}" for name in manifest.also_add),
        *([f"actions:\t{manifest.actions}"] if manifest.actions else []),
    ]
    head = "\n".join(lines).encode() + b"\n\n"
    return head + b"".join([_entry_line(entry) for entry in sorted(manifest.entries, key=sort_key)])


def _entry_line(entry: Entry) -> bytes:
    front = f"{entry.kind}{entry.status}{entry.modifier}{entry.mark}\t{entry.hash}\t{entry.version}\t"
    return front.encode() + entry.name + b"\n"


def parse_manifest(data: bytes, *, name: str) -> Manifest:
    """Return the manifest in `data`; `name` (`MoM` or the bundle's) decides what its entries may be.

    Raises:
        MalformedManifestError: It is no manifest, or breaks a limit.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise MalformedManifestError(name=name, reason=f"it has {len(data)} bytes")
    head = _HEAD.match(data)
    if head is None:
        raise MalformedManifestError(name=name, reason="it does not begin with MANIFEST and its format")
    if not OLDEST_FORMAT <= int(head[1]) <= NEWEST_FORMAT:
        raise MalformedManifestError(name=name, reason=f"its format is {head[1].decode()}")
    middle = data.find(b"\n\n", head.end() - 1)
    if middle < 0:
        raise MalformedManifestError(name=name, reason="no empty line ends its header")
    header = _parse_header(data[head.end() : middle], name=name)
    entries = _parse_entries(data, middle + 2, name=name)
    return Manifest(
        format=int(head[1]),
        version=_number(header, "version", NEWEST_VERSION, name=name, needed=True),
        previous=_number(header, "previous", NEWEST_VERSION, name=name),
        minversion=_number(header, "minversion", NEWEST_VERSION, name=name),
        timestamp=_number(header, "timestamp", (1 << 48) - 1, name=name),
        content_size=_number(header, "contentsize", MAX_CONTENT_SIZE, name=name),
        status=header.get("status", [""])[0],
        actions=header.get("actions", [""])[0],
        includes=_bundles(header, "includes", name=name),
        also_add=_bundles(header, "also-add", name=name),
        entries=_checked(entries, header, name=name),
    )


def _parse_header(data: bytes, *, name: str) -> dict[str, list[str]]:
    header: dict[str, list[str]] = {}
    for line in data.split(b"\n") if data else ():
        found = _HEADER_LINE.fullmatch(line)
        if found is None or len(line) > MAX_LINE:
            raise MalformedManifestError(name=name, reason=f"its header has the line {line[:80]!r}")
        try:
            key, value = found[1].decode(), found[2].decode()
        except UnicodeDecodeError as error:
            raise MalformedManifestError(name=name, reason=f"its header has the line {line[:80]!r}") from error
        values = header.setdefault(key, [])
        if values and key in _SINGLE:
            raise MalformedManifestError(name=name, reason=f"its header has {key} twice")
        values.append(value)
    return header


def _parse_entries(data: bytes, begin: int, *, name: str) -> tuple[Entry, ...]:
    position = begin
    entries: list[Entry] = []
    append = entries.append
    for found in _ENTRY.finditer(data, begin):
        if found.start() != position:
            break
        position = found.end()
        kind, status, modifier, mark, digest, version, path = found.groups()
        append(
            Entry(kind.decode(), status.decode(), modifier.decode(), mark.decode(), digest.decode(), int(version), path)
        )
    if position != len(data):
        line = data[position : position + 160].partition(b"\n")[0]
        raise MalformedManifestError(name=name, reason=f"it has the line {line!r}")
    return tuple(entries)


def _checked(entries: tuple[Entry, ...], header: dict[str, list[str]], *, name: str) -> tuple[Entry, ...]:
    stated = _number(header, "filecount", MAX_ENTRIES, name=name)
    if len(entries) > min(MAX_ENTRIES, stated) and "filecount" in header:
        raise MalformedManifestError(name=name, reason=f"it has {len(entries)} entries and states {stated}")
    is_mom = name == "MoM"
    for entry in entries:
        if is_mom:
            fits = entry.kind == "M" and is_bundle_name(entry.name.decode("latin-1"))
        else:
            fits = entry.kind != "M" and entry.name[:1] == b"/" and len(entry.name) < MAX_LINE - 90
            fits = fits and (entry.kind != "." or not entry.is_present)
            fits = fits and not _leads_astray(entry.name)
        if not fits or not 0 < entry.version <= NEWEST_VERSION:
            line = _entry_line(entry).rstrip(b"\n")
            raise MalformedManifestError(name=name, reason=f"it has the line {line[:160]!r}")
    return entries


_ASTRAY = re.compile(rb"/(?:\.{0,2})(?:/|\Z)")


def _leads_astray(path: bytes) -> bool:
    """Tell whether a path has an empty, `.` or `..` part, which no builder writes and no client should follow."""
    return path != b"/" and _ASTRAY.search(path) is not None


def _number(header: dict[str, list[str]], key: str, largest: int, *, name: str, needed: bool = False) -> int:
    values = header.get(key)
    if values is None:
        if needed:
            raise MalformedManifestError(name=name, reason=f"its header has no {key}")
        return 0
    if not _NUMBER.fullmatch(values[0]) or int(values[0]) > largest or (needed and not int(values[0])):
        raise MalformedManifestError(name=name, reason=f"its header states the {key} {values[0][:40]!r}")
    return int(values[0])


def _bundles(header: dict[str, list[str]], key: str, *, name: str) -> tuple[str, ...]:
    names = tuple(header.get(key, ()))
    for bundle in names:
        if not is_bundle_name(bundle):
            raise MalformedManifestError(name=name, reason=f"it {key} {bundle[:80]!r}")
    return names


def entries_by_name(entries: Iterable[Entry]) -> dict[bytes, Entry]:
    """Return the entries under their names; of several variants the last."""
    return {entry.name: entry for entry in entries}
