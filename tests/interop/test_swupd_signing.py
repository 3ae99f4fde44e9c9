"""Detached signatures: ours are taken by the real `openssl`, and its are taken by us, or refused with a reason."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import Certificate
from hypothesis import given
from tests.fuzz.mutations import fuzzing, judged, mutated
from tests.swupd_keys import SigningFiles, issued, openssl, self_signed

from overhaul.dialects.swupd.signing import (
    SignatureRefusedError,
    UnusableCertificateError,
    UnusableSigningKeyError,
    load_signer,
    load_trusted,
    verify_detached,
)

CONTENT = b"MANIFEST\t4\nversion:\t10\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("keys")
    (directory / "content").write_bytes(CONTENT)
    return directory


@pytest.fixture(scope="module")
def files(place: Path) -> SigningFiles:
    return self_signed(place)


def trusted(files: SigningFiles) -> tuple[Certificate, ...]:
    return load_trusted(files.certificate.read_bytes(), name="test")


def sign(place: Path, files: SigningFiles, *options: str | Path, program: str = "smime") -> bytes:
    return openssl(program, "-sign", "-binary", "-in", place / "content", "-signer", files.certificate,
                   "-inkey", files.key, "-outform", "DER", *options)  # fmt: skip


def verify(signature: bytes, files: SigningFiles, content: bytes = CONTENT, now: datetime | None = None) -> None:
    verify_detached(content, signature, trusted=trusted(files), name="Manifest.MoM", now=now or datetime.now(UTC))


KINDS = [
    ("rsa", ("-newkey", "rsa:2048")),
    ("ec", ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")),
]


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_openssl_takes_what_we_sign(place: Path, name: str, options: tuple[str, ...]) -> None:
    files = self_signed(place, name=f"ours-{name}", options=options)
    signature = load_signer(key=files.key, certificate=files.certificate).sign(CONTENT)
    verify(signature, files)
    (place / "signature").write_bytes(signature)
    for program in ("smime", "cms"):
        shown = openssl(program, "-verify", "-inform", "DER", "-in", place / "signature", "-content", place / "content",
                        "-purpose", "any", "-binary", "-CAfile", files.certificate)  # fmt: skip
        assert shown == CONTENT


@pytest.mark.parametrize(
    ("program", "options"),
    [
        ("smime", ()),
        ("smime", ("-stream",)),
        ("smime", ("-noattr",)),
        ("smime", ("-nocerts",)),
        ("smime", ("-md", "sha512")),
        ("cms", ()),
        ("cms", ("-keyid",)),
        ("cms", ("-keyopt", "rsa_padding_mode:pss")),
    ],
)
def test_we_take_what_openssl_signs(place: Path, files: SigningFiles, program: str, options: tuple[str, ...]) -> None:
    verify(sign(place, files, *options, program=program), files)


def test_we_take_elliptic_curves_of_openssl(place: Path) -> None:
    files = self_signed(place, name="curve", options=KINDS[1][1])
    verify(sign(place, files), files)


def test_an_issued_certificate_leads_to_the_trusted_one(place: Path) -> None:
    root = self_signed(place, name="root")
    middle = issued(place, root, name="middle", is_authority=True)
    leaf = issued(place, middle, name="leaf")
    signature = sign(place, leaf, "-certfile", middle.certificate)
    verify(signature, root)
    with pytest.raises(SignatureRefusedError, match="does not lead"):
        verify(sign(place, leaf), root)
    chained = place / "chained.pem"
    chained.write_bytes(leaf.certificate.read_bytes() + middle.certificate.read_bytes())
    verify(load_signer(key=leaf.key, certificate=chained).sign(CONTENT), root)


def test_a_certificate_that_may_not_issue_does_not(place: Path) -> None:
    root = self_signed(place, name="strict-root")
    middle = issued(place, root, name="no-authority")
    leaf = issued(place, middle, name="pretender")
    with pytest.raises(SignatureRefusedError, match="does not lead"):
        verify(sign(place, leaf, "-certfile", middle.certificate), root)


def test_other_bytes_and_other_keys_are_refused(place: Path, files: SigningFiles) -> None:
    signature = sign(place, files)
    with pytest.raises(SignatureRefusedError, match="other bytes"):
        verify(signature, files, content=CONTENT + b" ")
    with pytest.raises(SignatureRefusedError, match="does not lead"):
        verify(signature, self_signed(place, name="stranger"))
    with pytest.raises(SignatureRefusedError, match="not made with the key"):
        verify(sign(place, files, "-noattr"), files, content=CONTENT + b" ")


def test_a_certificate_counts_only_in_its_time_unless_times_are_left_alone(place: Path, files: SigningFiles) -> None:
    signature = sign(place, files)
    for days in (-2, 400):
        with pytest.raises(SignatureRefusedError, match="not valid at"):
            verify(signature, files, now=datetime.now(UTC) + timedelta(days=days))
    verify_detached(CONTENT, signature, trusted=trusted(files), name="latest", now=None)


def test_signatures_that_hold_their_content_or_weak_digests_are_refused(place: Path, files: SigningFiles) -> None:
    with pytest.raises(SignatureRefusedError, match="own content"):
        verify(sign(place, files, "-nodetach"), files)
    with pytest.raises(SignatureRefusedError, match="digest"):
        verify(sign(place, files, "-md", "sha1"), files)


def test_short_keys_are_refused(place: Path) -> None:
    files = self_signed(place, name="short", options=("-newkey", "rsa:1024"))
    with pytest.raises(SignatureRefusedError, match="1024 bits"):
        verify(sign(place, files), files)


def test_keys_that_cannot_sign_are_named(place: Path, files: SigningFiles) -> None:
    other = self_signed(place, name="other")
    with pytest.raises(UnusableSigningKeyError, match="does not belong"):
        load_signer(key=files.key, certificate=other.certificate)
    with pytest.raises(UnusableSigningKeyError, match=r"nothing\.key"):
        load_signer(key=place / "nothing.key", certificate=other.certificate)
    with pytest.raises(UnusableCertificateError, match="test"):
        load_trusted(b"nonsense", name="test")


def test_spoilt_signatures_are_refused_in_one_sentence(place: Path, files: SigningFiles) -> None:
    signature = sign(place, files)
    streamed = sign(place, files, "-stream")

    @fuzzing(150)
    @given(mutated(signature, streamed))
    def spoil(data: bytes) -> None:
        judged(lambda: verify(data, files), refusal=SignatureRefusedError)

    spoil()
    for end in range(len(signature)):
        with pytest.raises(SignatureRefusedError):
            verify(signature[:end], files)
