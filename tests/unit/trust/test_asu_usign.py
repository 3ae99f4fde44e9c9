"""usign keys and signatures, against OpenBSD's own signify where it has a say."""

import subprocess
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.trust.usign import (
    UsignSignatureError,
    UsignTextError,
    generate_usign_key,
    parse_public_key,
    parse_secret_key,
    verify_usign,
)


def test_the_key_id_is_the_key_number_in_hexadecimal() -> None:
    assert parse_public_key("RWSrHfFmlHslUcLbXFIRp+eEikWF9z1N77IJiX5Bt/nJd1a/x+L+SU89").key_id == "ab1df166947b2551"


def test_a_key_survives_being_written_and_read_and_never_shows_itself() -> None:
    secret = generate_usign_key()
    assert parse_secret_key(secret.text()) == secret
    assert parse_public_key(secret.public.text()) == secret.public
    assert secret.seed.hex() not in repr(secret)


def test_signify_accepts_what_we_sign_and_we_accept_what_signify_signs(tmp_path: Path) -> None:
    signify = need("signify-openbsd")
    (tmp_path / "message").write_bytes(b"an image\n")
    ours = generate_usign_key()
    (tmp_path / "ours.pub").write_text(ours.public.text())
    (tmp_path / "ours.sig").write_text(ours.sign(b"an image\n"))
    subprocess.run([signify, "-V", "-q", "-p", "ours.pub", "-x", "ours.sig", "-m", "message"], cwd=tmp_path, check=True)

    subprocess.run([signify, "-G", "-n", "-p", "their.pub", "-s", "their.sec"], cwd=tmp_path, check=True)
    subprocess.run([signify, "-S", "-s", "their.sec", "-m", "message", "-x", "their.sig"], cwd=tmp_path, check=True)
    their = parse_public_key((tmp_path / "their.pub").read_text())
    assert verify_usign(b"an image\n", (tmp_path / "their.sig").read_text(), (their,), name="it") == their
    assert parse_secret_key((tmp_path / "their.sec").read_text()).public == their


def test_a_changed_message_a_changed_signature_and_a_stranger_are_refused() -> None:
    secret = generate_usign_key()
    signature = secret.sign(b"an image")
    with pytest.raises(UsignSignatureError, match="not what key"):
        verify_usign(b"another image", signature, (secret.public,), name="it")
    with pytest.raises(UsignSignatureError, match="not trusted"):
        verify_usign(b"an image", signature, (generate_usign_key().public,), name="it")
    with pytest.raises(UsignSignatureError, match="not trusted"):
        verify_usign(b"an image", signature, (), name="it")
    stranger = generate_usign_key()
    posing = type(stranger)(number=secret.number, seed=stranger.seed)
    with pytest.raises(UsignSignatureError):
        verify_usign(b"an image", posing.sign(b"an image"), (secret.public,), name="it")


@pytest.mark.parametrize("text", ["", "untrusted comment: x\n", "!!!!", "a\nb\n", "RWSrHfFm", "é"])
def test_what_is_no_key_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(UsignTextError):
        parse_public_key(text)
    with pytest.raises(UsignTextError):
        parse_secret_key(text)
    with pytest.raises(UsignTextError):
        verify_usign(b"", text, (), name="it")


def test_encrypted_or_damaged_secret_keys_are_refused() -> None:
    import base64

    data = bytearray(base64.b64decode(generate_usign_key().text().splitlines()[1]))
    data[50] ^= 1
    with pytest.raises(UsignTextError, match="checksum"):
        parse_secret_key(base64.b64encode(bytes(data)).decode())
    data[7] = 42
    with pytest.raises(UsignTextError, match="encrypted"):
        parse_secret_key(base64.b64encode(bytes(data)).decode())
