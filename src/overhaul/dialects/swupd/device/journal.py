"""The record of what a run does to the system, so that a run that was killed can be finished or undone.

While a run only prepares (`staging`), the record names the temporary files it makes; nothing of the system has
changed, and the next run removes them. Once everything lies ready and is on the medium, the record turns to
`applying` in one atomic step, and from then on the next run finishes it without network: every operation can be
repeated, and those done already find nothing left to do.
"""

from pathlib import Path

import msgspec

from overhaul.dialects.swupd.device.errors import BrokenJournalError
from overhaul.host.files import replace_bytes, sync_directory

STAGING = "staging"
APPLYING = "applying"


class Placing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What lies ready beside `path` takes its name; paths are absolute inside the root."""

    path: bytes
    staged: bytes


class Fixing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A directory gets its rights and owner, and its extended attributes where they count."""

    path: bytes
    mode: int
    uid: int
    gid: int
    xattrs: tuple[tuple[bytes, bytes], ...] | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One run's changes."""

    phase: str
    root: str
    #: The version the system has afterwards; None when that does not change.
    version: int | None
    #: Seconds since 1970; part of the names of what is moved out of the way.
    epoch: int
    fix: tuple[Fixing, ...] = ()
    #: The file that tells the version comes last.
    place: tuple[Placing, ...] = ()
    #: Children before their directories.
    remove: tuple[bytes, ...] = ()
    #: Bundles that are counted as added by name afterwards, and no longer.
    track: tuple[str, ...] = ()
    untrack: tuple[str, ...] = ()


def write_record(path: Path, record: Record) -> None:
    """Store `record`, durably and all at once."""
    replace_bytes(path, msgspec.json.encode(record), mode=0o600)


def read_record(path: Path) -> Record | None:
    """Return the record of an interrupted run, or None when there is none.

    Raises:
        BrokenJournalError: It is damaged.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        record = msgspec.json.decode(data, type=Record)
    except (msgspec.DecodeError, ValueError) as error:
        raise BrokenJournalError(path=path) from error
    paths = [*(step.path for step in record.fix), *(step.path for step in record.place), *record.remove]
    paths += [step.staged for step in record.place]
    if record.phase not in {STAGING, APPLYING} or any(_leads_astray(name) for name in paths):
        raise BrokenJournalError(path=path)
    return record


def remove_record(path: Path) -> None:
    """Forget the record; nothing of it is left to do."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)


def _leads_astray(path: bytes) -> bool:
    return not path.startswith(b"/") or b".." in path.split(b"/")
