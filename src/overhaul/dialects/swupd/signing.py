"""Detached PKCS#7 signatures, as `openssl smime` makes them: made by a publisher, checked by a device.

The library for cryptography has no verification of CMS, so what RFC 5652 asks for stands here: the signed
attributes must hold the digest of the content, the signature must cover exactly these attributes, and the
certificate it was made with must lead to the one the device trusts. Only what has been asked for by swupd's clients
is understood; everything else is refused. Weak digests (MD5, SHA-1) are refused whatever the device's age.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from overhaul.dialects.swupd.der import (
    CONTEXT_0,
    CONTEXT_0_PRIMITIVE,
    CONTEXT_1,
    INTEGER,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    SEQUENCE,
    SET,
    Element,
    MalformedDerError,
    expect,
    read_element,
    read_elements,
    set_of_attributes,
)
from overhaul.errors import OperatorError, TrustError

#: No honest signature with its certificates is larger.
MAX_SIGNATURE_BYTES = 1 << 20
_CHAIN_MAX = 8
_CERTIFICATES_MAX = 32

_SIGNED_DATA = bytes.fromhex("2a864886f70d010702")
_CONTENT_TYPE = bytes.fromhex("2a864886f70d010903")
_MESSAGE_DIGEST = bytes.fromhex("2a864886f70d010904")
_DIGESTS: dict[bytes, hashes.HashAlgorithm] = {
    bytes.fromhex("608648016503040201"): hashes.SHA256(),
    bytes.fromhex("608648016503040202"): hashes.SHA384(),
    bytes.fromhex("608648016503040203"): hashes.SHA512(),
}
_RSA = bytes.fromhex("2a864886f70d0101")
_RSA_PLAIN = {_RSA + bytes([number]) for number in (1, 11, 12, 13)}
_RSA_PSS = _RSA + bytes([10])
_ECDSA = bytes.fromhex("2a8648ce3d04")
_ED25519 = bytes.fromhex("2b6570")


class SignatureRefusedError(TrustError):
    """A signature that does not vouch for the bytes it lies beside."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The signature of {name} is refused: {reason}. Nothing of it was used.")


class UnusableSigningKeyError(OperatorError):
    """A key or certificate that cannot sign."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot sign swupd versions: {reason}.")


class UnusableCertificateError(OperatorError):
    """A certificate to trust that cannot be read."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The certificate {name} cannot be used: {reason}.")


@dataclass(frozen=True)
class Signer:
    """A private key and its certificate, which may be followed by those that lead to the trusted one."""

    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...] = ()

    def sign(self, content: bytes) -> bytes:
        """Return a detached signature over `content` in DER."""
        builder = pkcs7.PKCS7SignatureBuilder().set_data(content)
        builder = builder.add_signer(self.certificate, self.key, hashes.SHA256())
        for certificate in self.chain:
            builder = builder.add_certificate(certificate)
        options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary, pkcs7.PKCS7Options.NoCapabilities]
        return builder.sign(serialization.Encoding.DER, options)

    @property
    def anchors(self) -> tuple[x509.Certificate, ...]:
        """What a device must trust at least one of."""
        return (*self.chain[-1:], self.certificate) if self.chain else (self.certificate,)


def load_signer(*, key: Path, certificate: Path, password: bytes | None = None) -> Signer:
    """Read a private key and its certificate, both PEM; the certificate's file may go on with its chain.

    Raises:
        UnusableSigningKeyError: One of them cannot be read, or they do not belong together.
    """
    try:
        private = serialization.load_pem_private_key(key.read_bytes(), password)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UnusableSigningKeyError(path=key, reason=_said(error)) from error
    if not isinstance(private, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
        raise UnusableSigningKeyError(path=key, reason="only RSA and elliptic curve keys can sign PKCS#7 here")
    try:
        first, *rest = x509.load_pem_x509_certificates(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise UnusableSigningKeyError(path=certificate, reason=_said(error)) from error
    if first.public_key() != private.public_key():
        raise UnusableSigningKeyError(path=certificate, reason=f"it does not belong to the key {key}")
    return Signer(private, first, tuple(rest))


def load_trusted(data: bytes, *, name: str) -> tuple[x509.Certificate, ...]:
    """Return the certificates in PEM bytes, for `verify_detached`.

    Raises:
        UnusableCertificateError: There are none, or they cannot be read.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(data))
    except ValueError as error:
        raise UnusableCertificateError(name=name, reason=_said(error)) from error


def verify_detached(
    content: bytes,
    signature: bytes,
    *,
    trusted: Sequence[x509.Certificate],
    name: str,
    now: datetime | None,
) -> x509.Certificate:
    """Return the certificate that signed `content`, when it leads to one of `trusted`.

    With `now` every certificate on the way must be valid at that time; None leaves times alone, which is what
    clients do for pointer files. `name` names the signed file in errors.

    Raises:
        SignatureRefusedError: The signature does not vouch for these bytes.
    """
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise SignatureRefusedError(name=name, reason="it is too large")
    try:
        signed = _parse(signature)
        carried = [x509.load_der_x509_certificate(data) for data in signed.certificates]
        refusal = _Refusal("nobody signed it")
        for info in signed.signers:
            try:
                certificate = _find_signer(info, [*carried, *trusted])
                _check_signer(info, certificate, content)
                _check_chain(certificate, carried, trusted, now)
            except (_Refusal, MalformedDerError) as error:
                refusal = _Refusal(str(error))
                continue
            return certificate
        raise refusal
    except (_Refusal, MalformedDerError, ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise SignatureRefusedError(name=name, reason=_said(error)) from error


def is_made_for(content: bytes, signature: bytes) -> bool:
    """Tell whether a signature was made for these bytes, with a certificate it carries; nobody is trusted by that."""
    try:
        carried = [x509.load_der_x509_certificate(data) for data in _parse(signature).certificates]
        verify_detached(content, signature, trusted=carried, name="it", now=None)
    except (_Refusal, MalformedDerError, ValueError, SignatureRefusedError):
        return False
    return True


class _Refusal(Exception):
    """Why a signature does not count."""


@dataclass(frozen=True)
class _SignerInfo:
    #: Issuer and serial number in DER, or None.
    issuer: bytes | None
    serial: int
    #: The subject key identifier in place of both, or None.
    key_identifier: bytes | None
    digest: hashes.HashAlgorithm
    #: The signed attributes, to be read and as they were signed; None without.
    attributes: tuple[Element, bytes] | None
    algorithm: bytes
    signature: bytes


@dataclass(frozen=True)
class _SignedData:
    certificates: tuple[bytes, ...]
    signers: tuple[_SignerInfo, ...]


def _parse(data: bytes) -> _SignedData:
    outer = read_element(data, SEQUENCE).parts()
    if len(outer) != 2 or expect(outer[0], OBJECT_IDENTIFIER).content != _SIGNED_DATA:
        raise _Refusal("it is no signed data of PKCS#7")
    parts = read_element(expect(outer[1], CONTEXT_0).content, SEQUENCE).parts()
    if len(parts) < 4:
        raise _Refusal("it is cut short")
    if len(expect(parts[2], SEQUENCE).parts()) != 1:
        raise _Refusal("it holds its own content instead of vouching for the file beside it")
    certificates: tuple[bytes, ...] = ()
    for part in parts[3:-1]:
        if part.tag == CONTEXT_0:
            certificates = tuple(one.whole for one in read_elements(part.content) if one.tag == SEQUENCE)
        elif part.tag != CONTEXT_1:
            raise _Refusal("it has an unknown part")
    infos = expect(parts[-1], SET).parts()
    if len(certificates) > _CERTIFICATES_MAX or len(infos) > _CHAIN_MAX:
        raise _Refusal("it has too many certificates or signers")
    return _SignedData(certificates, tuple(map(_parse_signer, infos)))


def _parse_signer(element: Element) -> _SignerInfo:
    parts = expect(element, SEQUENCE).parts()
    if len(parts) < 5:
        raise _Refusal("it is cut short")
    issuer = key_identifier = None
    serial = 0
    if parts[1].tag == CONTEXT_0_PRIMITIVE:
        key_identifier = parts[1].content
    else:
        name, number = expect(parts[1], SEQUENCE).parts()
        issuer = expect(name, SEQUENCE).whole
        serial = int.from_bytes(expect(number, INTEGER).content, "big", signed=True)
    digest = _DIGESTS.get(_algorithm(parts[2]))
    if digest is None:
        raise _Refusal("its digest is none of SHA-256, SHA-384 and SHA-512")
    rest = parts[3:]
    attributes = None
    if rest[0].tag == CONTEXT_0:
        attributes = (rest[0], set_of_attributes(rest[0]))
        rest = rest[1:]
    if len(rest) < 2:
        raise _Refusal("it is cut short")
    signature = expect(rest[1], OCTET_STRING).content
    return _SignerInfo(issuer, serial, key_identifier, digest, attributes, _algorithm(rest[0]), signature)


def _algorithm(element: Element) -> bytes:
    parts = expect(element, SEQUENCE).parts()
    return expect(parts[0], OBJECT_IDENTIFIER).content if parts else b""


def _find_signer(info: _SignerInfo, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    for certificate in certificates:
        if info.key_identifier is not None:
            try:
                extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            except x509.ExtensionNotFound:
                continue
            if extension.value.digest == info.key_identifier:
                return certificate
        elif certificate.issuer.public_bytes() == info.issuer and certificate.serial_number == info.serial:
            return certificate
    raise _Refusal("the certificate it was made with is missing")


def _check_signer(info: _SignerInfo, certificate: x509.Certificate, content: bytes) -> None:
    signed = content
    if info.attributes is not None:
        element, signed = info.attributes
        attributes: dict[bytes, list[Element]] = {}
        for attribute in element.parts():
            kind, values = expect(attribute, SEQUENCE).parts()
            if attributes.setdefault(kind.content, expect(values, SET).parts()) and len(values.parts()) != 1:
                raise _Refusal("an attribute has several values")
        stated = attributes.get(_MESSAGE_DIGEST, [])
        if len(stated) != 1 or len(attributes.get(_CONTENT_TYPE, [])) != 1:
            raise _Refusal("its attributes do not state what was signed")
        digest = hashlib.new(info.digest.name, content).digest()
        if expect(stated[0], OCTET_STRING).content != digest:
            raise _Refusal("it was made for other bytes")
    try:
        _check_signature(info, certificate, signed)
    except InvalidSignature as error:
        raise _Refusal("it was not made with the key of its certificate") from error


def _check_signature(info: _SignerInfo, certificate: x509.Certificate, signed: bytes) -> None:
    key = certificate.public_key()
    algorithm = info.algorithm
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < 2048:
        raise _Refusal(f"its key has only {key.key_size} bits")
    if isinstance(key, rsa.RSAPublicKey) and algorithm in _RSA_PLAIN:
        key.verify(info.signature, signed, padding.PKCS1v15(), info.digest)
    elif isinstance(key, rsa.RSAPublicKey) and algorithm == _RSA_PSS:
        pss = padding.PSS(mgf=padding.MGF1(info.digest), salt_length=padding.PSS.AUTO)
        key.verify(info.signature, signed, pss, info.digest)
    elif isinstance(key, ec.EllipticCurvePublicKey) and algorithm.startswith(_ECDSA):
        key.verify(info.signature, signed, ec.ECDSA(info.digest))
    elif isinstance(key, ed25519.Ed25519PublicKey) and algorithm == _ED25519:
        key.verify(info.signature, signed)
    else:
        raise _Refusal("its algorithm is not known, or does not suit its certificate")


def _check_chain(
    certificate: x509.Certificate,
    carried: Sequence[x509.Certificate],
    trusted: Sequence[x509.Certificate],
    now: datetime | None,
) -> None:
    """Raise unless `certificate` is trusted, or was issued by one that is, in a few steps."""
    current = certificate
    for _step in range(_CHAIN_MAX):
        _check_time(current, now)
        if current in trusted:
            return
        issuer = next((one for one in (*trusted, *carried) if one != current and _issued(one, current)), None)
        if issuer is None:
            raise _Refusal("its certificate does not lead to a trusted one")
        current = issuer
    raise _Refusal("its certificate is too far from a trusted one")


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = next((one.value for one in issuer.extensions if isinstance(one.value, x509.KeyUsage)), None)
        if not constraints.ca or (usage is not None and not usage.key_cert_sign):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (x509.ExtensionNotFound, ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_time(certificate: x509.Certificate, now: datetime | None) -> None:
    if now is None:
        return
    now = now.astimezone(UTC)
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        subject = certificate.subject.rfc4514_string()
        raise _Refusal(f"the certificate of {subject!r} is not valid at {now:%Y-%m-%d %H:%M:%S} UTC")


def _said(error: Exception) -> str:
    if isinstance(error, OSError):
        return str(error.strerror or error)
    return str(error).splitlines()[0] if str(error) else "it cannot be read"
