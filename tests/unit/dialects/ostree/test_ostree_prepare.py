"""Preparing a root file system: the plan says all that is done, and does nothing twice."""

import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from overhaul.content.tree import scan_tree
from overhaul.dialects.ostree.prepare import (
    GENERIC_PLACES,
    REFKIT_PLACES,
    Plan,
    UnpreparableTreeError,
    plan_tree,
    write_out,
)


def _rootfs(root: Path, *, kernel: bool = True) -> Path:
    for name in ("usr/bin", "usr/lib", "etc/systemd", "var/log", "home/user", "boot", "dev", "tmp", "root", "mnt"):
        (root / name).mkdir(parents=True)
    (root / "usr/lib/os-release").write_text("PRETTY_NAME=Kiosk\n")
    (root / "etc/issue").write_text("kiosk\n")
    (root / "etc/systemd/system.conf").write_text("x\n")
    (root / "etc/systemd").chmod(0o750)
    (root / "var/log/old").write_text("gone\n")
    (root / "usr/bin/tool").write_text("#!/bin/sh\n")
    (root / "usr/bin/tool").chmod(0o4755)
    (root / "bin").symlink_to("usr/bin")
    if kernel:
        (root / "boot/vmlinuz-6.1.0").write_text("kernel")
        (root / "boot/initrd.img-6.1.0").write_text("initramfs")
    return root


def _plan(root: Path, **options: object) -> Plan:
    places = options.pop("places", REFKIT_PLACES)
    return plan_tree(root, scan_tree(root), places=places, **options)  # type: ignore[arg-type]


def _names(plan: Plan) -> dict[str, bytes | None]:
    return {os.fsdecode(entry.path): entry.target for entry in plan.entries}


def test_a_root_file_system_becomes_one_that_can_be_deployed(tmp_path: Path) -> None:
    plan = _plan(_rootfs(tmp_path / "rootfs"))
    names = _names(plan)
    assert {"usr/etc/issue", "usr/etc/systemd/system.conf", "usr/lib/modules/6.1.0/vmlinuz"} <= set(names)
    assert "usr/lib/modules/6.1.0/initramfs.img" in names
    assert names["ostree"] == b"sysroot/ostree"
    assert names["tmp"] == b"sysroot/tmp"
    assert names["mnt"] == b"var/mnt"
    assert {"sysroot", "boot", "var", "home"} <= set(names)
    assert not [name for name in names if name.startswith(("etc", "var/", "boot/", "home/"))]
    said = {(change.step, change.path) for change in plan.changes}
    assert said >= {("etc", "etc"), ("places", "var"), ("kernel", "boot/vmlinuz-6.1.0"), ("places", "ostree")}


def test_nothing_of_the_tree_itself_is_touched(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    before = scan_tree(root)
    write_out(root, _plan(root).entries, tmp_path / "out")
    after = scan_tree(root)
    assert [(e.path, e.mode, e.size, e.mtime_ns) for e in before] == [
        (e.path, e.mode, e.size, e.mtime_ns) for e in after
    ]


def test_what_is_written_out_is_prepared_and_has_its_modes(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    out = tmp_path / "out"
    write_out(root, _plan(root).entries, out)
    again = _plan(out)
    assert again.changes == ()
    assert stat.S_IMODE((out / "usr/etc/systemd").stat().st_mode) == 0o750
    assert stat.S_IMODE((out / "usr/bin/tool").stat().st_mode) == 0o4755
    assert (out / "usr/etc/issue").read_text() == "kiosk\n"
    with pytest.raises(UnpreparableTreeError, match="is there already"):
        write_out(root, _plan(root).entries, out)


def test_what_cannot_be_written_whole_leaves_nothing(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    entries = _plan(root).entries
    (root / "usr/bin/tool").unlink()
    with pytest.raises(FileNotFoundError):
        write_out(root, entries, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rootfs"]


def test_directories_that_are_not_merged_move_into_usr(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    (root / "sbin").mkdir()
    (root / "sbin/init").write_text("init")
    (root / "lib64/deep").mkdir(parents=True)
    (root / "lib64/deep/ld.so").write_text("ld")
    names = _names(_plan(root))
    assert names["sbin"] == b"usr/sbin"
    assert names["lib64"] == b"usr/lib64"
    assert {"usr/sbin/init", "usr/lib64/deep/ld.so"} <= set(names)


def test_a_file_in_both_halves_of_the_merge_is_refused(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    for place in ("sbin", "usr/sbin"):
        (root / place).mkdir()
        (root / place / "init").write_text(place)
    with pytest.raises(UnpreparableTreeError, match="both /sbin/init and /usr/sbin/init"):
        _plan(root)


def test_a_uefi_application_is_kept_under_its_digest_as_refkit_does(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs", kernel=False)
    for place, content in (("EFI/BOOT", b"external"), ("EFI_internal_storage/BOOT", b"internal")):
        (root / "boot" / place).mkdir(parents=True)
        (root / "boot" / place / "bootx64.efi").write_bytes(content)
    external, internal = (hashlib.sha256(content).hexdigest() for content in (b"external", b"internal"))
    entries = {os.fsdecode(entry.path): entry for entry in _plan(root).entries}
    place = "usr/lib/ostree-boot"
    assert entries[f"{place}/bootx64.efi.ext-{external}"].source == b"boot/EFI/BOOT/bootx64.efi"
    assert entries[f"{place}/bootx64.efi.int-{internal}"].source == b"boot/EFI_internal_storage/BOOT/bootx64.efi"
    for kind in ("vmlinuz", "initramfs"):
        assert entries[f"{place}/{kind}-{external}"].content == b""


def test_two_uefi_applications_are_refused(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs", kernel=False)
    (root / "boot/EFI/BOOT").mkdir(parents=True)
    for name in ("bootx64.efi", "bootia32.efi"):
        (root / "boot/EFI/BOOT" / name).write_text("app")
    with pytest.raises(UnpreparableTreeError, match=r"exactly one .*/bootia32\.efi, boot/EFI/BOOT/bootx64\.efi"):
        _plan(root)


def test_a_tree_without_a_kernel_is_refused_unless_that_is_fine(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs", kernel=False)
    with pytest.raises(UnpreparableTreeError, match="there is no kernel"):
        _plan(root)
    assert _plan(root, needs_kernel=False)


def test_several_kernels_are_refused(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    (root / "boot/vmlinuz-5.10").write_text("old")
    with pytest.raises(UnpreparableTreeError, match="several kernels"):
        _plan(root)


def test_a_name_for_boot_entries_is_found_in_etc_or_missed(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    (root / "etc/os-release").write_bytes((root / "usr/lib/os-release").read_bytes())
    (root / "usr/lib/os-release").unlink()
    names = _names(_plan(root))
    assert names["usr/etc/os-release"] == b"../usr/lib/os-release"
    assert names["usr/lib/os-release"] is None
    (root / "etc/os-release").unlink()
    with pytest.raises(UnpreparableTreeError, match="os-release"):
        _plan(root)


def test_pipes_and_sockets_are_dropped_and_named(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    os.mkfifo(root / "usr/lib/pipe")
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(root)
        try:
            made.bind("usr/lib/sock")
        finally:
            os.chdir(here)
    plan = _plan(root)
    assert {change.path for change in plan.changes if change.step == "special"} == {"usr/lib/pipe", "usr/lib/sock"}
    assert not {"usr/lib/pipe", "usr/lib/sock"} & set(_names(plan))


def test_a_place_that_holds_nothing_but_directories_and_links_among_them_becomes_a_link(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    (root / "usr/local/share/man").mkdir(parents=True)
    (root / "usr/local/man").symlink_to("share/man")
    (root / "opt").mkdir()
    assert _names(_plan(root, places=GENERIC_PLACES))["usr/local"] == b"../var/usrlocal"
    (root / "usr/local/bin").symlink_to("../bin")
    with pytest.raises(UnpreparableTreeError, match=r"1 names, such as usr/local/bin"):
        _plan(root, places=GENERIC_PLACES)


def test_the_generic_layout_keeps_state_in_var_and_loses_no_software(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    names = _names(_plan(root, places=GENERIC_PLACES))
    assert (names["home"], names["opt"], names["root"]) == (b"var/home", b"var/opt", b"var/roothome")
    assert names["usr/local"] == b"../var/usrlocal"
    (root / "opt/vendor").mkdir(parents=True)
    (root / "opt/vendor/program").write_text("kept")
    with pytest.raises(UnpreparableTreeError, match=r"/opt would become a link to var/opt, but holds 1 names"):
        _plan(root, places=GENERIC_PLACES)


def test_two_configurations_are_refused(tmp_path: Path) -> None:
    root = _rootfs(tmp_path / "rootfs")
    (root / "usr/etc").mkdir()
    assert _plan(root)
    (root / "usr/etc/issue").write_text("other")
    with pytest.raises(UnpreparableTreeError, match="both /etc and /usr/etc"):
        _plan(root)
