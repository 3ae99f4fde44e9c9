"""A drill: what a thief of keys could do, tried on a twin of the repository, and the recovery from it.

The twin is in memory. It has the roles, key counts, thresholds and signed targets of the real repository, and keys
made for the drill: no genuine key is needed, and none ever signs a forgery. Against the twin stands the device's real
trust client with a state of its own, in a temporary directory. What it cannot show is what lies behind the trust
client: that the agent installs nothing but what a believed record names, and only the image that a believed policy
lists for it, is the agent's own promise.

Keys of one role are alike, so a theft is a number of keys for each role (`Theft`).
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tuf.api.metadata import Metadata, MetaFile, Root, TargetFile, Targets

from overhaul.errors import OverhaulError
from overhaul.transfer.fetcher import Request, Response
from overhaul.trust import roles
from overhaul.trust._loading import AnyMetadata
from overhaul.trust.client import TrustedRepository
from overhaul.trust.editor import MetadataEditor, Owner
from overhaul.trust.keyring import Keyring
from overhaul.trust.keys import KeyCount, KeyPlan, RoleKeys
from overhaul.trust.layout import TIMESTAMP_KEY, metadata_key, target_key

if TYPE_CHECKING:
    from overhaul.trust.keys import PublicKey

#: Keys stolen, by role; a role that is not there lost none.
Theft = Mapping[str, int]

_ONLINE = (roles.SNAPSHOT, roles.TIMESTAMP)
_FORGED = b"the thief's own words"
_BASE = "drill:"
_MEMORY = "/dev/shm"  # noqa: S108 - the directory made in it is nobody else's


class Power(IntEnum):
    """What a thief gets devices to believe, the worst last."""

    #: Nothing but what the publisher signed.
    NOTHING = 0
    #: No update: genuine roles, held back or renewed for as long as their own signatures last, or records of other
    #: images than the policy lists.
    FREEZE = 1
    #: Another choice among genuine releases.
    POLICY = 2
    #: Foreign releases, of one product or of all.
    FOREIGN_RELEASE = 3
    #: Everything for ever: the device follows the thief's root.
    EVERYTHING = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the twin copies: whose signatures count, and what is signed."""

    owners: Mapping[str, Owner]
    targets: Mapping[str, bytes]

    @property
    def products(self) -> tuple[str, ...]:
        """The products."""
        others = {*roles.TOP_LEVEL, roles.BUILDS}
        return tuple(name for name in self.owners if name not in others and not roles.is_policy_role(name))


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """One theft that was tried."""

    product: str
    stolen: Mapping[str, int]
    #: What the rules say the thief gets, and what he got.
    expected: Power
    seen: Power
    #: Roles that got new keys afterwards.
    rotated: tuple[str, ...]
    #: Whether a device that believed the thief followed the new keys; None where only a new root.json helps.
    followed: bool | None
    #: What the thief still got when he came again with the stolen keys.
    seen_again: Power

    @property
    def is_sound(self) -> bool:
        """Whether everything went as it must."""
        return self.seen == self.expected and self.followed is not False and self.seen_again is Power.NOTHING


def power_of(theft: Theft, owners: Mapping[str, Owner], product: str) -> Power:
    """Return what a thief gets devices of `product` to believe; everything below a threshold is worth nothing."""
    won = {role for role, owner in owners.items() if theft.get(role, 0) >= owner.threshold}
    if roles.ROOT in won:
        return Power.EVERYTHING
    if not won.issuperset(_ONLINE):
        return Power.FREEZE if roles.TIMESTAMP in won else Power.NOTHING
    # Who signs targets names the keys of both. Without the policy, a record of another image than it lists is refused.
    both = {product, roles.policy_role(product)}
    if roles.TARGETS in won or won >= both:
        return Power.FOREIGN_RELEASE
    return Power.POLICY if roles.policy_role(product) in won else Power.FREEZE


def thefts(owners: Mapping[str, Owner], product: str) -> list[Theft]:
    """Return the thefts worth a rehearsal: each number of keys of each role alone, and with the online keys."""
    online = {role: owners[role].threshold for role in _ONLINE}
    mine = [role for role in (*roles.TOP_LEVEL, product, roles.policy_role(product)) if role in owners]
    below = {role: owners[role].threshold - 1 for role in mine if role not in _ONLINE}
    found: list[Theft] = [{role: owners[role].threshold - 1 for role in mine}, online, {**below, **online}]
    for role in mine:
        for count in range(1, len(owners[role].keyids) + 1):
            found.append({role: count})
            if role not in {*_ONLINE, roles.ROOT}:
                found.append({**online, role: count})
    both = {name: owners[name].threshold for name in (product, roles.policy_role(product))}
    unique = {
        tuple(sorted((role, n) for role, n in theft.items() if n)): theft for theft in (*found, {**online, **both})
    }
    return [dict(theft) for theft in unique]


def rehearse(shape: Shape, theft: Theft, *, product: str, now: datetime) -> Rehearsal:
    """Try one theft on a twin, recover, and let the thief come again."""
    with _twin(shape, product, now) as twin:
        expected = power_of(theft, shape.owners, product)
        keys = twin.stolen(theft)
        genuine = dict(twin.files)
        device = twin.device("victim")
        device.refresh()
        seen, loot = twin.try_theft(keys, product, "victim")
        won = tuple(role for role, owner in shape.owners.items() if theft.get(role, 0) >= owner.threshold)
        twin.serve(genuine)
        twin.now += timedelta(hours=1)
        twin.recover(won)
        # A device that took the thief's root trusts his keys alone; the others still follow the publisher's.
        follower = "victim" if seen is not Power.EVERYTHING else "other"
        followed = twin.sees_genuine(follower)
        recovered = dict(twin.files)
        again = max((twin.look(follower, {**recovered, **files}, files) for files in loot), default=Power.NOTHING)
        twin.serve(recovered)
        second, _files = twin.try_theft(keys, product, follower)
        return Rehearsal(
            product=product,
            stolen=dict(theft),
            expected=expected,
            seen=seen,
            rotated=won,
            followed=None if seen is Power.EVERYTHING and followed else followed,
            seen_again=max(again, second),
        )


def shape_of(editor: MetadataEditor) -> Shape:
    """Return what of a repository the twin copies."""
    return Shape(
        owners={role: editor.owner(role) for role in editor.role_names},
        targets={path: editor.read_target(path) for path in editor.targets()},
    )


class _Twin:
    """The repository the drill is held on."""

    def __init__(self, directory: Path, shape: Shape, product: str, now: datetime) -> None:
        self.files: dict[str, bytes] = {}
        self.now = now
        self._directory = directory
        counts = {role: KeyCount(keys=len(own.keyids), threshold=own.threshold) for role, own in shape.owners.items()}
        self._keyring = Keyring.generate(
            directory / "keys",
            products=shape.products,
            plan=KeyPlan(exceptions=counts),
            with_builds=roles.BUILDS in shape.owners,
            demo=True,
        )
        self._thief = Keyring.generate(directory / "thief", products=(), plan=_ONE_KEY, demo=True)
        self._policy, self._record = f"{product}/policy/drill.json", f"{product}/releases/drill/any/1/1.json"
        targets = {self._policy: b"policy", self._record: b"record", **shape.targets}
        self._edit(lambda editor: editor.create(shape.products, with_builds=roles.BUILDS in shape.owners))
        self._edit(partial(_put_all, targets))
        self._root = self.files[metadata_key(roles.ROOT, 1)]

    def device(self, name: str) -> TrustedRepository:
        """Return the trust client of a device as it starts."""
        return TrustedRepository(
            state_directory=self._directory / name,
            base_url=_BASE,
            bootstrap_root=self._root,
            fetcher=_Files(self.files),
            clock=lambda: self.now,
        )

    def stolen(self, theft: Theft) -> dict[str, tuple["PublicKey", ...]]:
        """Return the keys that a theft takes."""
        return {role: self._keyring.role(role).keys[:count] for role, count in theft.items()}

    def recover(self, won: Sequence[str]) -> None:
        """Do what the publisher does: new keys for every role that a thief can sign."""
        for role in won:
            self._keyring.renew(role)

        def rotate(editor: MetadataEditor) -> None:
            for role in won:
                editor.rotate(role)
            editor.refresh()

        self._edit(rotate)

    def sees_genuine(self, name: str) -> bool:
        """Tell whether a device follows what is published."""
        try:
            device = self.device(name)
            device.refresh()
            return device.read_target(self._policy) == b"policy" and device.read_target(self._record) == b"record"
        except OverhaulError:
            return False

    def try_theft(
        self, keys: Mapping[str, Sequence["PublicKey"]], product: str, name: str
    ) -> tuple[Power, list[dict[str, bytes]]]:
        """Let the thief try everything, the boldest last; return what a device believed and what he served."""
        honest, worst, served = dict(self.files), Power.NOTHING, []
        own = {role for role, taken in keys.items() if len(taken) >= self._threshold(role)}
        attempts = [frozenset(own - {roles.ROOT}), frozenset({*_ONLINE, roles.TARGETS, product})]
        attempts += [frozenset(own), frozenset({roles.ROOT, *roles.TOP_LEVEL, product, roles.policy_role(product)})]
        for attempt in dict.fromkeys(attempts):
            forged = self._forge(attempt, keys, product)
            served.append(forged)
            worst = max(worst, self.look(name, {**honest, **forged}, forged))
            self.serve(honest)
        return worst, served

    def serve(self, files: Mapping[str, bytes]) -> None:
        """Publish `files` and nothing else."""
        content = dict(files)
        self.files.clear()
        self.files.update(content)

    def look(self, name: str, files: Mapping[str, bytes], forged: Mapping[str, bytes]) -> Power:
        """Return what a device makes of `files`, of which the thief wrote `forged`."""
        self.serve(files)
        device, believed = self.device(name), Power.NOTHING
        try:
            device.refresh()
        except OverhaulError:
            # A new root may be trusted although the rest was refused.
            return Power.EVERYTHING if self._trusts_root(name, forged) else Power.NOTHING
        if self._trusts_root(name, forged):
            return Power.EVERYTHING
        if forged.get(TIMESTAMP_KEY) == (self._directory / name / "metadata/timestamp.json").read_bytes():
            believed = Power.FREEZE
        if self._believes(device, self._policy):
            believed = Power.FOREIGN_RELEASE if self._believes(device, self._record) else Power.POLICY
        return believed

    def _believes(self, device: TrustedRepository, path: str) -> bool:
        try:
            return device.read_target(path) == _FORGED
        except OverhaulError:
            return False

    def _trusts_root(self, name: str, forged: Mapping[str, bytes]) -> bool:
        history = self._directory / name / "metadata/root_history"
        kept = {path.read_bytes() for path in history.glob("*.root.json")}
        return any(data in kept for key, data in forged.items() if key.endswith(".root.json"))

    def _forge(
        self, attempt: frozenset[str], keys: Mapping[str, Sequence["PublicKey"]], product: str
    ) -> dict[str, bytes]:
        """Return the files of a thief who signs the roles `attempt` with what he has."""
        files: dict[str, bytes] = {}
        own = self._thief.role(roles.ROOT)
        policy_role = roles.policy_role(product)

        def usurp(signed: "Root | Targets", names: Sequence[str]) -> None:
            for name in names:
                _name_only(signed, name, own)

        def lie(signed: Targets, path: str) -> None:
            target = TargetFile.from_data(path, _FORGED, ["sha256"])
            signed.targets[path] = target
            files[target_key(path, target.hashes["sha256"])] = _FORGED

        usurped: set[str] = set()
        if roles.ROOT in attempt:
            root = self._next(roles.ROOT)
            usurp(root.signed, roles.TOP_LEVEL)
            self._put(files, roles.ROOT, root, keys)
            usurped.update(roles.TOP_LEVEL)
        listed: dict[str, AnyMetadata] = {}
        if roles.TARGETS in attempt | usurped:
            listed[roles.TARGETS] = self._next(roles.TARGETS)
            usurp(listed[roles.TARGETS].signed, (product, policy_role))
            usurped.update((product, policy_role))
        for role, path in ((product, self._record), (policy_role, self._policy)):
            if role in attempt | usurped:
                listed[role] = self._next(role)
                lie(listed[role].signed, path)
        snapshot, timestamp = self._next(roles.SNAPSHOT), self._next(roles.TIMESTAMP)
        for role, metadata in listed.items():
            data = self._put(files, role, metadata, keys)
            snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(metadata.signed.version, data, ["sha256"])
        if roles.SNAPSHOT in attempt | usurped:
            data = self._put(files, roles.SNAPSHOT, snapshot, keys)
            timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, data, ["sha256"])
        if roles.TIMESTAMP in attempt | usurped:
            self._put(files, roles.TIMESTAMP, timestamp, keys)
        return files

    def _put(
        self,
        files: dict[str, bytes],
        role: str,
        metadata: AnyMetadata,
        keys: Mapping[str, Sequence["PublicKey"]],
    ) -> bytes:
        """Sign with the stolen keys of the role and with the thief's own."""
        ids = [key.keyid for key in keys.get(role, ())]
        metadata.signatures.clear()
        own = [key.keyid for key in self._thief.role(roles.ROOT).keys]
        for signer in (
            *self._keyring.signers(role, keyids=ids, threshold=0),
            *self._thief.signers(role, keyids=own, threshold=0),
        ):
            metadata.sign(signer, append=True)
        data = metadata.to_bytes()
        files[TIMESTAMP_KEY if role == roles.TIMESTAMP else metadata_key(role, metadata.signed.version)] = data
        return data

    def _next(self, role: str) -> AnyMetadata:
        """Return the version of a role that would follow the published one, unsigned."""
        metadata: AnyMetadata = Metadata.from_bytes(self.files[self._key_of(role)])
        metadata.signed.version += 1
        metadata.signed.expires = self.now + timedelta(days=1)
        return metadata

    def _key_of(self, role: str) -> str:
        if role == roles.TIMESTAMP:
            return TIMESTAMP_KEY
        if role == roles.ROOT:
            version = 1
            while metadata_key(role, version + 1) in self.files:
                version += 1
            return metadata_key(role, version)
        [status] = [one for one in self._editor().status() if one.role == role]
        return metadata_key(role, status.version)

    def _threshold(self, role: str) -> int:
        return self._editor().owner(role).threshold

    def _editor(self) -> MetadataEditor:
        return MetadataEditor(self.files.get, self._keyring, self.now)

    def _edit(self, change: Callable[[MetadataEditor], object]) -> None:
        editor = self._editor()
        change(editor)
        self.files.update(editor.changes())


class _Files:
    """A server that is a dictionary."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self._files = files

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Answer a request."""
        data = self._files.get(request.url.removeprefix(f"{_BASE}/"))
        status, body = (404, b"") if data is None else (200, data)
        yield Response(url=request.url, status=status, headers={}, body=iter([body]))


_ONE_KEY = KeyPlan(root=KeyCount(keys=1, threshold=1), targets=KeyCount(keys=1, threshold=1))


@contextmanager
def _twin(shape: Shape, product: str, now: datetime) -> Iterator[_Twin]:
    # In memory where there is such a place: a drill is held for nothing but its report.
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="overhaul-drill-", dir=place) as name:
        yield _Twin(Path(name), shape, product, now)


def _put_all(targets: Mapping[str, bytes], editor: MetadataEditor) -> None:
    for path, data in targets.items():
        editor.put_target(path, data)


def _name_only(signed: "Root | Targets", role: str, keys: RoleKeys) -> None:
    owner = signed.get_delegated_role(role)
    for keyid in list(owner.keyids):
        signed.revoke_key(keyid, role)
    for key in keys.keys:
        signed.add_key(key.as_tuf(), role)
    owner.threshold = 1
