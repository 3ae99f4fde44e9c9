"""Public keys, and how many of them a role needs: what metadata and keyrings say of keys.

A key is ed25519, or ECDSA on P-256 or P-384; its private half is in a file (`keyfiles`) or in a token (`tokens`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from overhaul.errors import InputError
from overhaul.trust import roles

if TYPE_CHECKING:
    from securesystemslib.signer import Key, SSlibKey

ED25519 = "ed25519"
_ECDSA_SCHEMES = {"secp256r1": "ecdsa-sha2-nistp256", "secp384r1": "ecdsa-sha2-nistp384"}


class UnusablePublicKeyError(InputError):
    """A file that was handed in as a public key and is none that can sign here."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"This public key cannot be used: {reason}; make one with `openssl pkey -in KEY.pem -pubout`.")


class PublicKey(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The public half of a key, and where its private half is."""

    keyid: str
    #: 64 hexadecimal digits of an ed25519 public key; a PEM of those of other schemes.
    public: str
    #: The name its private half has when it is here; empty when it never is, because a token holds it.
    file: str = ""
    scheme: str = ED25519
    #: `hsm:ID?label=LABEL` of the PKCS#11 token that holds the private half.
    token: str = ""

    @classmethod
    def from_tuf(cls, key: "Key", *, file: str = "", token: str = "") -> "PublicKey":
        """Return the record of a key as metadata carries it."""
        return cls(keyid=key.keyid, public=key.keyval["public"], file=file, scheme=key.scheme, token=token)

    def as_tuf(self) -> "SSlibKey":
        """Return the key as metadata carries it."""
        from securesystemslib.signer import SSlibKey

        kind = ED25519 if self.scheme == ED25519 else "ecdsa"
        return SSlibKey(self.keyid, kind, self.scheme, {"public": self.public})


class RoleKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a role, and how many of them must sign."""

    threshold: int
    keys: tuple[PublicKey, ...]


class ThresholdError(InputError):
    """A threshold that cannot be reached, or that nothing stops."""

    def __init__(self, *, threshold: int, keys: int) -> None:
        self.threshold = threshold
        self.keys = keys
        super().__init__(
            f"A threshold of {threshold} among {keys} keys makes no sense; give a number from 1 to the number of keys."
        )


@dataclass(frozen=True, kw_only=True)
class KeyCount:
    """How many keys a role gets, and how many of them must sign."""

    keys: int
    threshold: int

    def __post_init__(self) -> None:
        """Refuse a threshold that can never, or is always, reached."""
        if not 1 <= self.threshold <= self.keys:
            raise ThresholdError(threshold=self.threshold, keys=self.keys)


@dataclass(frozen=True, kw_only=True)
class KeyPlan:
    """How many keys each kind of role gets when keys are made."""

    root: KeyCount = KeyCount(keys=3, threshold=2)
    targets: KeyCount = KeyCount(keys=3, threshold=2)
    product: KeyCount = KeyCount(keys=1, threshold=1)
    policy: KeyCount = KeyCount(keys=1, threshold=1)
    online: KeyCount = KeyCount(keys=1, threshold=1)
    #: Counts of single roles, by role name, that differ from their kind's.
    exceptions: Mapping[str, KeyCount] = field(default_factory=dict)

    def of(self, role: str) -> KeyCount:
        """Return the count for `role`."""
        if role in self.exceptions:
            return self.exceptions[role]
        kinds = {
            roles.ROOT: self.root,
            roles.TARGETS: self.targets,
            roles.SNAPSHOT: self.online,
            roles.TIMESTAMP: self.online,
            roles.BUILDS: self.online,
        }
        return kinds.get(role, self.policy if roles.is_policy_role(role) else self.product)


def parse_public_key(data: bytes) -> "SSlibKey":
    """Return the public key in a PEM (`BEGIN PUBLIC KEY`): ed25519, or ECDSA on P-256 or P-384.

    Raises:
        UnusablePublicKeyError: It holds none of these.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        public = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnusablePublicKeyError(reason="it holds no public key in PEM form") from error
    if isinstance(public, EllipticCurvePublicKey) and public.curve.name in _ECDSA_SCHEMES:
        return SSlibKey.from_crypto(public, scheme=_ECDSA_SCHEMES[public.curve.name])
    if isinstance(public, Ed25519PublicKey):
        return SSlibKey.from_crypto(public)
    raise UnusablePublicKeyError(reason="it is neither ed25519 nor ECDSA on P-256 or P-384")
