"""Keyrings: private files, public record, thresholds and what is refused."""

from pathlib import Path

import pytest

from overhaul.errors import InputError
from overhaul.trust.keyfiles import UnusableKeyringError
from overhaul.trust.keyring import (
    Keyring,
    KeyringExistsError,
    KeysInsideRepositoryError,
    MissingKeyError,
    generate_demo_keys,
)
from overhaul.trust.keys import KeyCount, KeyPlan
from overhaul.trust.roles import ReservedNameError

_SMALL = KeyPlan(root=KeyCount(keys=1, threshold=1), targets=KeyCount(keys=1, threshold=1))


def _sign(keyring: Keyring, role: str) -> list[str]:
    known = keyring.role(role)
    signers = keyring.signers(role, keyids=[key.keyid for key in known.keys], threshold=known.threshold)
    return [signer.sign(b"something").keyid for signer in signers]


def test_demo_keys_say_so_and_serve_every_role(tmp_path: Path) -> None:
    generate_demo_keys(tmp_path / "keys", products=["alpha"], with_builds=True)
    keyring = Keyring.open(tmp_path / "keys")

    assert keyring.demo
    assert keyring.role_names == ("root", "targets", "snapshot", "timestamp", "builds", "alpha", "alpha-policy")
    assert keyring.role("root").threshold == 2
    for role in keyring.role_names:
        assert len(_sign(keyring, role)) >= keyring.role(role).threshold


def test_private_keys_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    Keyring.generate(tmp_path / "keys", products=[], plan=_SMALL)

    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    files = list((tmp_path / "keys").glob("*.pem"))
    assert len(files) == 4
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert b"PRIVATE" not in (tmp_path / "keys" / "keyring.json").read_bytes()


def test_an_exposed_private_key_is_refused(tmp_path: Path) -> None:
    keyring = Keyring.generate(tmp_path, products=[], plan=_SMALL)
    (tmp_path / "timestamp-1.pem").chmod(0o640)

    with pytest.raises(UnusableKeyringError, match="chmod 600"):
        _sign(keyring, "timestamp")


@pytest.mark.parametrize("place", [".", "keys", "a/b"])
def test_keys_inside_the_repository_are_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(KeysInsideRepositoryError):
        Keyring.generate(tmp_path / place, products=[], repository=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_keys_inside_the_repository_are_found_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "repository" / "keys").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "repository" / "keys")

    with pytest.raises(KeysInsideRepositoryError):
        Keyring.open(tmp_path / "link", repository=tmp_path / "repository")


def test_keys_are_never_made_over_others(tmp_path: Path) -> None:
    Keyring.generate(tmp_path, products=[], plan=_SMALL)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with pytest.raises(KeyringExistsError):
        Keyring.generate(tmp_path, products=[], plan=_SMALL)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_role_without_enough_private_keys_says_how_many_are_missing(tmp_path: Path) -> None:
    keyring = Keyring.generate(tmp_path, products=[])
    (tmp_path / "root-1.pem").unlink()
    assert len(_sign(keyring, "root")) == 2
    (tmp_path / "root-2.pem").unlink()

    with pytest.raises(MissingKeyError, match=r"needs 2 .* holds 1") as caught:
        _sign(keyring, "root")

    assert (caught.value.role, caught.value.have, caught.value.need) == ("root", 1, 2)
    [root] = [item for item in keyring.listing() if item.role == "root"]
    assert (len(root.keyids), len(root.held)) == (3, 1)


def test_a_role_nobody_made_keys_for_is_a_missing_key(tmp_path: Path) -> None:
    keyring = Keyring.generate(tmp_path, products=[], plan=_SMALL)

    with pytest.raises(MissingKeyError):
        keyring.role("alpha")


def test_a_passphrase_protects_the_files_it_is_given_for(tmp_path: Path) -> None:
    def passphrases(file: str) -> bytes | None:
        return b"correct horse" if file.startswith("root") else None

    Keyring.generate(tmp_path, products=[], plan=_SMALL, passphrases=passphrases)

    assert _sign(Keyring.open(tmp_path, passphrases=passphrases), "root")
    assert _sign(Keyring.open(tmp_path), "timestamp")
    with pytest.raises(UnusableKeyringError, match="passphrase"):
        _sign(Keyring.open(tmp_path), "root")
    with pytest.raises(UnusableKeyringError, match="passphrase"):
        _sign(Keyring.open(tmp_path, passphrases=lambda _file: b"wrong"), "root")


def test_a_key_file_exchanged_for_another_is_noticed(tmp_path: Path) -> None:
    keyring = Keyring.generate(tmp_path, products=[], plan=_SMALL)
    (tmp_path / "timestamp-1.pem").write_bytes((tmp_path / "snapshot-1.pem").read_bytes())

    with pytest.raises(UnusableKeyringError, match="not the key"):
        _sign(keyring, "timestamp")


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"format":99,"demo":false,"roles":{}}'])
def test_a_keyring_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "keyring.json").write_bytes(content)

    with pytest.raises(UnusableKeyringError, match=r"keyring\.json"):
        Keyring.open(tmp_path)


def test_renewed_keys_replace_the_old_ones_which_can_still_sign(tmp_path: Path) -> None:
    keyring = Keyring.generate(tmp_path, products=["alpha"])
    old = [key.keyid for key in keyring.role("root").keys]
    keyring.renew("root")
    keyring = Keyring.open(tmp_path)
    new = [key.keyid for key in keyring.role("root").keys]

    assert not set(old) & set(new)
    assert len(new) == len(old)
    assert keyring.role("root").threshold == 2
    assert sorted(keyring.held([*old, *new])) == sorted([*old, *new])
    assert "root" in keyring.role_names
    assert len(keyring.role_names) == 6


def test_renewed_keys_never_take_the_file_name_of_a_key_kept_elsewhere(tmp_path: Path) -> None:
    keyring = Keyring.generate(tmp_path, products=[])
    old = {key.file: key.keyid for key in keyring.role("root").keys}
    for file in old:
        (tmp_path / file).unlink()
    keyring.renew("root")

    assert not set(old) & {key.file for key in keyring.role("root").keys}
    assert keyring.held(old.values()) == ()


def test_keys_of_a_product_can_be_added_later(tmp_path: Path) -> None:
    keyring = Keyring.generate(tmp_path, products=[], plan=_SMALL)
    plan = KeyPlan(exceptions={"alpha": KeyCount(keys=3, threshold=2)})
    keyring.add_roles(["alpha", "alpha-policy", "timestamp"], plan=plan)

    assert Keyring.open(tmp_path).role("alpha").threshold == 2
    assert len(list(tmp_path.glob("timestamp-*.pem"))) == 1


@pytest.mark.parametrize(("keys", "threshold"), [(1, 2), (1, 0), (0, 0)])
def test_a_threshold_that_cannot_be_met_is_refused(keys: int, threshold: int) -> None:
    with pytest.raises(InputError):
        KeyCount(keys=keys, threshold=threshold)


def test_keys_for_a_product_named_like_a_role_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReservedNameError):
        Keyring.generate(tmp_path / "keys", products=["snapshot"])

    assert not list(tmp_path.rglob("*.pem"))
