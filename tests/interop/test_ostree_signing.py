"""Signatures: what we sign real ostree takes, what it signs we take, and neither takes anything else."""

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.gpg_keys import gpg, gpg_home
from tests.ostree_trees import BRANCH, TIME, commit_ours, make_tree, ostree

from overhaul.dialects.ostree.archive import ArchiveRepository
from overhaul.dialects.ostree.errors import UnsignedOstreeError
from overhaul.dialects.ostree.gvariant import Variant
from overhaul.dialects.ostree.heads import move_heads
from overhaul.dialects.ostree.objects import ObjectName, ObjectType, decode_metadata
from overhaul.dialects.ostree.signatures import (
    GPG_KEY,
    Ed25519Signer,
    GpgSigner,
    SigningFailedError,
    verify_ed25519,
    verify_gpg,
    with_signatures,
)
from overhaul.dialects.ostree.summary import decode_summary

_DATA = b"what is signed\n"


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Return a GnuPG home with the keys of two people."""
    with gpg_home("good@example.org", "other@example.org") as made:
        yield made


def _signer(home: Path, user: str = "good@example.org") -> GpgSigner:
    return GpgSigner(home=home, key=user)


def test_a_signature_of_a_trusted_key_is_good(home: Path) -> None:
    signer = _signer(home)
    metadata = with_signatures({}, _DATA, [signer])
    for keyring in (signer.public_keys(), gpg(home, "--armor", "--export", "good@example.org")):
        found = verify_gpg(_DATA, metadata, keyring=keyring, what="test")
        assert len(found.fingerprint) == 40
        assert found.signed_at > TIME


def test_one_good_signature_among_others_is_enough(home: Path) -> None:
    metadata = with_signatures({}, _DATA, [_signer(home, "other@example.org"), _signer(home)])
    assert verify_gpg(_DATA, metadata, keyring=_signer(home).public_keys(), what="test")


def test_a_signature_of_another_key_is_refused(home: Path) -> None:
    metadata = with_signatures({}, _DATA, [_signer(home, "other@example.org")])
    with pytest.raises(UnsignedOstreeError, match=r"No public key|public key not found"):
        verify_gpg(_DATA, metadata, keyring=_signer(home).public_keys(), what="test")


def test_a_signature_over_other_bytes_is_refused(home: Path) -> None:
    metadata = with_signatures({}, _DATA, [_signer(home)])
    with pytest.raises(UnsignedOstreeError, match="BAD signature"):
        verify_gpg(_DATA + b"!", metadata, keyring=_signer(home).public_keys(), what="test")


def test_no_signature_at_all_is_refused(home: Path) -> None:
    keyring = _signer(home).public_keys()
    for metadata in ({}, {GPG_KEY: Variant("aay", ())}):
        with pytest.raises(UnsignedOstreeError, match="no OpenPGP signature"):
            verify_gpg(_DATA, metadata, keyring=keyring, what="test")


def test_a_whole_signed_message_is_no_signature_of_other_bytes(home: Path) -> None:
    message = gpg(home, "--local-user", "good@example.org", "--sign", data=b"something harmless")
    metadata = {GPG_KEY: Variant("aay", (message, b"", b"\xff" * 20))}
    with pytest.raises(UnsignedOstreeError, match="a signature is none"):
        verify_gpg(_DATA, metadata, keyring=_signer(home).public_keys(), what="test")


def test_a_key_that_has_expired_signs_nothing_good() -> None:
    with gpg_home("old@example.org", expire="seconds=86400", at="20200101T000000") as home:
        signature = gpg(home, "--local-user", "old@example.org", "--detach-sign", data=_DATA, at="20200101T010000")
        keys = gpg(home, "--export", "old@example.org")
        with pytest.raises(UnsignedOstreeError, match="expired"):
            verify_gpg(_DATA, {GPG_KEY: Variant("aay", (signature,))}, keyring=keys, what="test")
        with pytest.raises(SigningFailedError):
            _signer(home, "old@example.org").sign(_DATA)


def test_a_key_that_is_not_there_is_told(home: Path) -> None:
    with pytest.raises(SigningFailedError, match=r"nobody@example\.org"):
        _signer(home, "nobody@example.org").sign(_DATA)


def test_ed25519_signatures_are_those_of_the_public_key() -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    signer = Ed25519Signer(base64.b64encode(key.private_bytes_raw() + public).decode())
    metadata = with_signatures({}, _DATA, [signer])
    assert verify_ed25519(_DATA, metadata, public_keys=[bytes(range(32)), public], what="test") == public
    with pytest.raises(UnsignedOstreeError):
        verify_ed25519(_DATA + b"!", metadata, public_keys=[public], what="test")
    with pytest.raises(UnsignedOstreeError):
        verify_ed25519(_DATA, {}, public_keys=[public], what="test")
    with pytest.raises(SigningFailedError):
        Ed25519Signer(base64.b64encode(key.private_bytes_raw() + bytes(32)).decode())


@pytest.fixture
def published(tmp_path: Path, home: Path) -> ArchiveRepository:
    """Return a repository with a signed commit and a signed summary."""
    ours = ArchiveRepository.create(tmp_path / "ours")
    commit_ours(ours, make_tree(tmp_path / "tree"), signers=[_signer(home)])
    move_heads(ours, {}, signers=[_signer(home)], now=TIME)
    return ours


def _device(tmp_path: Path, url: Path, home: Path, user: str) -> Path:
    device = tmp_path / "device"
    keys = tmp_path / "keys.gpg"
    keys.write_bytes(_signer(home, user).public_keys())
    ostree("init", "--mode=bare-user", repo=device)
    summary = "--set=gpg-verify-summary=true"
    ostree("remote", "add", f"--gpg-import={keys}", summary, "updates", f"file://{url}", repo=device)
    return device


def test_ostree_pulls_what_we_signed_commit_and_summary(
    tmp_path: Path, home: Path, published: ArchiveRepository
) -> None:
    device = _device(tmp_path, published.path, home, "good@example.org")
    ostree("pull", "updates", BRANCH, repo=device)
    assert "Good signature" in ostree("show", f"updates:{BRANCH}", "--gpg-verify-remote=updates", repo=device)


def test_ostree_refuses_what_another_key_signed(tmp_path: Path, home: Path, published: ArchiveRepository) -> None:
    device = _device(tmp_path, published.path, home, "other@example.org")
    assert "public key not found" in ostree("pull", "updates", BRANCH, repo=device, status=1)


def test_ostree_sees_a_new_branch_after_each_move(tmp_path: Path, home: Path, published: ArchiveRepository) -> None:
    device = _device(tmp_path, published.path, home, "good@example.org")
    for number in range(3):
        head = commit_ours(
            published, make_tree(tmp_path / f"tree{number}"), branch=f"a/b{number}", signers=[_signer(home)]
        )
        assert move_heads(published, {}, signers=[_signer(home)], now=TIME + number)
        assert not move_heads(published, {}, signers=[_signer(home)], now=TIME + number + 100)
        ostree("pull", "updates", f"a/b{number}", repo=device)
        assert ostree("rev-parse", f"updates:a/b{number}", repo=device).strip() == head


def test_a_swap_that_died_between_signature_and_summary_is_mended(home: Path, published: ArchiveRepository) -> None:
    old = (published.path / "summary").read_bytes()
    move_heads(published, {"other/branch": published.branches()[BRANCH]}, signers=[_signer(home)], now=TIME + 1)
    move_heads(published, {"other/branch": None}, signers=[_signer(home)], now=TIME + 2)
    # The pair of a power cut: the new signature, and a summary that says the right thing at another time.
    (published.path / "summary").write_bytes(old)
    assert move_heads(published, {}, signers=[_signer(home)], now=TIME + 3)
    signature = decode_metadata((published.path / "summary.sig").read_bytes(), what="test")
    summary = (published.path / "summary").read_bytes()
    verify_gpg(summary, signature, keyring=_signer(home).public_keys(), what="test")


def test_we_take_what_ostree_signed(tmp_path: Path, home: Path) -> None:
    repo = tmp_path / "theirs"
    ostree("init", "--mode=archive", repo=repo)
    tree = make_tree(tmp_path / "tree")
    sign = ("--gpg-sign=good@example.org", f"--gpg-homedir={home}")
    head = ostree("commit", f"--branch={BRANCH}", f"--tree=dir={tree}", *sign, repo=repo).strip()
    ostree("summary", "-u", *sign, repo=repo)
    theirs = ArchiveRepository(repo)
    commit = bytes.fromhex(head)
    keyring = _signer(home).public_keys()
    data = theirs.read(ObjectName(ObjectType.COMMIT, commit))
    assert verify_gpg(data, theirs.detached(commit), keyring=keyring, what="commit")
    signature = decode_metadata((repo / "summary.sig").read_bytes(), what="test")
    assert verify_gpg((repo / "summary").read_bytes(), signature, keyring=keyring, what="summary")
    summary = decode_summary((repo / "summary").read_bytes())
    assert summary.branches[BRANCH].commit == commit
    assert summary.branches[BRANCH].commit_size == len(data)
