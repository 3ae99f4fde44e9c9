"""Signatures over commits and summaries: OpenPGP through GnuPG, and ed25519.

Both lie in an `a{sv}`: a commit's `.commitmeta` object, and `summary.sig` for the summary.

    ostree.gpgsigs         `aay`, binary detached OpenPGP signatures
    ostree.sign.ed25519    `aay`, signatures of 64 bytes

Each signs exactly the bytes of the commit object or summary. One good signature of a trusted key is enough. A good
signature is one GnuPG calls good and valid without reservation: an expired or revoked key or signature is none.
"""

import base64
import binascii
import re
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from overhaul.dialects.ostree.errors import MalformedOstreeDataError, UnsignedOstreeError
from overhaul.dialects.ostree.gvariant import Variant
from overhaul.dialects.ostree.objects import Metadata
from overhaul.errors import OperatorError
from overhaul.host.processes import ProgramFailedError, ProgramMissingError, find_program, run

GPG_KEY = "ostree.gpgsigs"
ED25519_KEY = "ostree.sign.ed25519"

_ED25519_SEED_SIZE = 32
#: Nobody signs more often; bounds how many times a program runs for bytes from outside.
_MAX_SIGNATURES = 32
_GPG_TIMEOUT_S = 120.0
#: A device's verifier is gpgv, which has neither home nor agent; where only gpg is installed it does the same.
_ARMOR = re.compile(
    rb"-----BEGIN PGP PUBLIC KEY BLOCK-----\r?\n(?:[^\r\n]+\r?\n)*\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----",
    re.DOTALL,
)
_SIGNATURE_PACKET = 2
_STATUS = "[GNUPG:] "
#: Of a signature over bytes as they are; over text, others could have other line ends.
_BINARY_CLASS = "00"


_DETACHED = ("--quiet", "--pinentry-mode", "loopback", "--digest-algo", "SHA512", "--detach-sign")


class SigningFailedError(OperatorError):
    """A key that could not be used."""

    def __init__(self, *, key: str, reason: str) -> None:
        self.key = key
        self.reason = reason
        super().__init__(f"The OSTree signing key {key} cannot be used: {reason}")


class Signer(Protocol):
    """Somebody who signs commits and summaries."""

    #: Where the signature lies in the metadata.
    metadata_key: str

    def sign(self, data: bytes) -> bytes:
        """Return the signature over `data`; raise `SigningFailedError` when that is not possible."""


def with_signatures(metadata: Metadata, data: bytes, signers: Sequence[Signer]) -> dict[str, Variant]:
    """Return `metadata` with a signature of each of `signers` over `data` added to those it holds."""
    found = dict(metadata)
    for signer in signers:
        held = signatures_in(found, signer.metadata_key, what="detached metadata")
        found[signer.metadata_key] = Variant("aay", (*held, signer.sign(data)))
    return found


def signatures_in(metadata: Metadata, key: str, *, what: str) -> tuple[bytes, ...]:
    """Return the signatures under `key`; none when it is not there.

    Raises:
        MalformedOstreeDataError: What is there are no signatures, or absurdly many.
    """
    held = metadata.get(key)
    if held is None:
        return ()
    if held.type != "aay" or len(held.value) > _MAX_SIGNATURES:
        raise MalformedOstreeDataError(what=what, reason=f"{key} holds no signatures, or too many")
    return tuple(held.value)


@dataclass(frozen=True, kw_only=True)
class GpgSigner:
    """Signs with a secret key in a GnuPG home, through `gpg` and its agent."""

    home: Path
    #: Fingerprint, key id or user id, as `gpg --local-user` takes it.
    key: str
    #: Of the key; None for a key without one.
    passphrase_file: Path | None = None
    metadata_key = GPG_KEY

    def sign(self, data: bytes) -> bytes:
        """Return a binary detached signature over `data`."""
        passphrase = [] if self.passphrase_file is None else ["--passphrase-file", str(self.passphrase_file)]
        if not self.home.is_dir():
            raise SigningFailedError(
                key=self.key, reason=f"there is no GnuPG home {self.home}; name the one that holds it"
            )
        is_agent_theirs = self._has_agent()
        try:
            done = run(
                [*self._gpg(), *passphrase, "--local-user", self.key, *_DETACHED, "--output", "-"],
                input_bytes=data,
                timeout_s=_GPG_TIMEOUT_S,
            )
        except ProgramFailedError as error:
            raise SigningFailedError(key=self.key, reason=f"gpg {error.reason}: {error.stderr_tail}") from error
        finally:
            if not is_agent_theirs:
                # What we started would outlive us, and keep a build's directory and its pseudo root in use.
                with suppress(ProgramFailedError):
                    run(["gpgconf", "--homedir", self.home, "--kill", "gpg-agent"])
        return done.stdout

    def _gpg(self) -> list[str | Path]:
        return ["gpg", "--homedir", self.home, "--batch", "--no-tty"]

    def _has_agent(self) -> bool:
        listed = run(["gpgconf", "--homedir", self.home, "--list-dirs", "agent-socket"]).stdout.decode().strip()
        with socket.socket(socket.AF_UNIX) as agent:
            try:
                agent.connect(listed)
            except OSError:
                return False
        return True

    def public_keys(self) -> bytes:
        """Return the public half as devices want it: `REMOTE.trustedkeys.gpg`, binary OpenPGP."""
        done = run(
            ["gpg", "--homedir", self.home, "--batch", "--no-tty", "--export", self.key], timeout_s=_GPG_TIMEOUT_S
        )
        if not done.stdout:
            raise SigningFailedError(key=self.key, reason=f"{self.home} has no such key")
        return done.stdout


class Ed25519Signer:
    """Signs with an ed25519 key in OSTree's own text form: base64 of seed and public half."""

    metadata_key = ED25519_KEY

    def __init__(self, secret_base64: str) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            secret = base64.b64decode(secret_base64.strip(), validate=True)
        except binascii.Error as error:
            raise SigningFailedError(key="ed25519", reason="it is not base64") from error
        if len(secret) not in (_ED25519_SEED_SIZE, 2 * _ED25519_SEED_SIZE):
            raise SigningFailedError(key="ed25519", reason=f"it has {len(secret)} bytes instead of 64")
        self._key = Ed25519PrivateKey.from_private_bytes(secret[:_ED25519_SEED_SIZE])
        self.public_key = self._key.public_key().public_bytes_raw()
        if secret[_ED25519_SEED_SIZE:] not in (b"", self.public_key):
            raise SigningFailedError(key="ed25519", reason="its two halves do not belong together")

    def sign(self, data: bytes) -> bytes:
        """Return the 64 bytes of the signature over `data`."""
        return self._key.sign(data)


@dataclass(frozen=True, kw_only=True)
class GoodSignature:
    """Who signed something, and when."""

    #: Of the primary key.
    fingerprint: str
    #: Seconds since 1970 UTC, as the signer's clock had it.
    signed_at: int


def binary_keys(data: bytes) -> bytes:
    """Return OpenPGP public keys in binary, whether `data` has them so or armored; `ostree` wants them binary.

    Raises:
        MalformedOstreeDataError: It is neither; nothing at all is fine.
    """
    if not data.lstrip().startswith(b"-----BEGIN"):
        # The first bit of every OpenPGP packet is set (RFC 4880, 4.2).
        if data and not data[0] & 0x80:
            raise MalformedOstreeDataError(what="key ring", reason="it holds no OpenPGP keys")
        return data
    found = []
    for block in _ARMOR.finditer(data):
        # The line that begins with an equals sign is a checksum of old times.
        lines = [line for line in block[1].split() if not line.startswith(b"=")]
        try:
            found.append(base64.b64decode(b"".join(lines), validate=True))
        except binascii.Error as error:
            raise MalformedOstreeDataError(what="key ring", reason="its armor is damaged") from error
    return b"".join(found)


def verify_gpg(data: bytes, metadata: Metadata, *, keyring: bytes, what: str) -> GoodSignature:
    """Return the first good OpenPGP signature over `data` by a key of `keyring` (binary or armored).

    Raises:
        UnsignedOstreeError: There is none.
        MalformedOstreeDataError: The metadata hold no signatures where they should.
        ProgramMissingError: Neither gpgv nor gpg is installed.
    """
    signatures = signatures_in(metadata, GPG_KEY, what=what)
    if not signatures:
        raise UnsignedOstreeError(what=what, reason="it has no OpenPGP signature")
    keys = binary_keys(keyring)
    if not keys:
        raise UnsignedOstreeError(what=what, reason="the key ring is empty")
    reasons = []
    with tempfile.TemporaryDirectory(prefix="overhaul-gpg-") as name:
        place = Path(name)
        for file, content in (("keys.gpg", keys), ("data", data)):
            (place / file).write_bytes(content)
        for signature in signatures:
            if not _is_detached(signature):
                reasons.append("a signature is none")
                continue
            (place / "signature").write_bytes(signature)
            found = _ask_gpg(place)
            if isinstance(found, GoodSignature):
                return found
            reasons.append(found)
    raise UnsignedOstreeError(what=what, reason="; ".join(dict.fromkeys(reasons)))


def _ask_gpg(place: Path) -> GoodSignature | str:
    """Return GnuPG's verdict on `signature` over `data` in `place`: who signed, or why that is not known."""
    options: list[str | Path]
    try:
        options = [find_program("gpgv"), "--homedir", place]
    except ProgramMissingError:
        options = ["gpg", "--homedir", place, "--batch", "--no-tty", "--no-default-keyring", "--trust-model", "always"]
        options += ["--no-auto-key-locate", "--no-auto-key-retrieve", "--verify"]
    # A keyring's option stands before the command's files, whichever program it is.
    options[1:1] = ["--status-fd", "1", "--keyring", place / "keys.gpg"]
    try:
        done = run([*options, place / "signature", place / "data"], timeout_s=_GPG_TIMEOUT_S)
    except ProgramFailedError as error:
        return error.stderr_tail.rpartition("\n")[2] or error.reason
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    return _judge([line.removeprefix(_STATUS).split(" ") for line in lines if line.startswith(_STATUS)])


#: Words GnuPG says where it ends well all the same.
_REFUSALS = {
    "BADSIG": "BAD signature",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key that signed it has expired",
    "REVKEYSIG": "the key that signed it is revoked",
    "NO_PUBKEY": "can't check signature, public key not found",
    "ERRSIG": "can't check signature",
}


def _judge(status: list[list[str]]) -> GoodSignature | str:
    """Return the good signature, or why there is none; with several in one, none may be bad."""
    words = {line[0] for line in status}
    reason = next((reason for word, reason in _REFUSALS.items() if word in words), None)
    # VALIDSIG fingerprint date timestamp expiry version reserved algorithm digest class primary (doc/DETAILS)
    valid = [line for line in status if line[0] == "VALIDSIG"]
    if reason or "GOODSIG" not in words or not valid:
        return reason or "GnuPG does not call the signature good"
    if any(len(line) < 11 or line[9] != _BINARY_CLASS for line in valid):
        return "the signature is not one over bytes"
    return GoodSignature(fingerprint=valid[0][10], signed_at=int(valid[0][3]))


def _is_detached(data: bytes) -> bool:
    """Tell whether `data` is made of OpenPGP signature packets only, so that it brings no bytes of its own."""
    position = 0
    while position < len(data):
        tag = data[position]
        if tag & 0xC0 == 0xC0:
            kind, (length, position) = tag & 0x3F, _new_length(data, position + 1)
        else:
            size = (1, 2, 4, 0)[tag & 3]
            length = int.from_bytes(data[position + 1 : position + 1 + size], "big") if size and tag & 0x80 else -1
            kind, position = tag >> 2 & 0xF, position + 1 + size
        if length < 0 or kind != _SIGNATURE_PACKET:
            return False
        position += length
    return bool(data) and position == len(data)


def _new_length(data: bytes, position: int) -> tuple[int, int]:
    """Return the length of a packet of the new format (RFC 4880, 4.2.2), -1 for a partial one, and what follows."""
    first = data[position] if position < len(data) else 224
    if first < 192:
        return first, position + 1
    if first < 224:
        return (first - 192 << 8) + int.from_bytes(data[position + 1 : position + 2], "big") + 192, position + 2
    if first == 255:
        return int.from_bytes(data[position + 1 : position + 5], "big"), position + 5
    return -1, position


def verify_ed25519(data: bytes, metadata: Metadata, *, public_keys: Sequence[bytes], what: str) -> bytes:
    """Return the first of `public_keys` (32 bytes each) that made a signature over `data`.

    Raises:
        UnsignedOstreeError: None did.
        MalformedOstreeDataError: The metadata hold no signatures where they should.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    signatures = signatures_in(metadata, ED25519_KEY, what=what)
    for public in public_keys:
        key = Ed25519PublicKey.from_public_bytes(public)
        for signature in signatures:
            try:
                key.verify(signature, data)
            except InvalidSignature:
                continue
            return public
    reason = "no ed25519 signature is by a trusted key" if signatures else "it has no ed25519 signature"
    raise UnsignedOstreeError(what=what, reason=reason)
