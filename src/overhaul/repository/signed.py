"""The signed part of a repository: reading what is published, and moving it on under the lock.

`read_published` believes nothing without signatures and needs no private key. `SignedChange` is one change from
reading to the moved timestamp. All its writes are conditional, so that of two writers who both think they hold
the lock (see `lock.py`) at most one is seen by devices: a new version of a role is created, never overwritten,
unless a dead writer left it there before we began; and the timestamp moves only from the one we read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from overhaul.errors import BusyError, TrustError
from overhaul.policy.document import Policy, decode_policy, policy_target_path
from overhaul.release.record import Release, ReleaseId, decode_release
from overhaul.repository.layout import METADATA_PREFIX, public_key
from overhaul.repository.lock import RepositoryLock
from overhaul.repository.storage import (
    MissingObjectError,
    ObjectChangedError,
    ObjectExistsError,
    Storage,
    StorageFailedError,
)
from overhaul.trust.editor import MetadataEditor
from overhaul.trust.keyring import Keyring
from overhaul.trust.layout import TIMESTAMP_KEY, target_key
from overhaul.trust.roles import Lifetimes
from overhaul.trust.verify import Fault, MetadataReport, verify_metadata


class OvertakenError(BusyError):
    """Somebody else changed the signed state while we prepared ours; nothing of ours is visible."""

    def __init__(self, *, key: str) -> None:
        self.key = key
        super().__init__(
            f"Another publisher wrote {key} in the meantime; nothing of this run was published, run the command again."
        )


def read_public(storage: Storage, path: str) -> bytes | None:
    """Return the bytes of the public `path`, or None when there are none."""
    try:
        return storage.read(public_key(path))
    except MissingObjectError:
        return None


@dataclass(frozen=True, kw_only=True)
class Published:
    """Everything signed and right at one moment."""

    releases: Mapping[str, Release]
    policies: Mapping[str, Policy]
    report: MetadataReport

    def release(self, identity: ReleaseId) -> Release | None:
        """Return the record of `identity`, or None when it is not published."""
        return self.releases.get(identity.target_path)

    def channels_of(self, identity: ReleaseId) -> tuple[str, ...]:
        """Return the channels whose policy holds the release."""
        held = (policy for policy in self.policies.values() if policy.product == identity.product)
        return tuple(sorted(policy.channel for policy in held if policy.entry(identity) is not None))


def read_published(storage: Storage, *, now: datetime, anchor: bytes | None = None) -> Published:
    """Return what is signed; faults are in the report's findings, and nothing that has one is in the rest."""
    report = verify_metadata(lambda path: read_public(storage, path), now=now, anchor=anchor)
    releases: dict[str, Release] = {}
    policies: dict[str, Policy] = {}
    for path, target in report.targets.items():
        data = read_public(storage, target_key(path, target.sha256))
        if data is None:
            continue
        match path.split("/"):
            case [_product, "releases", *_rest]:
                releases[path] = decode_release(data)
            case [_product, "policy", _channel]:
                policies[path] = decode_policy(data)
    return Published(releases=releases, policies=policies, report=report)


@dataclass
class SignedChange:
    """One change of the signed state; use it once, while `lock` is held."""

    storage: Storage
    lock: RepositoryLock
    keyring: Keyring
    now: datetime
    lifetimes: Lifetimes
    editor: MetadataEditor = field(init=False)

    def __post_init__(self) -> None:
        self._timestamp = read_public(self.storage, TIMESTAMP_KEY)
        # What a writer that died wrote behind the published versions; only this may be overwritten.
        self._there_before = self._newest_metadata()
        self.editor = MetadataEditor(
            lambda path: read_public(self.storage, path), self.keyring, self.now, self.lifetimes
        )

    def release(self, identity: ReleaseId) -> Release | None:
        """Return the published record of `identity`, or None."""
        path = identity.target_path
        return decode_release(self.editor.read_target(path)) if path in self.editor.targets(path) else None

    def releases(self, *, product: str) -> list[Release]:
        """Return every published record of `product`."""
        paths = self.editor.targets(f"{product}/releases/")
        return [decode_release(self.editor.read_target(path)) for path in paths]

    def policy(self, *, product: str, channel: str) -> Policy | None:
        """Return the published policy of a channel, or None."""
        path = policy_target_path(product, channel)
        return decode_policy(self.editor.read_target(path)) if path in self.editor.targets(path) else None

    def policies(self, *, product: str) -> list[Policy]:
        """Return the published policies of `product`."""
        return [decode_policy(self.editor.read_target(path)) for path in self.editor.targets(f"{product}/policy/")]

    def commit(self) -> bool:
        """Write everything that changed, the timestamp last, and tell whether anything did.

        Each file is read back before the next is written, so the timestamp never names bytes that did not arrive.

        Raises:
            LostLockError: The lock ended before the last write.
            OvertakenError: Somebody else wrote although we hold the lock.
            StorageFailedError: The storage returned other bytes than it was given.
        """
        changes = self.editor.changes()
        for path, data in changes:
            self.lock.check()
            try:
                self._write(path, data)
            except (ObjectExistsError, ObjectChangedError) as error:
                raise OvertakenError(key=path) from error
            if read_public(self.storage, path) != data:
                raise StorageFailedError(place=self.storage.place, reason=f"{path} reads back as other bytes")
        return bool(changes)

    def _write(self, path: str, data: bytes) -> None:
        key = public_key(path)
        if path == TIMESTAMP_KEY:
            before = self._timestamp
        elif path.startswith(METADATA_PREFIX):
            before = self._there_before.get(path)
        else:
            # A target's name holds its digest, so everybody writes the same bytes there.
            self.storage.put(key, data)
            return
        if before is None:
            self.storage.create(key, data)
        elif before != data:
            self.storage.swap(key, data, expected=before)

    def _newest_metadata(self) -> dict[str, bytes]:
        newest: dict[str, tuple[int, str]] = {}
        for stored in self.storage.list_objects(public_key(METADATA_PREFIX)):
            path = stored.key.removeprefix(public_key(""))
            version, dot, role = path.removeprefix(METADATA_PREFIX).partition(".")
            if dot and version.isascii() and version.isdigit():
                newest[role] = max(newest.get(role, (0, "")), (int(version), path))
        found = {path: read_public(self.storage, path) for _version, path in newest.values()}
        return {path: data for path, data in found.items() if data is not None}


def check_trusted(published: Published) -> None:
    """Raise `TrustError` when a signed file is missing or not the signed one; expired ones are only late."""
    for finding in published.report.findings:
        if finding.fault is not Fault.EXPIRED:
            raise TrustError(f"{finding.key}: {finding.sentence}")
