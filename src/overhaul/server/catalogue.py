"""What the repository holds, as the signed metadata says: releases, policies, expiries. Swapped when it changes.

One pass over the metadata makes a `Catalogue`, a frozen value from which every page and every JSON answer is
made; no request reads the repository. The pass walks timestamp, snapshot, targets and delegated roles, and reads
the release records and policies they list. Every file is checked against the digest in the file that names it,
so half-published or damaged files never show; signatures are the business of the devices and of
`overhaul repository verify`, and the server holds no key to check them with.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from overhaul.errors import OperatorError, OverhaulError
from overhaul.policy.document import Policy, decode_policy
from overhaul.release.record import Release, decode_release
from overhaul.release.versions import release_order_key
from overhaul.server.caching import POINTER_PATH
from overhaul.server.tree import PublicTree
from overhaul.trust.layout import metadata_key, target_key


class UnreadableMetadataError(OperatorError):
    """A file of the published metadata is missing or is not what the file that names it says."""

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used ({reason}); run `overhaul repository verify` to see what is wrong.")


@dataclass(frozen=True, kw_only=True)
class RoleState:
    """One signed metadata file."""

    name: str
    version: int
    #: Seconds since 1970 UTC.
    expires_at: int


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """What was published when the pointer had `pointer_etag`."""

    pointer_etag: str
    roles: tuple[RoleState, ...]
    #: The newest first within a product, variant and arch.
    releases: tuple[Release, ...]
    policies: tuple[Policy, ...]
    #: Records and policies that could not be read, in words.
    damaged: tuple[str, ...] = ()
    #: Parsed targets by digest, so that the next catalogue reads only what is new.
    _known: dict[str, Release | Policy] = field(default_factory=dict, repr=False, compare=False)

    @property
    def expires_at(self) -> int:
        """When the first of the roles expires; devices refuse the repository from then on."""
        return min((role.expires_at for role in self.roles), default=0)

    @property
    def published_at(self) -> int | None:
        """When the newest release was published."""
        return max((release.published_at for release in self.releases), default=None)


class _Meta(msgspec.Struct, frozen=True):
    version: int
    hashes: dict[str, str] = {}


class _Target(msgspec.Struct, frozen=True):
    length: int
    hashes: dict[str, str]


class _Signed(msgspec.Struct, frozen=True):
    version: int
    expires: datetime
    meta: dict[str, _Meta] = {}
    targets: dict[str, _Target] = {}


class _Envelope(msgspec.Struct, frozen=True):
    signed: _Signed


def read_catalogue(
    tree: PublicTree, *, pointer: bytes, pointer_etag: str, before: Catalogue | None = None
) -> Catalogue:
    """Read everything that `pointer` (the bytes of timestamp.json) leads to; blocking.

    Raises:
        UnreadableMetadataError: The chain of metadata is broken. A single bad record or policy is only listed.
    """
    known = before._known if before is not None else {}
    signed_roles = _read_roles(tree, pointer)
    parsed: dict[str, Release | Policy] = {}
    damaged: list[str] = []
    for signed in signed_roles.values():
        for path, target in signed.targets.items():
            digest = target.hashes.get("sha256", "")
            try:
                found = known.get(digest) or _read_target(tree, path, digest)
            except OverhaulError as error:
                damaged.append(f"{path}: {error}")
            else:
                if found is not None:
                    parsed[digest] = found
    releases = [found for found in parsed.values() if isinstance(found, Release)]
    releases.sort(key=lambda release: release_order_key(release.id.version, release.id.build_id), reverse=True)
    releases.sort(key=lambda release: (release.id.product, release.id.variant, release.id.arch))
    policies = [found for found in parsed.values() if isinstance(found, Policy)]
    policies.sort(key=lambda policy: (policy.product, policy.channel))
    return Catalogue(
        pointer_etag=pointer_etag,
        roles=tuple(
            RoleState(name=name, version=signed.version, expires_at=int(signed.expires.timestamp()))
            for name, signed in signed_roles.items()
        ),
        releases=tuple(releases),
        policies=tuple(policies),
        damaged=tuple(damaged),
        _known=parsed,
    )


def _read_roles(tree: PublicTree, pointer: bytes) -> dict[str, _Signed]:
    timestamp = _decode(POINTER_PATH, pointer)
    if "snapshot.json" not in timestamp.meta:
        raise UnreadableMetadataError(path=POINTER_PATH, reason="it names no snapshot")
    snapshot = _read_role(tree, "snapshot", timestamp.meta["snapshot.json"])
    roles = {"timestamp": timestamp, "snapshot": snapshot}
    for file_name, meta in sorted(snapshot.meta.items()):
        name = file_name.removesuffix(".json")
        roles[name] = _read_role(tree, name, meta)
    # Nothing names the newest root: devices look for the next version until there is none, and so do we.
    version = 1
    while (data := tree.read_all(metadata_key("root", version))) is not None:
        roles["root"] = _decode(metadata_key("root", version), data)
        version += 1
    return roles


def _read_role(tree: PublicTree, name: str, meta: _Meta) -> _Signed:
    path = metadata_key(name, meta.version)
    return _decode(path, _checked(tree, path, meta.hashes.get("sha256")))


def _read_target(tree: PublicTree, path: str, digest: str) -> Release | Policy | None:
    match path.split("/"):
        case [_product, "releases", _variant, _arch, _version, _build]:
            return decode_release(_checked(tree, target_key(path, digest), digest))
        case [_product, "policy", _channel]:
            return decode_policy(_checked(tree, target_key(path, digest), digest))
    return None


def _checked(tree: PublicTree, path: str, digest: str | None) -> bytes:
    data = tree.read_all(path)
    if data is None:
        raise UnreadableMetadataError(path=path, reason="it is missing")
    if digest is not None and hashlib.sha256(data).hexdigest() != digest:
        raise UnreadableMetadataError(path=path, reason="its bytes are not the ones that were signed")
    return data


def _decode(path: str, data: bytes) -> _Signed:
    try:
        return msgspec.json.decode(data, type=_Envelope).signed
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnreadableMetadataError(path=path, reason=str(error)) from error
