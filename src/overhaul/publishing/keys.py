"""Changing which keys sign what: rotate, revoke, add, thresholds, and signatures that are made elsewhere.

Every change goes one way, under the repository's lock: new private keys and the plan are durable in the keyring
first (`Keyring.begin`), then metadata that names them is published with the timestamp last, then the keyring takes
the plan as its state (`Keyring.settle`). A run that dies is run again: what it began is found and finished, never
begun twice. Where keys are missing that must sign, the plan stays and `request_signatures` writes what they have to
sign; `import_signatures` publishes it when they did.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from overhaul.errors import InputError, OperatorError
from overhaul.publishing.opening import Repository
from overhaul.repository.signed import SignedChange
from overhaul.trust import roles
from overhaul.trust.keyring import Keyring, MissingKeyError
from overhaul.trust.keys import KeyCount, PublicKey, RoleKeys, parse_public_key
from overhaul.trust.requests import SigningRequest

#: Which keys roles are to have, given what is published, and the roles for which this very run found that a run
#: before it had published its change and died: their change is done.
_Plan = Callable[[SignedChange, Collection[str]], Mapping[str, RoleKeys]]


class UnknownKeyError(InputError):
    """A key that no role uses, or a beginning that several keys have."""

    def __init__(self, *, keyid: str, matches: tuple[str, ...]) -> None:
        self.keyid = keyid
        self.matches = matches
        found = f"{len(matches)} keys begin so" if matches else "no role uses such a key"
        super().__init__(f"{keyid!r} does not name a key: {found}; `overhaul keys list` shows their ids.")


class TooFewKeysError(InputError):
    """A revocation that would leave a role without enough keys to sign."""

    def __init__(self, *, role: str, left: int, threshold: int) -> None:
        self.role = role
        self.left = left
        self.threshold = threshold
        super().__init__(
            f"Without this key {role} has {left} keys and {threshold} must sign; add --replace to make another in "
            f"its place, or add one first with `overhaul keys add {role}`."
        )


class KeyKnownError(InputError):
    """A key added to a role that has it."""

    http_status = 409

    def __init__(self, *, role: str, keyid: str) -> None:
        self.role = role
        self.keyid = keyid
        super().__init__(f"{role} is signed with the key {keyid} already; hand in another one.")


class PendingChangeError(InputError):
    """A second change of a role's keys while the first waits for its signatures."""

    http_status = 409

    def __init__(self, *, role: str) -> None:
        self.role = role
        super().__init__(
            f"Another change of the keys of {role} has been begun and is not published; finish it with "
            f"`overhaul keys sign-request`, or drop it with `overhaul keys abandon {role}`."
        )


class OfflineSignaturesError(OperatorError):
    """A change that is planned, and needs keys that are not here."""

    def __init__(self, *, role: str, have: int, need: int) -> None:
        self.role = role
        self.have = have
        self.need = need
        super().__init__(
            f"{role} must be signed by {need} of its keys and {have} are here; nothing is published yet. Write what "
            "they must sign with `overhaul keys sign-request FILE`, or bring the keys here and run this again."
        )


class NothingToSignError(InputError):
    """A signing request where nothing waits for a signature."""

    def __init__(self) -> None:
        super().__init__(
            "Nothing waits for keys that are not here; change keys first, or name a role to sign again with --renew."
        )


class IncompleteRequestError(InputError):
    """A request that comes back with too few signatures."""

    def __init__(self, *, role: str, missing: int) -> None:
        self.role = role
        self.missing = missing
        super().__init__(f"{role} still lacks {missing} signatures; run `overhaul keys sign` where the other keys are.")


@dataclass(frozen=True, kw_only=True)
class RoleKeysChanged:
    """The keys of a role after a change."""

    role: str
    threshold: int
    keyids: tuple[str, ...]
    added: tuple[str, ...]
    revoked: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class KeysChanged:
    """What a change of keys did."""

    roles: tuple[RoleKeysChanged, ...]
    root_version: int
    #: False when all of it had been published before, by a run that died later.
    changed: bool


def rotate_role(
    repository: Repository, role: str, *, keys: int | None = None, threshold: int | None = None
) -> KeysChanged:
    """Give `role` new keys; as many as it has, unless told otherwise."""

    def plan(change: SignedChange, done: Collection[str]) -> Mapping[str, RoleKeys]:
        current = published_keys(change, role)
        if role in done:
            return {role: current}
        begun = change.keyring.following(role)
        if begun is not None:
            if _ids(begun) & _ids(current):
                raise PendingChangeError(role=role)
            return {role: begun}
        wanted = len(current.keys) if keys is None else keys
        count = KeyCount(keys=wanted, threshold=min(current.threshold, wanted) if threshold is None else threshold)
        return {role: RoleKeys(threshold=count.threshold, keys=change.keyring.make_keys(role, count.keys))}

    return _change(repository, plan, purpose="keys rotate")


def revoke_key(repository: Repository, keyid: str, *, replace: bool = False) -> KeysChanged:
    """Let the key whose id begins with `keyid` count for no role any more; with `replace` a new one takes its place."""

    def plan(change: SignedChange, done: Collection[str]) -> Mapping[str, RoleKeys]:
        if done and not _matches(change, keyid):
            return {role: published_keys(change, role) for role in done}
        whole = _whole_keyid(change, keyid)
        users = [role for role in change.editor.role_names if whole in change.editor.owner(role).keyids]
        begun = {role: change.keyring.following(role) for role in users}
        for role, following in begun.items():
            if following is not None and whole in _ids(following):
                raise PendingChangeError(role=role)
        planned: dict[str, RoleKeys] = {role: following for role, following in begun.items() if following is not None}
        # All are checked before the first key is made.
        for role in users:
            current = published_keys(change, role)
            if role not in planned and not replace and len(current.keys) - 1 < current.threshold:
                raise TooFewKeysError(role=role, left=len(current.keys) - 1, threshold=current.threshold)
        for role in (role for role in users if role not in planned):
            current = published_keys(change, role)
            rest = tuple(key for key in current.keys if key.keyid != whole)
            new = change.keyring.make_keys(role, 1) if replace else ()
            planned[role] = RoleKeys(threshold=current.threshold, keys=(*rest, *new))
        return planned

    return _change(repository, plan, purpose="keys revoke")


def add_key(repository: Repository, role: str, *, public: bytes | None = None, token: str | None = None) -> KeysChanged:
    """Let one more key count for `role`: a new one, the one whose PEM is `public`, or one on a PKCS#11 token."""

    def plan(change: SignedChange, done: Collection[str]) -> Mapping[str, RoleKeys]:
        current, ring = published_keys(change, role), change.keyring
        if role in done:
            return {role: current}
        given = _given_key(ring, role, public=public, token=token)
        begun = ring.following(role)
        if begun is not None:
            new = _ids(begun) - _ids(current)
            if begun.threshold != current.threshold or len(new) != 1 or (given and given.keyid not in new):
                raise PendingChangeError(role=role)
            return {role: begun}
        if given is not None and given.keyid in _ids(current):
            raise KeyKnownError(role=role, keyid=given.keyid)
        added = (given,) if given is not None else ring.make_keys(role, 1)
        return {role: RoleKeys(threshold=current.threshold, keys=(*current.keys, *added))}

    return _change(repository, plan, purpose="keys add")


def set_threshold(repository: Repository, role: str, threshold: int) -> KeysChanged:
    """Let `threshold` of the keys of `role` be needed to sign it."""

    def plan(change: SignedChange, _done: Collection[str]) -> Mapping[str, RoleKeys]:
        current, begun = published_keys(change, role), change.keyring.following(role)
        count = KeyCount(keys=len(current.keys), threshold=threshold)
        if begun is not None and (begun.threshold != threshold or _ids(begun) != _ids(current)):
            raise PendingChangeError(role=role)
        return {role: RoleKeys(threshold=count.threshold, keys=current.keys)}

    return _change(repository, plan, purpose="keys threshold")


def abandon_change(repository: Repository, role: str) -> bool:
    """Drop a planned change of the keys of `role` that is not published, and tell whether there was one."""
    with repository.locked("keys abandon") as lock:
        change = repository.change(lock)
        settle(change)
        change.editor.owner(role)
        if change.keyring.following(role) is None:
            return False
        change.keyring.abandon(role)
        return True


def request_signatures(repository: Repository, *, renew: tuple[str, ...] = ()) -> SigningRequest:
    """Return everything that waits for keys that are not here: begun changes, added products, and the roles `renew`.

    Raises:
        NothingToSignError: Nothing does.
    """
    with repository.locked("keys sign-request") as lock:
        change = repository.change(lock)
        settle(change)
        editor, ring = change.editor, change.keyring
        for product in repository.settings.products:
            if product not in editor.products and {product, roles.policy_role(product)} <= set(ring.role_names):
                editor.add_product(product)
        for role in editor.role_names:
            following = ring.following(role)
            if following is not None:
                editor.hand_over(role, following)
        for role in renew:
            editor.renew(role)
        unsigned = editor.unsigned()
        if not unsigned:
            raise NothingToSignError
        return SigningRequest.of(unsigned)


def import_signatures(repository: Repository, request: SigningRequest) -> KeysChanged:
    """Publish what was signed elsewhere, and sign here what else it demands.

    Raises:
        IncompleteRequestError: Signatures are missing.
        OutdatedDraftError: The repository went on since the request was made.
        TrustError: A signature is wrong.
    """
    for one in request.roles:
        if one.missing:
            raise IncompleteRequestError(role=one.role, missing=one.missing)
    with repository.locked("keys import") as lock:
        change = repository.change(lock)
        settle(change)
        before = {role: published_keys(change, role) for role in change.editor.role_names}
        change.editor.adopt({one.role: one.metadata.encode() for one in request.roles})
        changed = change.commit()
        settle(change)
        after = {role: published_keys(change, role) for role in change.editor.role_names}
        return _report(change, before, after, changed=changed)


def published_keys(change: SignedChange, role: str) -> RoleKeys:
    """Return the keys that signed metadata names for `role`, with what the keyring knows of them."""
    owner = change.editor.owner(role)
    keys = []
    for keyid in owner.keyids:
        known, named = change.keyring.find(keyid), change.editor.public_key(keyid)
        if known is not None:
            keys.append(known)
        elif named is not None:
            keys.append(PublicKey.from_tuf(named))
    return RoleKeys(threshold=owner.threshold, keys=tuple(keys))


def settle(change: SignedChange) -> tuple[str, ...]:
    """Let the keyring take over the planned changes that turn out to be published, and return their roles."""
    done = []
    for role in change.editor.role_names:
        following = change.keyring.following(role)
        if following is not None and _same(following, published_keys(change, role)):
            done.append(role)
    if done:
        change.keyring.settle(done)
    return tuple(done)


def commit_or_explain(change: SignedChange) -> bool:
    """Commit; what lacks keys that may be elsewhere says how to have it signed there."""
    try:
        return change.commit()
    except MissingKeyError as error:
        if error.role in {roles.SNAPSHOT, roles.TIMESTAMP}:
            raise
        raise OfflineSignaturesError(role=error.role, have=error.have, need=error.need) from error


def _change(repository: Repository, plan: _Plan, *, purpose: str) -> KeysChanged:
    with repository.locked(purpose) as lock:
        change = repository.change(lock)
        planned = plan(change, settle(change))
        before = {role: published_keys(change, role) for role in planned}
        new = {role: keys for role, keys in planned.items() if not _same(keys, before[role])}
        change.keyring.begin(new)
        for role, keys in new.items():
            change.editor.hand_over(role, keys)
        changed = commit_or_explain(change)
        change.keyring.settle(new)
        return _report(change, before, planned, changed=changed)


def _report(
    change: SignedChange, before: Mapping[str, RoleKeys], after: Mapping[str, RoleKeys], *, changed: bool
) -> KeysChanged:
    found = []
    for role, keys in after.items():
        old = _ids(before[role]) if role in before else frozenset()
        if role in before and _same(before[role], keys) and len(after) > 1:
            continue
        found.append(
            RoleKeysChanged(
                role=role,
                threshold=keys.threshold,
                keyids=tuple(key.keyid for key in keys.keys),
                added=tuple(key.keyid for key in keys.keys if key.keyid not in old),
                revoked=tuple(sorted(old - _ids(keys))),
            )
        )
    [root] = [status for status in change.editor.status() if status.role == roles.ROOT]
    return KeysChanged(roles=tuple(found), root_version=root.version, changed=changed)


def _given_key(ring: Keyring, role: str, *, public: bytes | None, token: str | None) -> PublicKey | None:
    if token is not None:
        from overhaul.trust.tokens import read_token_key

        key = read_token_key(token, pin=ring.pin)
        return PublicKey.from_tuf(key, token=token)
    if public is None:
        return None
    key = parse_public_key(public)
    return ring.find(key.keyid) or PublicKey.from_tuf(key, file=ring.free_name(role))


def _whole_keyid(change: SignedChange, beginning: str) -> str:
    matches = _matches(change, beginning)
    if len(matches) != 1:
        raise UnknownKeyError(keyid=beginning, matches=matches)
    return matches[0]


def _matches(change: SignedChange, beginning: str) -> tuple[str, ...]:
    named = {keyid for role in change.editor.role_names for keyid in change.editor.owner(role).keyids}
    return tuple(sorted(keyid for keyid in named if beginning and keyid.startswith(beginning)))


def _ids(keys: RoleKeys) -> frozenset[str]:
    return frozenset(key.keyid for key in keys.keys)


def _same(one: RoleKeys, other: RoleKeys) -> bool:
    return one.threshold == other.threshold and _ids(one) == _ids(other)
