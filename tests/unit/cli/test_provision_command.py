"""`overhaul provision` as a person types it, up to where the real tools begin."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.published import PublishedRepository

from overhaul.cli import cli
from overhaul.publishing.provisioning import DiskExistsError, UnprovisionableReleaseError


def run(repository: PublishedRepository, disk: Path, release: str) -> None:
    words = ["provision", release, str(disk), "--channel", "stable", "--url", "https://updates.example.com"]
    words += ["--repository", str(repository.directory)]
    CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)


def test_releases_without_a_file_system_that_a_loader_starts_are_refused(tmp_path: Path) -> None:
    repository = PublishedRepository(tmp_path / "repository")
    repository.publish("1.0", "b1")
    disk = tmp_path / "disk.img"
    with pytest.raises(UnprovisionableReleaseError, match="raw, and disks"):
        run(repository, disk, "alpha/desk/amd64/1.0/b1")
    with pytest.raises(UnprovisionableReleaseError, match="not published"):
        run(repository, disk, "alpha/desk/amd64/2.0/b1")
    repository.publish("1.0", "b1", arch="riscv64")
    with pytest.raises(UnprovisionableReleaseError, match="a UEFI loader"):
        run(repository, disk, "alpha/desk/riscv64/1.0/b1")
    disk.write_bytes(b"precious")
    with pytest.raises(DiskExistsError):
        run(repository, disk, "alpha/desk/amd64/1.0/b1")
    assert disk.read_bytes() == b"precious"
