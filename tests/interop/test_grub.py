"""The real GRUB: its tool reads and writes our blocks, and its interpreter follows our counting script."""

import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tools import need

from overhaul.install.boot import SlotStatus
from overhaul.install.countdown import after_boot, chosen_slot, parse_variables, render_variables
from overhaul.install.envblock import BLOCK_SIZE, SIGNATURE, read_block, write_block
from overhaul.install.grub import GrubBoot

DEPLOY = Path(__file__).parents[2] / "deploy/grub"
SLOTS = ("A", "B")


def listed(path: Path) -> list[str]:
    shown = subprocess.run([need("grub-editenv"), str(path), "list"], check=True, capture_output=True, text=True)
    return shown.stdout.splitlines()


def test_a_block_made_by_grub_editenv_is_written_back_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "grubenv"
    subprocess.run([need("grub-editenv"), str(path), "create"], check=True)
    subprocess.run(["grub-editenv", str(path), "set", "ORDER=A B", "A_OK=1", r"odd=back\slash"], check=True)
    block = path.read_bytes()
    assert read_block(block) == {"ORDER": "A B", "A_OK": "1", "odd": r"back\slash"}
    assert write_block(read_block(block)) == block


def test_grub_editenv_reads_what_the_boot_control_writes_and_keeps_foreign_variables(tmp_path: Path) -> None:
    path = tmp_path / "grubenv"
    subprocess.run([need("grub-editenv"), str(path), "create"], check=True)
    subprocess.run(["grub-editenv", str(path), "set", "saved_entry=debian"], check=True)
    boot = GrubBoot(path, {name: tmp_path / name for name in SLOTS}, root=tmp_path)
    boot.try_next("B", attempts=3)
    assert listed(path) == ["ORDER=B A", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=3", "saved_entry=debian"]
    subprocess.run(["grub-editenv", str(path), "set", "B_TRY=0"], check=True)
    assert boot.state("B").status is SlotStatus.BAD
    assert path.stat().st_size == BLOCK_SIZE


@settings(max_examples=40)
@given(
    variables=st.dictionaries(
        st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_]{0,8}\Z"),
        # grub-editenv prints values as they are, so a newline inside would only confuse its listing.
        st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20),
        max_size=6,
    )
)
def test_grub_editenv_lists_any_variables_we_write(
    variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("block") / "grubenv"
    path.write_bytes(write_block(variables))
    assert listed(path) == [f"{name}={value}" for name, value in variables.items()]


@dataclass(frozen=True)
class Emulator:
    """GRUB's emulator with a file system of its own, whose grubenv is edited in the image."""

    directory: Path
    image: Path
    offset: int

    def boot(self, environment: dict[str, str]) -> tuple[str, dict[str, str]]:
        """Return the slot that GRUB chose and the environment that it left."""
        with self.image.open("r+b") as stream:
            os.pwrite(stream.fileno(), write_block(environment), self.offset)
            shown = subprocess.run(
                ["grub-emu", "-m", str(self.directory / "device.map"), "-r", "hd0", "-d", "/grub"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=300,
            ).stdout.decode(errors="replace")
            assert "CHOSEN[" in shown, shown
            return (
                shown.split("CHOSEN[")[1].split("]")[0],
                read_block(os.pread(stream.fileno(), BLOCK_SIZE, self.offset)),
            )


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    need("grub-emu")
    directory = tmp_path_factory.mktemp("grub")
    tree = directory / "tree/grub"
    shutil.copytree("/usr/lib/grub/x86_64-emu", tree / "x86_64-emu")
    shutil.copy(DEPLOY / "overhaul.cfg", tree)
    (tree / "grub.cfg").write_text("source $prefix/overhaul.cfg\necho CHOSEN[$overhaul_slot]\nexit\n")
    (tree / "grubenv").write_bytes(write_block({}))
    image = directory / "disk.img"
    with image.open("wb") as stream:
        stream.truncate(32 << 20)
    subprocess.run(
        [need("mkfs.ext4"), "-q", "-t", "ext2", "-d", str(directory / "tree"), str(image)],
        check=True,
        capture_output=True,
    )
    (directory / "device.map").write_text(f"(hd0) {image}\n")
    padded = SIGNATURE + b"#"
    offset = image.read_bytes().index(padded + b" WARNING")
    return Emulator(directory, image, offset)


def test_grub_chooses_and_counts_as_the_rules_say_in_every_state(emulator: Emulator) -> None:
    counters = [("1", "0"), ("1", "2"), ("0", "0"), ("0", "1"), ("0", "3"), ("0", "9")]
    for order, (a_ok, a_try), (b_ok, b_try) in itertools.product(("A B", "B A"), counters, counters):
        environment = {"ORDER": order, "A_OK": a_ok, "A_TRY": a_try, "B_OK": b_ok, "B_TRY": b_try}
        variables = parse_variables(environment, SLOTS)
        chosen, left = emulator.boot(environment)
        assert chosen == chosen_slot(variables), environment
        assert left == {**environment, **render_variables(after_boot(variables))}, environment


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"ORDER": "B A"},
        {"ORDER": "B", "A_OK": "0", "B_OK": "0"},
        {"ORDER": "X B A", "B_TRY": "2"},
        {"ORDER": "X", "A_OK": "0"},
        {"ORDER": "B B A", "B_TRY": "12"},
        {"ORDER": "B A", "B_TRY": "x", "A_OK": "yes"},
        {"B_OK": "1", "A_OK": "0", "saved_entry": "x"},
    ],
)
def test_grub_reads_an_odd_environment_as_the_boot_control_does(
    emulator: Emulator, environment: dict[str, str]
) -> None:
    variables = parse_variables(environment, SLOTS)
    chosen, left = emulator.boot(environment)
    assert chosen == chosen_slot(variables)
    assert parse_variables(left, SLOTS) == after_boot(variables)


def test_an_attempt_that_cannot_be_counted_is_not_made(emulator: Emulator, tmp_path: Path) -> None:
    # On the host's own file system GRUB cannot write, as on LVM or btrfs.
    shutil.copytree(emulator.directory / "tree/grub", tmp_path / "grub")
    (tmp_path / "grub/grubenv").write_bytes(write_block({"ORDER": "B A", "A_OK": "1", "B_OK": "0", "B_TRY": "3"}))
    shown = subprocess.run(
        ["grub-emu", "-d", str(tmp_path / "grub")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=300,
    ).stdout.decode(errors="replace")
    assert "CHOSEN[A]" in shown


def test_the_pattern_for_a_whole_configuration_is_valid() -> None:
    for name in ("grub.cfg", "overhaul.cfg"):
        subprocess.run([need("grub-script-check"), str(DEPLOY / name)], check=True)
