"""How every changed file travels in a delta, kept for the operator beside the repository.

Devices do not need it and never see it: it lies in `private/deltas/`, named by the delta's digest, and a repository
without it is as good. `overhaul release show --delta` reads it.
"""

import os

import msgspec

from overhaul.content.delta.make import MadeDelta
from overhaul.repository.layout import delta_report_key
from overhaul.repository.storage import MissingObjectError, Storage


class FileLine(msgspec.Struct, frozen=True, kw_only=True):
    """One changed file."""

    path: str
    #: The old file it is told from; None when there was none.
    reference: str | None
    #: Coders, and the way it is packed again, joined by `+`; `copy` when every block was found.
    method: str
    size: int
    #: Its share of the delta, about.
    delta_size: int


class DeltaReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a delta is made of."""

    copied_size: int
    #: Bytes of the delta for directories, inodes and bitmaps, and for its header.
    metadata_size: int
    header_size: int
    files: tuple[FileLine, ...]


def write_delta_report(storage: Storage, made: MadeDelta) -> None:
    """Keep what is known of a delta that was just made."""
    report = DeltaReport(
        copied_size=made.copied_size,
        metadata_size=made.metadata_size,
        header_size=made.header_size,
        files=tuple(
            FileLine(
                path=_shown(file.path),
                reference=None if file.reference is None else _shown(file.reference),
                method=file.method,
                size=file.size,
                delta_size=file.delta_size,
            )
            for file in made.files
        ),
    )
    storage.put(delta_report_key(made.sha256), msgspec.json.encode(report))


def read_delta_report(storage: Storage, sha256: str) -> DeltaReport | None:
    """Return what is known of the delta with this digest, or None when nothing is."""
    try:
        return msgspec.json.decode(storage.read(delta_report_key(sha256)), type=DeltaReport)
    except (MissingObjectError, msgspec.MsgspecError, UnicodeError):
        return None


def _shown(path: bytes) -> str:
    return os.fsdecode(path).encode(errors="backslashreplace").decode()
