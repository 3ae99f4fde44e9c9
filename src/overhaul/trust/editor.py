"""The publisher's hand on signed metadata: read the published state, change it, sign it, list what to write.

An editor is used once: make one, call what should change, write what `changes` lists in its order, drop it. It
writes nothing itself. Every file but the last has a new name, so readers see the old state until the last one,
`metadata/timestamp.json`, is there; an editor that starts over after a crash reads the old state again and
overwrites the files nobody refers to. The one exception is a new root, which devices take up as soon as it is
there; it is written just before the timestamp, and an editor that finds it without its timestamp signs again
what the new root demands.
"""

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from overhaul.trust import roles
from overhaul.trust._drafts import Draft, Drafts, draft_of, listed_in, new_draft, read_drafts
from overhaul.trust._loading import (
    MissingMetadataError,
    ReadKey,
    check_signed,
    parse,
    read_listed,
    sign,
)
from overhaul.trust.editing import (
    OutdatedDraftError,
    Owner,
    ProductExistsError,
    RefreshReport,
    RepositoryExistsError,
    RoleStatus,
    TargetInfo,
    UnknownProductError,
    UnknownRoleError,
    UnsignedRole,
)
from overhaul.trust.keyring import Keyring
from overhaul.trust.keys import RoleKeys
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key, target_key
from overhaul.trust.refusals import BadSignatureError, UnknownTargetError, WrongTargetError
from overhaul.trust.roles import Lifetimes

__all__ = [
    "MetadataEditor",
    "OutdatedDraftError",
    "Owner",
    "ProductExistsError",
    "RefreshReport",
    "RepositoryExistsError",
    "RoleStatus",
    "TargetInfo",
    "UnknownProductError",
    "UnknownRoleError",
    "UnsignedRole",
]


class MetadataEditor:
    """One change of the signed metadata, from reading to the list of files to write."""

    def __init__(self, read: ReadKey, keyring: Keyring, now: datetime, lifetimes: Lifetimes | None = None) -> None:
        self._read = read
        self._keyring = keyring
        self._now = now
        self._lifetimes = lifetimes or Lifetimes()
        self._loaded: Drafts | None = None
        self._files: dict[str, bytes] = {}
        #: Versions that were signed elsewhere, by role.
        self._adopted: dict[str, bytes] = {}

    def create(self, products: Collection[str], *, with_builds: bool = False) -> None:
        """Make the first metadata of a repository that carries `products`.

        Raises:
            RepositoryExistsError: There is a timestamp already. Files of a creation that died are overwritten.
        """
        if self._read(TIMESTAMP_KEY) is not None:
            raise RepositoryExistsError
        root = Root(consistent_snapshot=True)
        for role in roles.TOP_LEVEL:
            _hand_over(root, role, self._keyring.role(role))
        targets = Targets(delegations=Delegations(keys={}, roles={}))
        self._loaded = Drafts(
            root=new_draft(root),
            targets=new_draft(targets),
            snapshot=new_draft(Snapshot(meta={})),
            timestamp=new_draft(Timestamp()),
            previous_root=None,
        )
        if with_builds:
            self._delegate(roles.BUILDS)
        for product in products:
            self.add_product(product)

    def add_product(self, product: str) -> None:
        """Delegate the paths of `product` to its release and policy roles; their keys must be in the keyring."""
        roles.check_product(product)
        if product in self.products:
            raise ProductExistsError(product=product)
        self._delegate(product)
        self._delegate(roles.policy_role(product))

    @property
    def products(self) -> tuple[str, ...]:
        """The products of this repository."""
        return tuple(name for name in self._delegations() if name != roles.BUILDS and not roles.is_policy_role(name))

    def covers(self, path: str) -> bool:
        """Tell whether devices find the target `path`: a role may have been made before it was given such paths."""
        owner = self._delegations().get(roles.role_of_path(path))
        return owner is not None and owner.is_delegated_path(path)

    def put_target(self, path: str, data: bytes) -> None:
        """Sign `data` under `path` with the role the path belongs to. The same bytes again change nothing."""
        role = roles.role_of_path(path)
        draft = self._delegated(role)
        target = TargetFile.from_data(path, data, ["sha256"])
        if draft.metadata.signed.targets.get(path) == target:
            return
        draft.metadata.signed.targets[path] = target
        draft.dirty = True
        self._files[target_key(path, target.hashes["sha256"])] = data

    def remove_target(self, path: str) -> None:
        """Sign `path` no longer; its bytes stay where they are."""
        role = roles.role_of_path(path)
        draft = self._delegated(role)
        if draft.metadata.signed.targets.pop(path, None) is None:
            raise UnknownTargetError(path=path, role=role)
        draft.dirty = True

    def targets(self, prefix: str = "") -> Mapping[str, TargetInfo]:
        """Return what is signed under paths that begin with `prefix`, in path order."""
        first, slash, _rest = prefix.partition("/")
        found: dict[str, TargetInfo] = {}
        for role in self._delegations():
            if slash and role not in {first, roles.policy_role(first)}:
                continue
            for path, target in self._delegated(role).metadata.signed.targets.items():
                if path.startswith(prefix):
                    found[path] = TargetInfo(size=target.length, sha256=target.hashes["sha256"])
        return dict(sorted(found.items()))

    def read_target(self, path: str) -> bytes:
        """Return the signed bytes of `path`, checked.

        Raises:
            UnknownTargetError: No bytes are signed under it.
            WrongTargetError: The repository holds other bytes than those that were signed.
        """
        role = roles.role_of_path(path)
        target = self._delegated(role).metadata.signed.targets.get(path)
        if target is None:
            raise UnknownTargetError(path=path, role=role)
        digest = target.hashes["sha256"]
        key = target_key(path, digest)
        data = self._files[key] if key in self._files else self._read(key)
        if data is None:
            raise MissingMetadataError(key=key)
        if hashlib.sha256(data).hexdigest() != digest:
            raise WrongTargetError(path=path, reason="its SHA-256 differs")
        return data

    def refresh(self) -> RefreshReport:
        """Sign the timestamp again, and every other role whose time is near and whose keys are here."""
        state = self._state()
        state.timestamp.dirty = True
        renewed, expiring = [], []
        for status in self.status():
            draft = self._draft(status.role)
            due = self._lifetimes.is_due(status.role, expires=status.expires, now=self._now)
            if due and not draft.dirty and not status.can_sign:
                expiring.append(status)
                continue
            draft.dirty = draft.dirty or due
            if draft.dirty:
                renewed.append(status.role)
        return RefreshReport(renewed=tuple(renewed), expiring=tuple(expiring))

    def rotate(self, role: str) -> None:
        """Hand `role` over to the keys the keyring now names for it (see `Keyring.renew`).

        The old keys of `root` must still sign once, so that devices follow; those of other roles need not be
        there. Devices forget what a replaced snapshot or timestamp key told them, which is the way out after a
        thief of it announced versions or times far ahead.
        """
        self.hand_over(role, self._keyring.role(role))

    def hand_over(self, role: str, keys: RoleKeys) -> None:
        """Make `keys` the only ones that count for `role`, as `rotate` does."""
        state = self._state()
        draft = self._draft(role)
        if role in roles.TOP_LEVEL:
            _hand_over(state.root.metadata.signed, role, keys)
            state.root.dirty = True
        else:
            # A role may have been made before its kind was given more paths.
            self._delegations()[role].paths = list(roles.paths_of_role(role))
            _hand_over(state.targets.metadata.signed, role, keys)
            state.targets.dirty = True
        draft.dirty = True

    def owner(self, role: str) -> Owner:
        """Return the keys that count for `role`."""
        if role not in self.role_names:
            raise UnknownRoleError(role=role, known=self.role_names)
        keyids, threshold = self._keys_of(role)
        return Owner(keyids=tuple(keyids), threshold=threshold)

    def public_key(self, keyid: str) -> Key | None:
        """Return the public half of a key that counts for some role."""
        state = self._state()
        delegations = state.targets.metadata.signed.delegations
        named: dict[str, Key] = {**({} if delegations is None else delegations.keys), **state.root.metadata.signed.keys}
        return named.get(keyid)

    @property
    def role_names(self) -> tuple[str, ...]:
        """Every role, top-level ones first."""
        return (*roles.TOP_LEVEL, *self._delegations())

    def renew(self, role: str) -> None:
        """Sign `role` again, whether its time is near or not."""
        self.owner(role)
        self._draft(role).dirty = True

    def unsigned(self) -> tuple[UnsignedRole, ...]:
        """Return every changed role that cannot be signed with the keys that are here; for `adopt`, once it is.

        The online roles are not among them: they are signed when the others are there.
        """
        found = []
        for role in (roles.ROOT, *self._offline_names()):
            draft = self._draft(role)
            owners = self._owners(role)
            if draft.dirty and any(len(self._keyring.held(owner.keyids)) < owner.threshold for owner in owners):
                data = self._sign(role, draft, partly=True)
                previous = self._read(metadata_key(role, draft.published_version)) if draft.published_version else None
                found.append(UnsignedRole(role=role, metadata=data, previous=previous, owners=owners))
        return tuple(found)

    def adopt(self, signed: Mapping[str, bytes]) -> None:
        """Take over versions that were signed elsewhere, and sign again here whatever else they demand.

        A role whose keys they change is signed by the new ones, and a product they bring in gets its first
        metadata. Versions that are published already are passed over.

        Raises:
            OutdatedDraftError: A role was published in another version since the draft was made.
            BadSignatureError: Too few of the keys that count for a role signed it.
            MalformedMetadataError: A role is no metadata.
        """
        state = self._state()
        before = {role: self.owner(role) for role in self.role_names}
        for role in before:
            self._draft(role)
        order = (roles.ROOT, roles.TARGETS, *sorted(signed.keys() - set(roles.TOP_LEVEL)))
        for role in (name for name in order if name in signed):
            known = self._draft(role) if role in self.role_names else None
            if known is None:
                raise UnknownRoleError(role=role, known=self.role_names)
            metadata = parse(role, signed[role])
            version = metadata.signed.version
            if self._read(metadata_key(role, version)) == signed[role] and version == known.published_version:
                continue
            if version != known.published_version + 1:
                raise OutdatedDraftError(role=role, version=version, published=known.published_version)
            if role == roles.ROOT and state.previous_root is not None:
                check_signed(role, metadata, state.previous_root)
            check_signed(role, metadata, metadata.signed if role == roles.ROOT else self._delegator(role))
            known.metadata, known.dirty = metadata, True
            self._adopted[role] = signed[role]
            if role == roles.TARGETS:
                for name in self._delegations().keys() - before.keys():
                    state.delegated[name] = new_draft(Targets())
        for role in self.role_names:
            if role in before and self.owner(role) != before[role]:
                self._draft(role).dirty = True

    def status(self) -> tuple[RoleStatus, ...]:
        """Return the state of every role, top-level roles first."""
        found = []
        for name in self.role_names:
            signed = self._draft(name).metadata.signed
            keyids, threshold = self._keys_of(name)
            found.append(
                RoleStatus(
                    role=name,
                    version=signed.version,
                    expires=signed.expires,
                    threshold=threshold,
                    keys_held=len(self._keyring.held(keyids)),
                )
            )
        return tuple(found)

    def changes(self) -> list[tuple[str, bytes]]:
        """Return every file to write as (key, bytes), in the order in which they must be written.

        Raises:
            MissingKeyError: A changed role lacks keys here; nothing should be written.
        """
        state = self._state()
        drafts = {**state.delegated, roles.TARGETS: state.targets}
        written: list[tuple[str, bytes]] = list(self._files.items())
        listed: dict[str, MetaFile] = state.snapshot.metadata.signed.meta
        for role, draft in drafts.items():
            if draft.dirty:
                data = self._sign(role, draft)
                listed[f"{role}.json"] = MetaFile.from_data(draft.metadata.signed.version, data, ["sha256"])
                written.append((metadata_key(role, draft.metadata.signed.version), data))
                state.snapshot.dirty = True
        if state.snapshot.dirty:
            data = self._sign(roles.SNAPSHOT, state.snapshot)
            version = state.snapshot.metadata.signed.version
            state.timestamp.metadata.signed.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])
            written.append((metadata_key(roles.SNAPSHOT, version), data))
            state.timestamp.dirty = True
        # Signed before the root is listed, so that a missing timestamp key is found before anything is written.
        state.timestamp.dirty = state.timestamp.dirty or state.root.dirty
        timestamp = self._sign(roles.TIMESTAMP, state.timestamp) if state.timestamp.dirty else None
        if state.root.dirty:
            data = self._sign(roles.ROOT, state.root)
            written.append((metadata_key(roles.ROOT, state.root.metadata.signed.version), data))
        if timestamp is not None:
            written.append((TIMESTAMP_KEY, timestamp))
        return written

    def _sign(self, role: str, draft: Draft, *, partly: bool = False) -> bytes:
        """Return the next version of `role`, signed; with `partly` by the keys that are here, be they too few."""
        if role in self._adopted:
            return self._adopted[role]
        signed = draft.metadata.signed
        signed.version = draft.published_version + 1
        signed.expires = self._now + self._lifetimes.of(role)
        signed.unrecognized_fields[roles.SIGNED_AT] = int(self._now.timestamp())
        draft.metadata.signatures.clear()
        for owner in self._owners(role):
            threshold = 0 if partly else owner.threshold
            for signer in self._keyring.signers(role, keyids=owner.keyids, threshold=threshold):
                sign(draft.metadata, signer)
        return draft.metadata.to_bytes()

    def _owners(self, role: str) -> tuple[Owner, ...]:
        """Return whose signatures the next version of `role` needs."""
        own = self.owner(role)
        if role != roles.ROOT or (previous := self._state().previous_root) is None:
            return (own,)
        old = previous.roles[roles.ROOT]
        before = Owner(keyids=tuple(old.keyids), threshold=old.threshold)
        return (own,) if before == own else (own, before)

    def _offline_names(self) -> tuple[str, ...]:
        return (roles.TARGETS, *self._delegations())

    def _delegator(self, role: str) -> Root | Targets:
        state = self._state()
        signed: Root | Targets = (state.root if role in roles.TOP_LEVEL else state.targets).metadata.signed
        return signed

    def _keys_of(self, role: str) -> tuple[list[str], int]:
        owner = self._delegator(role).get_delegated_role(role)
        return owner.keyids, owner.threshold

    def _delegations(self) -> Mapping[str, DelegatedRole]:
        delegations = self._state().targets.metadata.signed.delegations
        return {} if delegations is None else delegations.roles or {}

    def _delegate(self, role: str) -> None:
        state = self._state()
        keys = self._keyring.role(role)
        delegations: Delegations = state.targets.metadata.signed.delegations
        if delegations.roles is None:
            raise BadSignatureError(role=roles.TARGETS, reason="its delegations are of a kind never made here")
        delegations.roles[role] = DelegatedRole(
            role, [], keys.threshold, role == roles.BUILDS, paths=list(roles.paths_of_role(role))
        )
        _hand_over(state.targets.metadata.signed, role, keys)
        state.targets.dirty = True
        state.delegated[role] = new_draft(Targets())

    def _draft(self, role: str) -> Draft:
        state = self._state()
        top_level = {
            roles.ROOT: state.root,
            roles.TARGETS: state.targets,
            roles.SNAPSHOT: state.snapshot,
            roles.TIMESTAMP: state.timestamp,
        }
        return top_level[role] if role in top_level else self._delegated(role)

    def _delegated(self, role: str) -> Draft:
        state = self._state()
        if role not in state.delegated:
            if role not in self._delegations():
                raise UnknownProductError(product=role.removesuffix(roles.policy_role("")), known=self.products)
            listed = listed_in(state.snapshot.metadata.signed, role)
            _data, metadata = read_listed(self._read, role, listed)
            check_signed(role, metadata, state.targets.metadata.signed)
            state.delegated[role] = draft_of(metadata)
        return state.delegated[role]

    def _state(self) -> Drafts:
        if self._loaded is None:
            self._loaded = read_drafts(self._read)
        return self._loaded


def _hand_over(delegator: Root | Targets, role: str, keys: RoleKeys) -> None:
    """Make `keys` the only ones that `delegator` accepts for `role`."""
    owner = delegator.get_delegated_role(role)
    for keyid in list(owner.keyids):
        delegator.revoke_key(keyid, role)
    for key in keys.keys:
        delegator.add_key(key.as_tuf(), role)
    owner.threshold = keys.threshold
