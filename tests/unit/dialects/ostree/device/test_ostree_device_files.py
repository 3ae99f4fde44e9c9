"""Key files, entries of the boot loader, kernels and locks: what the updater reads and writes on a device."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.dialects.ostree.device.bootentry import (
    BootEntryError,
    BootLink,
    parse_boot_entry,
    parse_boot_link,
    read_boot_entries,
    split_arguments,
    with_link,
)
from overhaul.dialects.ostree.device.kernel import NoKernelError, find_kernel
from overhaul.dialects.ostree.device.keyfile import KeyFile, KeyFileError, boolean, read_key_file, write_key_file
from overhaul.dialects.ostree.device.recordlock import RepositoryBusyError, record_locked

CHECKSUM = "ab" * 32
LINK = f"/ostree/boot.1/example/{CHECKSUM}/0"
ENTRY = f"""title Example OS 42 (ostree:0)
version 2
options root=LABEL=root quiet ostree={LINK}
linux /ostree/example-{CHECKSUM}/vmlinuz-6.1
initrd /ostree/example-{CHECKSUM}/initramfs-6.1.img
machine-id 0123
"""

_WORD = st.text("abcXYZ019-_.", min_size=1, max_size=8)
_VALUE = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=20).map(str.strip)


@given(st.dictionaries(_WORD, st.dictionaries(_WORD, _VALUE, min_size=1, max_size=4), max_size=4))
def test_what_is_set_in_a_key_file_is_read_from_its_text(groups: dict[str, dict[str, str]]) -> None:
    content = KeyFile()
    for group, values in groups.items():
        for key, value in values.items():
            content.set(group, key, value)
    again = KeyFile(content.text())
    assert {group: dict(again.items(group)) for group in again.groups()} == groups


def test_a_change_of_a_key_file_keeps_everything_else() -> None:
    content = KeyFile('# of the owner\n[core]\nmode=bare\n\n[remote "r"]\nurl=old\n# note\n')
    content.set('remote "r"', "url", "new")
    content.set("core", "fsync", "false")
    assert content.text() == '# of the owner\n[core]\nmode=bare\nfsync=false\n\n[remote "r"]\nurl=new\n# note\n'


def test_a_key_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    content = KeyFile()
    content.set("origin", "refspec", "r:b")
    write_key_file(tmp_path / "origin", content)
    assert read_key_file(tmp_path / "origin").get("origin", "refspec") == "r:b"
    assert [path.name for path in tmp_path.iterdir()] == ["origin"]


@pytest.mark.parametrize("data", [b"\xff\xfe", b"x" * (2 << 20)])
def test_a_key_file_that_is_none_is_refused_by_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config"
    path.write_bytes(data)
    with pytest.raises(KeyFileError, match="config"):
        read_key_file(path)
    with pytest.raises(KeyFileError, match="absent"):
        read_key_file(tmp_path / "absent")


def test_booleans_are_read_as_glib_reads_them() -> None:
    assert [boolean(text, default=True) for text in ("false", "0", "true", None, "maybe")] == [
        False, False, True, True, True
    ]  # fmt: skip


def test_an_entry_is_written_as_it_was_read() -> None:
    entry = parse_boot_entry(ENTRY, path=Path("ostree-2-example.conf"))
    assert entry.text() == ENTRY
    assert entry.boot_link == BootLink(boot_version=1, osname="example", boot_checksum=CHECKSUM, serial=0)
    assert entry.own_arguments == ("root=LABEL=root", "quiet")


def test_a_new_link_takes_the_place_of_the_old_one() -> None:
    entry = parse_boot_entry(ENTRY, path=Path("x"))
    link = BootLink(boot_version=0, osname="example", boot_checksum=CHECKSUM, serial=3)
    assert with_link(entry, link).arguments == ("root=LABEL=root", "quiet", f"ostree={link}")


def test_the_counter_of_systemd_boot_is_read_from_the_name() -> None:
    names = {"ostree-2-example+3-1.conf": 3, "ostree-2-example+2.conf": 2, "ostree-2-example.conf": None}
    for name, left in names.items():
        assert parse_boot_entry(ENTRY, path=Path(name)).attempts_left == left


@pytest.mark.parametrize(
    "text",
    [
        "linux /x\n", "version two\nlinux /x\n", "version 1\n", "version 1\nversion 2\nlinux /x\n",
        "version 99999999999\nlinux /x\n",
    ],
)  # fmt: skip
def test_an_entry_without_sense_is_refused(text: str) -> None:
    with pytest.raises(BootEntryError):
        parse_boot_entry(text, path=Path("ostree-1.conf"))


def test_entries_come_by_version_whatever_their_files_are_called(tmp_path: Path) -> None:
    for name, version in (("ostree-example-0.conf", 3), ("ostree-1-example.conf", 1), ("ostree-2.conf", 2)):
        (tmp_path / name).write_text(ENTRY.replace("version 2", f"version {version}"))
    (tmp_path / "windows.conf").write_text("not ours")
    assert [entry.version for entry in read_boot_entries(tmp_path)] == [3, 2, 1]
    assert read_boot_entries(tmp_path / "absent") == ()


def test_quoted_blanks_keep_an_argument_together() -> None:
    assert split_arguments('a="b c" d  e="f"') == ('a="b c"', "d", 'e="f"')


@pytest.mark.parametrize("text", ["/ostree/boot.2/x/" + CHECKSUM + "/0", "/ostree/boot.1/a/b/0", LINK + "/x", ""])
def test_what_leads_to_no_deployment_is_no_link(text: str) -> None:
    assert parse_boot_link(text) is None


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_kernel_among_modules_is_named_by_its_contents(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/modules/6.1/vmlinuz", "k")
    put(tmp_path, "usr/lib/modules/6.1/initramfs.img", "i")
    layout = find_kernel(tmp_path)
    assert layout.boot_checksum == hashlib.sha256(b"ki").hexdigest()
    assert [name for name, _path in layout.files()] == ["vmlinuz-6.1", "initramfs-6.1.img"]
    assert layout.size_bytes() == 2


def test_device_trees_of_a_directory_go_with_the_kernel(tmp_path: Path) -> None:
    put(tmp_path, "usr/lib/modules/6.1/vmlinuz", "k")
    put(tmp_path, "usr/lib/modules/6.1/dtb/a/board.dtb", "d")
    layout = find_kernel(tmp_path)
    assert layout.boot_checksum == hashlib.sha256(b"kd").hexdigest()
    assert [name for name, _path in layout.files()] == ["vmlinuz-6.1", "dtb-6.1/a/board.dtb"]


def test_refkits_boot_files_carry_their_checksum_in_their_names(tmp_path: Path) -> None:
    put(tmp_path, f"usr/lib/ostree-boot/vmlinuz-{CHECKSUM}", "")
    put(tmp_path, f"usr/lib/ostree-boot/initramfs-{CHECKSUM}", "")
    put(tmp_path, f"usr/lib/ostree-boot/bootx64.efi.ext-{CHECKSUM}", "app")
    layout = find_kernel(tmp_path)
    assert layout.boot_checksum == CHECKSUM
    assert [name for name, _path in layout.files()] == ["vmlinuz", "initramfs"]


def test_trees_without_one_clear_kernel_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NoKernelError, match="no kernel"):
        find_kernel(tmp_path)
    put(tmp_path, f"usr/lib/ostree-boot/vmlinuz-{CHECKSUM}", "")
    put(tmp_path, f"usr/lib/ostree-boot/initramfs-{'cd' * 32}", "")
    with pytest.raises(NoKernelError, match="another checksum"):
        find_kernel(tmp_path)
    for version in ("6.1", "6.2"):
        put(tmp_path, f"usr/lib/modules/{version}/vmlinuz", "k")
    with pytest.raises(NoKernelError, match="several"):
        find_kernel(tmp_path)


def test_shared_locks_go_together_and_an_exclusive_one_is_alone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with record_locked(path, purpose="A pull", shared=True, wait_s=0):
        with record_locked(path, purpose="A pull", shared=True, wait_s=0):
            pass
        with pytest.raises(RepositoryBusyError, match="A prune"), record_locked(path, purpose="A prune", wait_s=0):
            pass
    with record_locked(path, purpose="A prune", wait_s=0):
        pass


def test_a_lock_is_waited_for_as_long_as_asked(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    with (
        record_locked(path, purpose="x", wait_s=0),
        pytest.raises(RepositoryBusyError),
        record_locked(path, purpose="x", wait_s=3, monotonic=lambda: now[0], sleep=sleep),
    ):
        pass
    assert 3 <= now[0] < 4
