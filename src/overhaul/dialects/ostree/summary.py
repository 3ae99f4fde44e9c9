"""The summary: one file that names every branch of a repository, its commit, and the static deltas there are.

    `(a(s(taya{sv}))a{sv})`     branches sorted by name, each with (size of the commit object, commit, metadata);
                                then metadata of the repository

Clients look a branch up by halving, so an unsorted summary hides branches; a summary that is not renewed hides new
ones. It is signed as a whole, in `summary.sig` (see `signatures.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from overhaul.dialects.ostree.errors import BadRefNameError, MalformedOstreeDataError
from overhaul.dialects.ostree.gvariant import Variant, big64, decode, encode
from overhaul.dialects.ostree.layout import check_ref, delta_name, parse_delta_name
from overhaul.dialects.ostree.objects import CHECKSUM_SIZE, Metadata, check_checksum_size, text_of, unique

_TYPE = "(a(s(taya{sv}))a{sv})"
_TIMESTAMP = "ostree.commit.timestamp"
_VERSION = "ostree.commit.version"
_MODIFIED = "ostree.summary.last-modified"
_MODE = "ostree.summary.mode"
_TOMBSTONES = "ostree.summary.tombstone-commits"
_INDEXED = "ostree.summary.indexed-deltas"
#: Of the list of deltas, in summaries and in delta indexes.
DELTAS_KEY = "ostree.static-deltas"

#: Source (None: from nothing) and target of a delta -> SHA-256 of its superblock.
Deltas = Mapping[tuple[bytes | None, bytes], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryEntry:
    """What the summary says of one branch."""

    commit: bytes
    #: Of the commit object, bytes.
    commit_size: int
    #: Seconds since 1970 UTC.
    timestamp: int | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a repository offers."""

    branches: Mapping[str, SummaryEntry]
    deltas: Deltas = field(default_factory=dict)
    #: Whether `delta-indexes/` is kept, too.
    has_delta_indexes: bool = False
    #: Seconds since 1970 UTC.
    last_modified: int | None = None
    mode: str = "archive-z2"


def encode_summary(summary: Summary) -> bytes:
    """Return the bytes of a summary."""
    metadata: dict[str, Variant] = {_MODE: Variant("s", summary.mode), _TOMBSTONES: Variant("b", value=False)}
    if summary.last_modified is not None:
        metadata[_MODIFIED] = Variant("t", big64(summary.last_modified))
    if summary.has_delta_indexes:
        metadata[_INDEXED] = Variant("b", value=True)
    if summary.deltas:
        metadata[DELTAS_KEY] = encode_deltas(summary.deltas)
    branches = sorted(summary.branches.items(), key=lambda item: item[0].encode())
    entries = [(name, (entry.commit_size, entry.commit, _entry_metadata(entry))) for name, entry in branches]
    return encode(_TYPE, (entries, sorted(metadata.items())))


def _entry_metadata(entry: SummaryEntry) -> list[tuple[str, Variant]]:
    found = []
    if entry.timestamp is not None:
        found.append((_TIMESTAMP, Variant("t", big64(entry.timestamp))))
    if entry.version is not None:
        found.append((_VERSION, Variant("s", entry.version)))
    return found


def decode_summary(data: bytes, *, what: str = "summary") -> Summary:
    """Return the summary in `data`.

    Raises:
        MalformedOstreeDataError: It is none.
    """
    entries, pairs = decode(_TYPE, data, what=what)
    metadata = unique(pairs, what=what)
    branches: dict[str, SummaryEntry] = {}
    for name, (size, commit, entry_pairs) in entries:
        check_checksum_size(commit, what=what)
        try:
            check_ref(name)
        except BadRefNameError as error:
            raise MalformedOstreeDataError(what=what, reason=f"{name[:80]!r} is no branch name") from error
        if name in branches:
            raise MalformedOstreeDataError(what=what, reason=f"the branch {name} stands there twice")
        held = unique(entry_pairs, what=what)
        branches[name] = SummaryEntry(
            commit=commit, commit_size=size, timestamp=_time(held, _TIMESTAMP), version=text_of(held, _VERSION)
        )
    deltas = metadata.get(DELTAS_KEY)
    indexed = metadata.get(_INDEXED)
    return Summary(
        branches=branches,
        deltas={} if deltas is None else decode_deltas(deltas, what=what),
        has_delta_indexes=indexed is not None and indexed == Variant("b", value=True),
        last_modified=_time(metadata, _MODIFIED),
        mode=text_of(metadata, _MODE) or "archive-z2",
    )


def _time(metadata: Metadata, key: str) -> int | None:
    held = metadata.get(key)
    return big64(held.value) if held is not None and held.type == "t" else None


def encode_deltas(deltas: Deltas) -> Variant:
    """Return the list of deltas as summaries and delta indexes hold it."""
    named = sorted((delta_name(*ends), Variant("ay", digest)) for ends, digest in deltas.items())
    return Variant("a{sv}", named)


def decode_deltas(value: Variant, *, what: str) -> dict[tuple[bytes | None, bytes], bytes]:
    """Return the list of deltas of a summary or delta index.

    Raises:
        MalformedOstreeDataError: It is none.
    """
    if value.type != "a{sv}":
        raise MalformedOstreeDataError(what=what, reason="its static deltas are no dictionary")
    found = {}
    for name, digest in unique(value.value, what=what).items():
        if digest.type != "ay" or len(digest.value) != CHECKSUM_SIZE:
            raise MalformedOstreeDataError(what=what, reason="a static delta has no digest")
        found[parse_delta_name(name)] = digest.value
    return found


def decode_delta_index(data: bytes, *, what: str) -> dict[tuple[bytes | None, bytes], bytes]:
    """Return the deltas that a delta index names.

    Raises:
        MalformedOstreeDataError: It is none.
    """
    held = unique(decode("a{sv}", data, what=what), what=what).get(DELTAS_KEY)
    return {} if held is None else decode_deltas(held, what=what)
