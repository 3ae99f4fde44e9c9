"""The environment block as a codec, and how the GRUB backend finds the running slot and writes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.install.boot import BootControlError
from overhaul.install.countdown import BootVariables, SlotCounter, parse_variables, render_variables
from overhaul.install.envblock import BLOCK_SIZE, SIGNATURE, MalformedEnvironmentError, read_block, write_block
from overhaul.install.grub import GrubBoot

NAMES = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,10}\Z")
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(NAMES, TEXTS, max_size=8))
def test_any_variables_survive_a_block(variables: dict[str, str]) -> None:
    block = write_block(variables)
    assert len(block) == BLOCK_SIZE
    assert read_block(block) == variables


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_block_or_refused(data: bytes) -> None:
    try:
        variables = read_block((SIGNATURE + data).ljust(BLOCK_SIZE, b"#"))
    except MalformedEnvironmentError:
        return
    assert all("\n" not in name for name in variables)


@pytest.mark.parametrize("size", [0, 10, len(SIGNATURE), 511, 513, 1023])
def test_a_truncated_block_is_refused(size: int) -> None:
    with pytest.raises(MalformedEnvironmentError):
        read_block(write_block({"A_OK": "1"})[:size])


def test_more_variables_than_fit_are_refused() -> None:
    with pytest.raises(MalformedEnvironmentError, match="has 1024"):
        write_block({"x": "y" * 1000})


@pytest.mark.parametrize("name", ["", "a=b", "#a", "a\nb"])
def test_a_name_that_would_read_differently_is_refused(name: str) -> None:
    with pytest.raises(MalformedEnvironmentError):
        write_block({name: "x"})


@given(
    order=st.permutations(["A", "B"]),
    counters=st.lists(st.tuples(st.booleans(), st.integers(0, 9)), min_size=2, max_size=2),
)
def test_boot_variables_survive_the_environment(order: list[str], counters: list[tuple[bool, int]]) -> None:
    variables = BootVariables(
        order=tuple(order),
        slots={
            name: SlotCounter(is_ok=ok, attempts_left=left) for name, (ok, left) in zip("AB", counters, strict=True)
        },
    )
    assert parse_variables(render_variables(variables), ("A", "B")) == variables


def machine(root: Path, *, command_line: str = "quiet", mountinfo: str = "") -> GrubBoot:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/cmdline").write_text(command_line + "\n")
    (root / "proc/self/mountinfo").write_text(mountinfo)
    for name in ("sda1", "sda2"):
        (root / name).write_bytes(b"")
    (root / "label-b").symlink_to(root / "sda2")
    (root / "grubenv").write_bytes(write_block({}))
    return GrubBoot(root / "grubenv", {"A": root / "sda1", "B": root / "label-b"}, root=root)


def test_the_running_slot_is_named_on_the_kernels_command_line(tmp_path: Path) -> None:
    assert machine(tmp_path, command_line="root=LABEL=x overhaul.slot=B quiet").booted() == "B"


def test_without_a_name_the_running_slot_is_the_device_mounted_as_root(tmp_path: Path) -> None:
    mounts = f"22 1 8:2 / /boot rw - ext4 /dev/x rw\n23 1 8:2 / / rw,noatime shared:1 - ext4 {tmp_path}/sda2 rw\n"
    assert machine(tmp_path, mountinfo=mounts).booted() == "B"


@pytest.mark.parametrize("command_line", ["overhaul.slot=C", "noverhaul.slot=A"])
def test_a_running_slot_that_cannot_be_told_is_an_error_with_the_cure(tmp_path: Path, command_line: str) -> None:
    with pytest.raises(BootControlError, match=r"overhaul\.slot|'C'"):
        machine(tmp_path, command_line=command_line).booted()


def test_a_missing_block_names_the_command_that_makes_one(tmp_path: Path) -> None:
    boot = machine(tmp_path)
    (tmp_path / "grubenv").unlink()
    for call in (boot.require_ready, boot.mark_bad):
        with pytest.raises(BootControlError, match="grub-editenv"):
            call("B")


def test_the_block_keeps_its_size_place_and_foreign_variables(tmp_path: Path) -> None:
    boot = machine(tmp_path)
    path = tmp_path / "grubenv"
    path.write_bytes(write_block({"saved_entry": "x", "B_TRY": "2"}, size=2048))
    inode = path.stat().st_ino
    boot.try_next("B", attempts=3)
    block = path.read_bytes()
    assert (len(block), path.stat().st_ino) == (2048, inode)
    assert read_block(block) == {
        "ORDER": "B A",
        "A_OK": "1",
        "A_TRY": "0",
        "B_OK": "0",
        "B_TRY": "3",
        "saved_entry": "x",
    }


def test_every_change_stays_inside_one_sector_whatever_else_the_block_holds(tmp_path: Path) -> None:
    boot = machine(tmp_path)
    path = tmp_path / "grubenv"
    path.write_bytes(write_block({"large": "y" * 700}))
    boot.mark_good("A")
    changes: list[Callable[[], None]] = [
        lambda: boot.try_next("B", attempts=3),
        lambda: boot.mark_bad("B"),
        lambda: boot.mark_good("B"),
        lambda: boot.try_next("A", attempts=9),
    ]
    for change in changes:
        before = path.read_bytes()
        change()
        after = path.read_bytes()
        assert before[512:] == after[512:]
        assert before != after
