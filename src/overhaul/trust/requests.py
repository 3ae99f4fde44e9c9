"""Metadata that leaves the publisher's machine to be signed where the keys are, and comes back.

One JSON document: for each role the whole next version, the published one it follows, and whose signatures it needs.
Signing it needs no repository and no network, and several people can sign one after another. The document itself is
not trusted by anybody: who signs is told what the metadata would change (`describe`), and who imports it checks the
signatures against published metadata.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
from tuf.api.serialization import SerializationError

from overhaul.errors import InputError
from overhaul.trust import roles
from overhaul.trust._loading import AnyMetadata, parse, sign
from overhaul.trust.editing import UnsignedRole
from overhaul.trust.refusals import MalformedMetadataError

if TYPE_CHECKING:
    from securesystemslib.signer import Signer
    from tuf.api.metadata import Root, Targets

REQUEST_FORMAT = 1
#: Returns a signer for a key that it has, or None; it is given the key's id.
FindSigner = Callable[[str], "Signer | None"]


class UnreadableRequestError(InputError):
    """A file that is no signing request."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"This is no signing request ({reason}); make one with `overhaul keys sign-request`.")


class Quorum(msgspec.Struct, frozen=True, kw_only=True):
    """Keys of which at least `threshold` must sign."""

    keyids: tuple[str, ...]
    threshold: int


class RequestedRole(msgspec.Struct, frozen=True, kw_only=True):
    """One role to be signed."""

    role: str
    metadata: str
    previous: str | None
    owners: tuple[Quorum, ...]

    @property
    def signers(self) -> frozenset[str]:
        """The keys whose signature is there; whether it is right is judged at the import."""
        return frozenset(self._parsed().signatures)

    @property
    def missing(self) -> int:
        """How many signatures are still needed, of the quorum that lacks most."""
        present = self.signers
        return max(max(0, owner.threshold - len(present & set(owner.keyids))) for owner in self.owners)

    def signed_with(self, find: FindSigner) -> "RequestedRole":
        """Return the role with the signatures of every key that `find` finds."""
        metadata = self._parsed()
        for keyid in dict.fromkeys(keyid for owner in self.owners for keyid in owner.keyids):
            signer = None if keyid in metadata.signatures else find(keyid)
            if signer is not None:
                sign(metadata, signer)
        return msgspec.structs.replace(self, metadata=metadata.to_bytes().decode())

    def describe(self) -> list[str]:
        """Return, for the person who is to sign, what would change."""
        signed = self._parsed().signed
        lines = [f"{self.role} version {signed.version}, until {signed.expires:%Y-%m-%d}"]
        before = None if self.previous is None else parse(self.role, self.previous.encode()).signed
        old, new = _keys_of_roles(before), _keys_of_roles(signed)
        for name in sorted(old.keys() | new.keys()):
            if name not in new:
                lines.append(f"  {name}: dropped")
            elif old.get(name) != new[name]:
                lines += _changed_keys(name, old.get(name), new[name])
        if self.role not in roles.TOP_LEVEL and signed.type == roles.TARGETS:
            listed = {} if before is None else before.targets
            for path in sorted(signed.targets.keys() | listed.keys()):
                if signed.targets.get(path) != listed.get(path):
                    lines.append(f"  {path}: {'changed' if path in signed.targets else 'dropped'}")
        return lines if len(lines) > 1 else [*lines, "  nothing but its date"]

    def _parsed(self) -> AnyMetadata:
        return parse(self.role, self.metadata.encode())


class SigningRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be signed elsewhere."""

    roles: tuple[RequestedRole, ...]
    format: int = REQUEST_FORMAT

    @classmethod
    def of(cls, unsigned: Sequence[UnsignedRole]) -> "SigningRequest":
        """Return the request for what an editor could not sign."""
        return cls(
            roles=tuple(
                RequestedRole(
                    role=one.role,
                    metadata=one.metadata.decode(),
                    previous=None if one.previous is None else one.previous.decode(),
                    owners=tuple(Quorum(keyids=owner.keyids, threshold=owner.threshold) for owner in one.owners),
                )
                for one in unsigned
            )
        )

    @property
    def keyids(self) -> tuple[str, ...]:
        """Every key whose signature counts for something in it."""
        named = (keyid for one in self.roles for owner in one.owners for keyid in owner.keyids)
        return tuple(dict.fromkeys(named))

    @property
    def id(self) -> str:
        """What two people compare over the telephone: a digest of what is signed, without signatures."""
        digest = hashlib.sha256()
        for one in self.roles:
            digest.update(hashlib.sha256(parse(one.role, one.metadata.encode()).signed_bytes).digest())
        return digest.hexdigest()[:16]

    def signed_with(self, find: FindSigner) -> "SigningRequest":
        """Return the request with the signatures of every key that `find` finds."""
        return msgspec.structs.replace(self, roles=tuple(one.signed_with(find) for one in self.roles))

    def encode(self) -> bytes:
        """Return the document."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"


def decode_request(data: bytes) -> SigningRequest:
    """Return the request in `data`.

    Raises:
        UnreadableRequestError: It is none.
        MalformedMetadataError: What is to be signed in it is no metadata.
    """
    try:
        request = msgspec.json.decode(data, type=SigningRequest)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnreadableRequestError(reason=str(error)) from error
    if request.format != REQUEST_FORMAT:
        raise UnreadableRequestError(reason=f"it has format {request.format}, known here is {REQUEST_FORMAT}")
    if not request.roles or not all(one.owners for one in request.roles):
        raise UnreadableRequestError(reason="nothing is to be signed in it")
    for one in request.roles:
        metadata = parse(one.role, one.metadata.encode())
        if one.previous is not None:
            parse(one.role, one.previous.encode())
        try:
            _ = metadata.signed_bytes
        except SerializationError as error:
            raise MalformedMetadataError(role=one.role, reason=str(error.__cause__ or error)) from error
    return request


def _keys_of_roles(signed: "Root | Targets | None") -> dict[str, tuple[int, frozenset[str]]]:
    """Return threshold and keys of every role that `signed` delegates to."""
    from tuf.api.metadata import Root

    if signed is None:
        return {}
    if isinstance(signed, Root):
        return {name: (one.threshold, frozenset(one.keyids)) for name, one in signed.roles.items()}
    named = {} if signed.delegations is None else signed.delegations.roles or {}
    return {name: (one.threshold, frozenset(one.keyids)) for name, one in named.items()}


def _changed_keys(name: str, old: tuple[int, frozenset[str]] | None, new: tuple[int, frozenset[str]]) -> list[str]:
    threshold, keyids = new
    known = frozenset() if old is None else old[1]
    lines = [f"  {name}: {threshold} of {len(keyids)} keys must sign{'' if old else ' (new role)'}"]
    lines += [f"    + {keyid}" for keyid in sorted(keyids - known)]
    return lines + [f"    - {keyid}" for keyid in sorted(known - keyids)]
