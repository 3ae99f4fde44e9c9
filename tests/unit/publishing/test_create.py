"""A new repository has its keys outside, its root for devices, and nothing twice."""

import shutil
from pathlib import Path

import pytest

from overhaul.progress import Silence
from overhaul.publishing.create import RepositoryThereError, create_repository
from overhaul.publishing.opening import open_repository
from overhaul.publishing.upkeep import verify
from overhaul.trust.keyring import KeysInsideRepositoryError
from overhaul.trust.roles import ReservedNameError


def test_keys_lie_beside_the_repository_and_not_in_it(tmp_path: Path) -> None:
    created = create_repository(tmp_path / "repo", products=("kiosk",))

    assert created.keys == tmp_path / "repo-keys"
    assert not created.demo_keys
    assert not list((tmp_path / "repo").rglob("*.pem"))
    assert {path.stat().st_mode & 0o777 for path in created.keys.glob("*.pem")} == {0o600}


def test_the_root_for_devices_is_the_published_one(tmp_path: Path) -> None:
    created = create_repository(tmp_path / "repo", products=("kiosk", "phone"))

    assert created.root.read_bytes() == (tmp_path / "repo/store/public/metadata/1.root.json").read_bytes()
    report = verify(open_repository(tmp_path / "repo"), progress=Silence(), anchor=created.root.read_bytes())
    assert report.findings == ()


def test_a_second_init_changes_nothing(tmp_path: Path) -> None:
    create_repository(tmp_path / "repo", products=("kiosk",))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}

    with pytest.raises(RepositoryThereError):
        create_repository(tmp_path / "repo", products=("phone",))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_keys_that_are_there_are_used(tmp_path: Path) -> None:
    first = create_repository(tmp_path / "one", products=("kiosk",), keys=tmp_path / "keys")
    shutil.rmtree(tmp_path / "one")
    second = create_repository(tmp_path / "two", products=("kiosk",), keys=tmp_path / "keys")

    assert second.keys == first.keys
    assert verify(open_repository(tmp_path / "two"), progress=Silence()).is_sound


def test_keys_inside_and_reserved_names_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(KeysInsideRepositoryError):
        create_repository(tmp_path / "repo", products=("kiosk",), keys=tmp_path / "repo" / "keys")
    with pytest.raises(ReservedNameError):
        create_repository(tmp_path / "repo", products=("snapshot",))
    assert list(tmp_path.iterdir()) == []
