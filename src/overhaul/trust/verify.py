"""The offline check of everything signed in a published tree, for `overhaul repository verify`.

It reads the whole tree through one callable and never stops at the first fault: each fault is a finding that
names the key it was found at. Unlike a device it has no clock of its own and no memory, so it cannot see a roll
back; it can see every flipped byte.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.metadata import MetaFile, Root, Targets

from overhaul.errors import OverhaulError
from overhaul.trust import roles
from overhaul.trust._loading import (
    AnyMetadata,
    MissingMetadataError,
    ReadKey,
    check_signed,
    parse,
    read_listed,
    read_root_chain,
)
from overhaul.trust.editor import TargetInfo
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key, target_key


class Fault(StrEnum):
    """What can be wrong."""

    MISSING = "missing"
    #: Not the bytes that were signed, or not signed by enough of the right keys.
    UNTRUSTED = "untrusted"
    EXPIRED = "expired"
    #: A role lists a path that belongs to another; devices do not find it.
    MISPLACED = "misplaced"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault and where it is."""

    fault: Fault
    key: str
    sentence: str


@dataclass(frozen=True, kw_only=True)
class MetadataReport:
    """What the check saw."""

    findings: tuple[Finding, ...]
    #: Version and expiry by role, of those that could be read.
    roles: Mapping[str, tuple[int, datetime]]
    #: Everything signed whose bytes are right, by target path.
    targets: Mapping[str, TargetInfo]
    #: Every key the current metadata refers to, whether its bytes are right or not.
    referenced: frozenset[str]


@dataclass(kw_only=True)
class _Check:
    read: ReadKey
    now: datetime
    findings: list[Finding] = field(default_factory=list)
    roles: dict[str, tuple[int, datetime]] = field(default_factory=dict)
    targets: dict[str, TargetInfo] = field(default_factory=dict)
    referenced: set[str] = field(default_factory=set)

    def report(self, fault: Fault, key: str, sentence: str) -> None:
        self.findings.append(Finding(fault=fault, key=key, sentence=sentence))

    def accept(self, role: str, key: str, metadata: AnyMetadata) -> None:
        signed = metadata.signed
        self.roles[role] = (signed.version, signed.expires)
        if signed.is_expired(self.now):
            sentence = f"The {role} metadata expired at {signed.expires:%Y-%m-%d %H:%M} UTC; sign it again."
            self.report(Fault.EXPIRED, key, sentence)

    def pristine(self, role: str, key: str, metadata: AnyMetadata, *delegators: Root) -> None:
        """Check a file that no list names by digest: a flip that its threshold forgives is a fault all the same."""
        known = {keyid: named for delegator in delegators for keyid, named in delegator.keys.items()}
        for keyid, signature in metadata.signatures.items():
            # Upper-case digits are the same signature to a verifier, but not what was published.
            intact = keyid in known and signature.signature == signature.signature.lower()
            try:
                if intact:
                    known[keyid].verify_signature(signature, metadata.signed_bytes)
            except UnverifiedSignatureError:
                intact = False
            if not intact:
                sentence = f"A signature of the {role} metadata was damaged; restore the file from a copy."
                self.report(Fault.UNTRUSTED, key, sentence)

    def role(self, role: str, listed: MetaFile | None, delegator: Root | Targets) -> AnyMetadata | None:
        """Return the metadata of `role` when it is the listed and signed one."""
        if listed is None:
            self.report(Fault.MISSING, f"metadata/N.{role}.json", f"The snapshot does not list the role {role}.")
            return None
        key = metadata_key(role, listed.version)
        self.referenced.add(key)
        try:
            _data, metadata = read_listed(self.read, role, listed)
            check_signed(role, metadata, delegator)
        except OverhaulError as error:
            self.report(_fault_of(error), key, str(error))
            return None
        self.accept(role, key, metadata)
        return metadata

    def files_of(self, role: str, metadata: AnyMetadata) -> None:
        """Check the bytes of every target of `role`."""
        key = metadata_key(role, metadata.signed.version)
        for path, target in sorted(metadata.signed.targets.items()):
            if _owner(path) != role:
                self.report(Fault.MISPLACED, key, f"{role} lists {path}, which it may not sign; devices ignore it.")
                continue
            digest = target.hashes.get("sha256", "")
            place = target_key(path, digest)
            self.referenced.add(place)
            data = self.read(place)
            if data is None:
                self.report(Fault.MISSING, place, f"The bytes of {path} are missing; publish it again.")
            elif len(data) != target.length or hashlib.sha256(data).hexdigest() != digest:
                self.report(Fault.UNTRUSTED, place, f"The bytes of {path} are not the signed ones; publish it again.")
            else:
                self.targets[path] = TargetInfo(size=target.length, sha256=digest)


def verify_metadata(read: ReadKey, *, now: datetime, anchor: bytes | None = None) -> MetadataReport:
    """Check every role and every target of the tree that `read` reads.

    Trust begins at `anchor`, the root metadata devices are given; without it, at the tree's own first root, which
    then proves only that the tree agrees with itself.
    """
    check = _Check(read=read, now=now)
    root = _check_roots(check, anchor)
    if root is not None:
        for role, metadata in _check_roles(check, root):
            check.files_of(role, metadata)
    return MetadataReport(
        findings=tuple(check.findings),
        roles=check.roles,
        targets=check.targets,
        referenced=frozenset(check.referenced),
    )


def _check_roots(check: _Check, anchor: bytes | None) -> Root | None:
    """Check every root, since devices that start from the first one walk over all of them."""
    version = 1
    while check.read(metadata_key(roles.ROOT, version)) is not None:
        check.referenced.add(metadata_key(roles.ROOT, version))
        version += 1
    newest = metadata_key(roles.ROOT, max(1, version - 1))
    try:
        chain = read_root_chain(check.read)
        trusted = chain if anchor is None else read_root_chain(check.read, anchor=anchor)
    except OverhaulError as error:
        check.report(_fault_of(error), newest, str(error))
        return None
    predecessor = chain[0].signed
    for metadata in chain:
        check.pristine(
            roles.ROOT, metadata_key(roles.ROOT, metadata.signed.version), metadata, predecessor, metadata.signed
        )
        predecessor = metadata.signed
    check.accept(roles.ROOT, newest, trusted[-1])
    return trusted[-1].signed


def _check_roles(check: _Check, root: Root) -> Iterator[tuple[str, AnyMetadata]]:
    """Yield every role that signs targets, once it is found right."""
    check.referenced.add(TIMESTAMP_KEY)
    data = check.read(TIMESTAMP_KEY)
    try:
        if data is None:
            raise MissingMetadataError(key=TIMESTAMP_KEY)
        timestamp = parse(roles.TIMESTAMP, data)
        check_signed(roles.TIMESTAMP, timestamp, root)
    except OverhaulError as error:
        check.report(_fault_of(error), TIMESTAMP_KEY, str(error))
        return
    check.pristine(roles.TIMESTAMP, TIMESTAMP_KEY, timestamp, root)
    check.accept(roles.TIMESTAMP, TIMESTAMP_KEY, timestamp)
    snapshot = check.role(roles.SNAPSHOT, timestamp.signed.snapshot_meta, root)
    if snapshot is None:
        return
    listed = snapshot.signed.meta
    targets = check.role(roles.TARGETS, listed.get(f"{roles.TARGETS}.json"), root)
    if targets is None:
        return
    yield roles.TARGETS, targets
    delegations = targets.signed.delegations
    for role in (delegations.roles or {}) if delegations is not None else {}:
        metadata = check.role(role, listed.get(f"{role}.json"), targets.signed)
        if metadata is not None:
            yield role, metadata


def _fault_of(error: OverhaulError) -> Fault:
    return Fault.MISSING if isinstance(error, MissingMetadataError) else Fault.UNTRUSTED


def _owner(path: str) -> str | None:
    try:
        return roles.role_of_path(path)
    except roles.UnownedPathError:
        return None
