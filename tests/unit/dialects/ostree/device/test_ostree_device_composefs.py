"""What newer OSTree writes about roots that are shown through an image."""

import os
from pathlib import Path

import pytest

from overhaul.dialects.ostree.device.composefs import (
    BootedFileError,
    argument_demand,
    backing_root,
    demands_image,
    has_image,
)
from overhaul.dialects.ostree.device.sysroot import Sysroot, booted_deployment, running_system
from overhaul.dialects.ostree.gvariant import Variant, encode

_COMMIT = "a" * 64
_LINK = f"/ostree/boot.0/example/{'b' * 64}/0"


def write_booted(root: Path, **held: Variant) -> Path:
    """Write what the initial file system leaves behind."""
    path = root / "run/ostree-booted"
    path.parent.mkdir(parents=True, exist_ok=True)
    named = sorted((name.replace("_", "-"), value) for name, value in held.items())
    path.write_bytes(encode("a{sv}", named))
    return path


def test_the_deployment_that_a_root_shows_is_the_one_that_runs(tmp_path: Path) -> None:
    """Its root is a mount of its own, whose inode is nobody's."""
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("first\n")
    sysroot = tmp_path / "sysroot"
    deployment = sysroot / f"ostree/deploy/example/deploy/{_COMMIT}.0"
    deployment.mkdir(parents=True)
    (sysroot / "ostree/repo").mkdir()
    (sysroot / "boot/loader.0/entries").mkdir(parents=True)
    (sysroot / "boot/loader").symlink_to("loader.0")
    link = sysroot / f"ostree/boot.0/example/{'b' * 64}/0"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../../deploy/example/deploy/{_COMMIT}.0")
    entry = sysroot / "boot/loader.0/entries/ostree-1-example.conf"
    entry.write_text(f"title Example\nversion 1\noptions ostree={_LINK}\nlinux /vmlinuz\n")
    write_booted(tmp_path, composefs=Variant("b", value=True))
    assert booted_deployment(Sysroot(sysroot, running=running_system(root=tmp_path)).deployments()) is None
    status = deployment.stat()
    write_booted(
        tmp_path,
        backing_root_device_inode=Variant("(tt)", (status.st_dev, status.st_ino)),
        composefs=Variant("b", value=True),
    )
    booted = booted_deployment(Sysroot(sysroot, running=running_system(root=tmp_path)).deployments())
    assert booted is not None
    assert booted.commit == _COMMIT


def test_a_root_that_is_the_deployment_itself_needs_no_word(tmp_path: Path) -> None:
    path = write_booted(tmp_path, sysroot_ro=Variant("b", value=True))
    assert backing_root(path) is None
    path.write_bytes(b"")
    assert backing_root(path) is None


@pytest.mark.parametrize("data", [b"text\n", encode("a{sv}", [("backing-root-device-inode", Variant("s", "8:1"))])])
def test_what_cannot_be_read_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "ostree-booted"
    path.write_bytes(data)
    with pytest.raises(BootedFileError, match="which deployment runs"):
        backing_root(path)


@pytest.mark.parametrize(
    ("value", "demanded"),
    [("yes", True), ("signed", True), ("verity", True), ("True", True), ("maybe", False), ("no", False), ("", False)],
)
def test_only_what_does_not_start_without_an_image_demands_one(value: str, demanded: bool) -> None:
    assert demands_image(f"[sysroot]\nreadonly=true\n[composefs]\nenabled={value}\n") is demanded


def test_no_word_about_images_demands_none(tmp_path: Path) -> None:
    assert not demands_image("[etc]\ntransient=false\n")
    assert argument_demand(("quiet",)) is None
    assert argument_demand(("ostree.prepare-root.composefs=1", "ostree.prepare-root.composefs=no")) is False
    assert not has_image(tmp_path)
    os.mknod(tmp_path / ".ostree.cfs")
    assert has_image(tmp_path)
