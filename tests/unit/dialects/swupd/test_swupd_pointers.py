"""What devices poll, and the signatures beside it."""

from pathlib import Path

import pytest
from tests.swupd_keys import self_signed

from overhaul.dialects.swupd.names import latest_path, latest_version_path, signature_path
from overhaul.dialects.swupd.pointers import move_pointers, pointed_version
from overhaul.dialects.swupd.signing import Signer, is_made_for, load_signer


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    files = self_signed(tmp_path)
    return load_signer(key=files.key, certificate=files.certificate)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "www"
    for version in (10, 20):
        (made / str(version)).mkdir(parents=True)
        (made / str(version) / "format").write_text("4\n")
    return made


def _are_vouched_for(root: Path) -> bool:
    names = (latest_path(4), latest_version_path())
    return all(is_made_for((root / name).read_bytes(), (root / signature_path(name)).read_bytes()) for name in names)


def test_a_pointer_that_stands_is_left_alone(root: Path, signer: Signer) -> None:
    assert move_pointers(root, format_number=4, version=10, signer=signer)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert not move_pointers(root, format_number=4, version=10, signer=signer)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert _are_vouched_for(root)


def test_what_a_killed_builder_signed_and_did_not_show_is_signed_again(root: Path, signer: Signer) -> None:
    move_pointers(root, format_number=4, version=10, signer=signer)
    # It ended between the two renames, and then the older version is the one to be shown.
    (root / signature_path(latest_path(4))).write_bytes(signer.sign(b"20\n"))
    assert move_pointers(root, format_number=4, version=10, signer=signer)
    assert pointed_version(root, 4) == 10
    assert _are_vouched_for(root)


@pytest.mark.parametrize("left", [b"", b"no signature", bytes.fromhex("3003020101")])
def test_what_is_no_signature_is_made_again(root: Path, signer: Signer, left: bytes) -> None:
    move_pointers(root, format_number=4, version=10, signer=signer)
    (root / signature_path(latest_path(4))).write_bytes(left)
    assert move_pointers(root, format_number=4, version=10, signer=signer)
    assert _are_vouched_for(root)
