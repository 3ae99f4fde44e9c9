"""Moving what clients look at: refs, then the summary and its signature, never seen in halves.

A client fetches `summary.sig`, then `summary`. Two names cannot be replaced in one step, so both files are written
and synced first, then the signature takes its name and at once the summary does: whoever gets the new signature gets
the new summary with the next request. (Signatures over both summaries in one file would not help: GnuPG, as libostree
runs it, stops at the first bad one.) Both files carry one time; a pair that does not was left by a run that died
between the two, and is written anew.

OSTree's exclusive lock is held meanwhile, so that a real `ostree` neither commits nor prunes nor writes a summary.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.delta_indexes import write_delta_indexes
from overhaul.dialects.ostree.errors import MalformedOstreeDataError
from overhaul.dialects.ostree.layout import SUMMARY, SUMMARY_SIGNATURE, parse_delta_directory
from overhaul.dialects.ostree.objects import (
    ObjectName,
    ObjectType,
    decode_metadata,
    encode_metadata,
)
from overhaul.dialects.ostree.signatures import Signer, with_signatures
from overhaul.dialects.ostree.summary import Summary, SummaryEntry, decode_summary, encode_summary
from overhaul.host.files import sync_directory

#: Branches below it name releases that no channel shows; they keep commits alive and are not in the summary.
RELEASES = "releases"


def move_heads(
    repository: ArchiveRepository,
    heads: Mapping[str, bytes | None],
    *,
    signers: Sequence[Signer],
    now: int,
    is_forced: bool = False,
) -> bool:
    """Let branches name commits (None removes one), write the summary anew, and tell whether anything changed.

    To be called again after a run that died: what is right already is left alone.

    Raises:
        MissingOstreeObjectError: A commit is not in the repository.
        SigningFailedError: The summary could not be signed; the one there is stays.
    """
    with repository.alone():
        changed = False
        for branch, commit in sorted(heads.items()):
            if repository.resolve(branch) == commit:
                continue
            changed = True
            if commit is None:
                repository.remove_branch(branch)
            else:
                repository.commit(commit)
                repository.set_branch(branch, commit)
        return write_summary(repository, signers=signers, now=now, is_forced=is_forced) or changed


def write_summary(
    repository: ArchiveRepository, *, signers: Sequence[Signer], now: int, is_forced: bool = False
) -> bool:
    """Write summary and signature when they are not current or that is forced, and tell whether they were written.

    It is to be forced when a key was changed, because a signature that is there is not verified. The caller holds the
    repository's exclusive lock.
    """
    now = _later_than_held(repository, now)
    deltas = deltas_in(repository)
    write_delta_indexes(repository, deltas)
    wanted = Summary(
        branches=_entries(repository),
        deltas=deltas if repository.lists_deltas_in_summary else {},
        has_delta_indexes=True,
        last_modified=now,
    )
    held = None if is_forced else _held(repository)
    if held is not None and replace(held, last_modified=now) == wanted and _is_signed_by(repository, signers):
        return False
    data = encode_summary(wanted)
    signature = repository.path / SUMMARY_SIGNATURE
    prepared = _prepare(repository, SUMMARY, data, now)
    if signers:
        _prepare(repository, SUMMARY_SIGNATURE, encode_metadata(with_signatures({}, data, signers)), now).replace(
            signature
        )
    else:
        # Before the summary: an old signature over a new summary would be a bad one.
        signature.unlink(missing_ok=True)
    prepared.replace(repository.path / SUMMARY)
    sync_directory(repository.path)
    return True


def _later_than_held(repository: ArchiveRepository, now: int) -> int:
    """Return a time that the summary to be written shares with none before it, `now` if it can be.

    Servers such as nginx tell files apart by time and size, and naming another commit changes no size: with one
    SOURCE_DATE_EPOCH for two builds they would tell devices that nothing changed.
    """
    try:
        held = (repository.path / SUMMARY).stat().st_mtime
    except FileNotFoundError:
        return now
    return max(now, int(held) + 1)


def _prepare(repository: ArchiveRepository, name: str, data: bytes, now: int) -> Path:
    """Write a file durably under a temporary name, with the time `now`."""
    path = repository.path / f".{name}.overhaul.tmp"
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.utime(stream.fileno(), (now, now))
        os.fsync(stream.fileno())
    return path


def _is_signed_by(repository: ArchiveRepository, signers: Sequence[Signer]) -> bool:
    """Tell whether the signature is of the summary's time and holds one of each kind; it is not verified."""
    signature = repository.path / SUMMARY_SIGNATURE
    if not signature.exists():
        return not signers
    if signature.stat().st_mtime != (repository.path / SUMMARY).stat().st_mtime:
        return False
    try:
        held = decode_metadata(signature.read_bytes(), what="summary signature")
    except MalformedOstreeDataError:
        return False
    return {signer.metadata_key for signer in signers} == set(held)


def _entries(repository: ArchiveRepository) -> dict[str, SummaryEntry]:
    found = {}
    for branch, checksum in repository.branches().items():
        if branch.startswith((f"{RELEASES}/", f"{RELEASES}-newest/")):
            continue
        data = repository.read(ObjectName(ObjectType.COMMIT, checksum))
        commit = repository.commit(checksum)
        found[branch] = SummaryEntry(
            commit=checksum, commit_size=len(data), timestamp=commit.timestamp, version=commit.version
        )
    return found


def _held(repository: ArchiveRepository) -> Summary | None:
    try:
        return decode_summary((repository.path / SUMMARY).read_bytes())
    except (FileNotFoundError, MalformedOstreeDataError):
        return None


def shown_branches(repository: ArchiveRepository) -> dict[str, bytes]:
    """Return the commit of each branch as clients see it: in the summary."""
    held = _held(repository)
    return {} if held is None else {name: entry.commit for name, entry in held.branches.items()}


def deltas_in(repository: ArchiveRepository) -> dict[tuple[bytes | None, bytes], bytes]:
    """Return the deltas of a repository with the digests of their superblocks."""
    found = {}
    for path in sorted((repository.path / "deltas").glob("*/*/superblock")):
        ends = parse_delta_directory(path.parent.relative_to(repository.path).as_posix())
        if ends is not None:
            found[ends] = hashlib.sha256(path.read_bytes()).digest()
    return found
