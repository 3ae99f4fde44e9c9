"""The UEFI application on the ESP is always a whole one, and the one before it is kept."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from overhaul.dialects.ostree.device.uefiapp import (
    Medium,
    PartitionIds,
    UefiAppError,
    find_app,
    medium_of,
    root_partition_id,
    update_app,
)
from overhaul.dialects.ostree.device.uefiapp_cli import first_partition, mounted_esp

_HOOK = Path(__file__).parents[5] / "deploy/ostree-hooks/post-apply.d/00-update-uefi-app"


def build(directory: Path, content: bytes) -> Path:
    """Make a deployment whose applications hold `content`."""
    place = directory / "usr/lib/ostree-boot"
    place.mkdir(parents=True)
    for medium in Medium:
        data = content + medium.encode()
        (place / f"bootx64.efi.{medium}-{hashlib.sha256(data).hexdigest()}").write_bytes(data)
    (place / f"vmlinuz-{'0' * 64}").touch()
    return directory


def started(esp: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (esp / "EFI/BOOT").iterdir()}


@pytest.fixture
def esp(tmp_path: Path) -> Path:
    directory = tmp_path / "esp"
    (directory / "EFI/BOOT").mkdir(parents=True)
    (directory / "EFI/BOOT/bootx64.efi").write_bytes(b"first ext")
    return directory


def test_the_new_application_is_started_and_the_old_one_is_kept(tmp_path: Path, esp: Path) -> None:
    app = find_app(build(tmp_path / "new", b"second "), Medium.EXTERNAL)
    assert update_app(app, esp, dry_run=True)
    assert started(esp) == {"bootx64.efi": b"first ext"}
    assert update_app(app, esp)
    assert started(esp) == {"bootx64.efi": b"second ext", "bootx64.efi.old": b"first ext"}
    assert not update_app(app, esp)
    assert started(esp) == {"bootx64.efi": b"second ext", "bootx64.efi.old": b"first ext"}


def test_an_empty_esp_gets_the_application_without_a_backup(tmp_path: Path) -> None:
    app = find_app(build(tmp_path / "new", b"second "), Medium.INTERNAL)
    assert update_app(app, tmp_path / "esp")
    assert started(tmp_path / "esp") == {"bootx64.efi": b"second int"}


def test_an_application_with_other_bytes_than_its_name_tells_is_refused(tmp_path: Path, esp: Path) -> None:
    app = find_app(build(tmp_path / "new", b"second "), Medium.EXTERNAL)
    app.path.write_bytes(b"second ex!")
    with pytest.raises(UefiAppError, match="checksum"):
        update_app(app, esp)
    assert started(esp)["bootx64.efi"] == b"first ext"
    assert not list(esp.glob("EFI/BOOT/.*"))


def test_a_full_esp_loses_the_backup_before_the_last_and_nothing_else(
    tmp_path: Path, esp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = find_app(build(tmp_path / "new", b"second "), Medium.EXTERNAL)
    old = esp / "EFI/BOOT/bootx64.efi.old"
    old.write_bytes(b"zeroth ext")
    needed_bytes = len(b"first ext" + b"second ext")
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _path: SimpleNamespace(free=needed_bytes - (1 if old.exists() else 0))
    )
    assert update_app(app, esp)
    assert started(esp) == {"bootx64.efi": b"second ext", "bootx64.efi.old": b"first ext"}
    third = find_app(build(tmp_path / "third", b"third "), Medium.EXTERNAL)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=3))
    with pytest.raises(UefiAppError, match="3 are free"):
        update_app(third, esp)
    assert started(esp)["bootx64.efi"] == b"second ext"


def test_what_a_killed_run_left_behind_is_removed(tmp_path: Path, esp: Path) -> None:
    (esp / "EFI/BOOT/.bootx64.efi.77.tmp").write_bytes(b"seco")
    (esp / "EFI/BOOT/.bootx64.efi.old.78.tmp").write_bytes(b"fir")
    assert update_app(find_app(build(tmp_path / "new", b"second "), Medium.EXTERNAL), esp)
    assert set(started(esp)) == {"bootx64.efi", "bootx64.efi.old"}


def test_a_deployment_must_have_exactly_one_application_for_the_medium(tmp_path: Path) -> None:
    with pytest.raises(UefiAppError, match="0 applications"):
        find_app(tmp_path, Medium.EXTERNAL)
    new = build(tmp_path / "new", b"second ")
    (new / f"usr/lib/ostree-boot/bootia32.efi.ext-{'0' * 64}").touch()
    with pytest.raises(UefiAppError, match="2 applications"):
        find_app(new, Medium.EXTERNAL)


def test_the_root_partition_tells_the_medium() -> None:
    ids = PartitionIds()
    assert root_partition_id(f"quiet root=PARTUUID={ids.internal.upper()} rw\n") == ids.internal
    assert root_partition_id("quiet root=/dev/sda2") == ""
    assert root_partition_id("quiet") == ""
    assert medium_of(ids.external, ids) is Medium.EXTERNAL
    assert medium_of(ids.internal, ids) is Medium.INTERNAL
    with pytest.raises(UefiAppError, match="none that an application is built for"):
        medium_of("", ids)


class CountedMounts:
    """Writes down what is mounted."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []

    def mount(self, device: Path, target: Path, *, file_system: str) -> None:
        self.calls.append((str(device), str(target), file_system))

    def unmount(self, target: Path) -> None:
        self.calls.append(("", str(target), ""))

    def bind(self, source: Path, target: Path) -> None:
        raise NotImplementedError

    def move(self, source: Path, target: Path) -> None:
        raise NotImplementedError

    def detach(self, target: Path) -> None:
        raise NotImplementedError


def test_the_esp_is_the_first_partition_of_the_disk_that_the_root_is_on(tmp_path: Path, esp: Path) -> None:
    (tmp_path / "dev/disk/by-partuuid").mkdir(parents=True)
    (tmp_path / "dev/sdb3").touch()
    (tmp_path / "dev/disk/by-partuuid/77").symlink_to("../../sdb3")
    (tmp_path / "sys/class/block").mkdir(parents=True)
    for number in (1, 3):
        place = tmp_path / f"sys/devices/sdb/sdb{number}"
        place.mkdir(parents=True)
        (place / "partition").write_text(f"{number}\n")
        (tmp_path / f"sys/class/block/sdb{number}").symlink_to(place)
    mounts = CountedMounts()
    with mounted_esp(esp, "77", mounts=mounts, root=tmp_path):
        assert mounts.calls == [(str(tmp_path / "dev/sdb1"), str(esp), "vfat")]
    assert mounts.calls[1:] == [("", str(esp), "")]
    with mounted_esp(Path("/proc"), "77", mounts=mounts, root=tmp_path):
        assert len(mounts.calls) == 2
    with pytest.raises(UefiAppError, match="not found"):
        first_partition("78", root=tmp_path)


def test_the_hook_tells_the_updater_by_its_exit_code(tmp_path: Path) -> None:
    new = build(tmp_path / "new", b"second ")
    line = tmp_path / "cmdline"
    line.write_text("root=PARTUUID=AB quiet\n")
    argv = [sys.executable, str(_HOOK), "", str(new), f"--command-line={line}"]
    unknown = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (unknown.returncode, "'ab' is none" in unknown.stderr) == (6, True)
    # A mount point that holds no ESP, and a run that only tells.
    known = [*argv, "--internal-partuuid=ab", "--esp=/proc", "--dry-run"]
    told = subprocess.run(known, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout.startswith("would update bootx64.efi to ")) == (0, True)
    assert subprocess.run([*argv, "--nonsense"], capture_output=True, check=False).returncode == 2
