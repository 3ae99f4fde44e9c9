"""The text format of OpenWrt's usign and OpenBSD's signify: ed25519 keys and signatures in two lines.

    untrusted comment: public key ab1df166947b2551      any text
    base64(algorithm "Ed", 2 bytes | key number, 8 | what it is about)

A public key carries 32 bytes behind the key number, a signature 64. A secret key carries `Ed`, the derivation `BK`,
its rounds (4 bytes, 0: not encrypted), a salt (16), the first 8 bytes of the SHA-512 of the key (64), the key number
and the key: seed and public half. Only unencrypted secret keys are read.
"""

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from overhaul.errors import InputError, TrustError

_ALGORITHM = b"Ed"
_DERIVATION = b"BK"
_NUMBER_BYTES = 8


class UsignTextError(InputError):
    """A text that is no usign key or signature."""

    def __init__(self, *, what: str, reason: str) -> None:
        self.what = what
        self.reason = reason
        super().__init__(f"This is no usign {what}: {reason}. Hand in the two lines that usign or signify wrote.")


class UsignSignatureError(TrustError):
    """A signature that none of the trusted keys made."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The signature of {name} does not verify: {reason}; nothing of it was used.")


@dataclass(frozen=True, kw_only=True)
class UsignPublicKey:
    """A key that signatures are checked with."""

    number: bytes
    key: bytes

    @property
    def key_id(self) -> str:
        """The key number as usign names key files: 16 hexadecimal digits."""
        return self.number.hex()

    def text(self) -> str:
        """Return the key as a file holds it."""
        return _written(f"public key {self.key_id}", _ALGORITHM + self.number + self.key)


@dataclass(frozen=True, kw_only=True)
class UsignSecretKey:
    """A key that signs; its representation does not show it."""

    number: bytes
    seed: bytes

    def __repr__(self) -> str:
        return f"UsignSecretKey({self.number.hex()})"

    @property
    def public(self) -> UsignPublicKey:
        """The half that may be shown."""
        return UsignPublicKey(
            number=self.number, key=Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()
        )

    def sign(self, data: bytes) -> str:
        """Return the signature of `data` as a file holds it."""
        signature = Ed25519PrivateKey.from_private_bytes(self.seed).sign(data)
        return _written(f"signed by key {self.number.hex()}", _ALGORITHM + self.number + signature)

    def text(self) -> str:
        """Return the key, not encrypted, as a file holds it."""
        both = self.seed + self.public.key
        head = _ALGORITHM + _DERIVATION + bytes(4) + bytes(16) + hashlib.sha512(both).digest()[:8]
        return _written("private key", head + self.number + both)


def generate_usign_key() -> UsignSecretKey:
    """Return a new key."""
    return UsignSecretKey(number=secrets.token_bytes(_NUMBER_BYTES), seed=secrets.token_bytes(32))


def parse_public_key(text: str) -> UsignPublicKey:
    """Return the public key in `text`; the comment line may be missing.

    Raises:
        UsignTextError: There is none.
    """
    data = _content(text, what="public key", size=42)
    return UsignPublicKey(number=data[2:10], key=data[10:])


def parse_secret_key(text: str) -> UsignSecretKey:
    """Return the unencrypted secret key in `text`.

    Raises:
        UsignTextError: There is none, or it is encrypted or damaged.
    """
    data = _content(text, what="secret key", size=104)
    if data[2:4] != _DERIVATION or data[4:8] != bytes(4):
        raise UsignTextError(what="secret key", reason="it is encrypted")
    both = data[40:]
    if hashlib.sha512(both).digest()[:8] != data[24:32]:
        raise UsignTextError(what="secret key", reason="its checksum is wrong")
    return UsignSecretKey(number=data[32:40], seed=both[:32])


def verify_usign(data: bytes, signature: str, keys: tuple[UsignPublicKey, ...], *, name: str) -> UsignPublicKey:
    """Check that one of `keys` signed `data`, and return it; `name` tells people what was checked.

    Raises:
        UsignTextError: `signature` is none.
        UsignSignatureError: None of the keys made it.
    """
    content = _content(signature, what="signature", size=74)
    number = content[2:10]
    known = [key for key in keys if key.number == number]
    if not known:
        raise UsignSignatureError(name=name, reason=f"key {number.hex()} is not trusted here")
    for key in known:
        try:
            Ed25519PublicKey.from_public_bytes(key.key).verify(content[10:], data)
        except (InvalidSignature, ValueError):
            continue
        return key
    raise UsignSignatureError(name=name, reason=f"it is not what key {number.hex()} signed")


def _content(text: str, *, what: str, size: int) -> bytes:
    lines = [line.strip() for line in text.strip().splitlines() if not line.startswith("untrusted comment:")]
    if len(lines) != 1:
        raise UsignTextError(what=what, reason=f"it has {len(lines)} lines of content instead of one")
    try:
        data = base64.b64decode(lines[0], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsignTextError(what=what, reason="it is not base64") from error
    if len(data) != size or data[:2] != _ALGORITHM:
        raise UsignTextError(what=what, reason=f"it does not hold {size} bytes that begin with Ed")
    return data


def _written(comment: str, data: bytes) -> str:
    return f"untrusted comment: {comment}\n{base64.b64encode(data).decode()}\n"
