"""The real U-Boot: its tools read and write its environment for us, and its shell follows our counting script.

The script is judged in a U-Boot for x86 under QEMU. That build keeps its environment nowhere and has no `saveenv`,
so this one word of the script is replaced by `true`, or by `false` for an environment that cannot be saved.
"""

import itertools
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from tests.tools import need, need_file
from tests.uboot_environment import COPY_BYTES, make_environment, set_variables, variables_of

from overhaul.install.boot import BootControlError, SlotStatus
from overhaul.install.countdown import after_boot, chosen_slot, parse_variables, render_variables
from overhaul.install.uboot import UBoot

DEPLOY = Path(__file__).parents[2] / "deploy/u-boot"
ROM = Path("/usr/lib/u-boot/qemu-x86/u-boot.rom")
SLOTS = ("A", "B")
PREFIX = "OVERHAUL_"
_PATIENCE_S = 300.0


def made(directory: Path, variables: str = "") -> tuple[UBoot, Path, Path]:
    """Return the boot control, the environment's image and its configuration."""
    image, configuration = directory / "environment.img", directory / "fw_env.config"
    make_environment(image, configuration, variables)
    return UBoot(configuration, {slot: directory / slot for slot in SLOTS}, root=directory), image, configuration


def damage(image: Path, copy: int) -> None:
    data = bytearray(image.read_bytes())
    data[copy * COPY_BYTES + 8] ^= 0xFF
    image.write_bytes(data)


def newest(image: Path) -> int:
    """Return which copy has the higher number; it stands after the checksum."""
    data = image.read_bytes()
    return 0 if data[4] > data[COPY_BYTES + 4] else 1


def test_fw_printenv_reads_what_the_boot_control_writes_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    boot, _image, configuration = made(tmp_path, "bootcmd=run distro_bootcmd\nserial#=77\n")
    boot.try_next("B", attempts=3)
    assert variables_of(configuration) == {
        "OVERHAUL_ORDER": "B A",
        "OVERHAUL_A_OK": "1",
        "OVERHAUL_A_TRY": "0",
        "OVERHAUL_B_OK": "0",
        "OVERHAUL_B_TRY": "3",
        "bootcmd": "run distro_bootcmd",
        "serial#": "77",
        "bootdelay": "2",
    }
    set_variables(configuration, "OVERHAUL_B_TRY=0\n")
    assert boot.state("B").status is SlotStatus.BAD


@pytest.mark.parametrize("is_newest", [True, False])
def test_one_damaged_copy_does_no_harm_and_is_mended_in_two_changes(tmp_path: Path, is_newest: bool) -> None:
    boot, image, _configuration = made(tmp_path)
    boot.mark_bad("B")
    boot.try_next("B", attempts=3)
    copy = newest(image)
    damage(image, copy if is_newest else 1 - copy)
    assert boot.state("B").status is (SlotStatus.BAD if is_newest else SlotStatus.TRIAL)
    boot.try_next("B", attempts=2)
    boot.mark_good("B")
    for copy in (0, 1):
        intact = image.read_bytes()
        damage(image, copy)
        assert boot.primary() == "B"
        image.write_bytes(intact)


@pytest.mark.parametrize("environment", [bytes(2 * COPY_BYTES), b"\xff" * 2 * COPY_BYTES, b"", None])
def test_an_environment_that_is_not_there_is_an_error_that_says_how_to_make_one(
    tmp_path: Path, environment: bytes | None
) -> None:
    boot, image, _configuration = made(tmp_path)
    if environment is None:
        image.unlink()
    else:
        image.write_bytes(environment)
    for call in (boot.primary, lambda: boot.mark_bad("B")):
        with pytest.raises(BootControlError, match=r"fw_env\.config.*saveenv"):
            call()
    assert environment is None or image.read_bytes() == environment


def test_two_damaged_copies_are_not_begun_anew_from_defaults(tmp_path: Path) -> None:
    boot, image, _configuration = made(tmp_path)
    boot.mark_good("A")
    for copy in (0, 1):
        damage(image, copy)
    damaged = image.read_bytes()
    with pytest.raises(BootControlError):
        boot.mark_bad("B")
    assert image.read_bytes() == damaged


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> "UBootShell":
    return UBootShell(tmp_path_factory.mktemp("u-boot"))


class UBootShell:
    """A U-Boot under QEMU that runs the script on one environment after the other."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def run(self, cases: Sequence[Mapping[str, str]], *, can_save: bool) -> list[tuple[str, dict[str, str]]]:
        """Return for each environment the slot that was chosen and the variables that were left."""
        files = self._directory / "files"
        files.mkdir(exist_ok=True)
        script = (DEPLOY / "boot.cmd").read_text()
        assert script.count("if saveenv;") == 1
        self._compile(script.replace("if saveenv;", f"if {str(can_save).lower()};"), files / "boot.scr")
        self._compile(_cases(cases), files / "cases.scr")
        disk = self._directory / "disk.img"
        disk.unlink(missing_ok=True)
        make = [need("mkfs.ext4"), "-q", "-t", "ext2", "-d", str(files), str(disk), "4M"]
        subprocess.run(make, check=True, capture_output=True)
        shown = self._console(disk, "virtio scan; load virtio 0 4000000 boot.scr; load virtio 0 5000000 cases.scr; ")
        found = []
        for line in shown.splitlines():
            if line.startswith("CHOSEN|"):
                slot, *values = line.strip().split("|")[1:]
                found.append((slot, dict(zip(("ORDER", "A_OK", "A_TRY", "B_OK", "B_TRY"), values, strict=True))))
        assert len(found) == len(cases), shown[-2000:]
        return found

    def _compile(self, text: str, target: Path) -> None:
        source = self._directory / "source.cmd"
        source.write_text(text)
        argv = [need("mkimage"), "-T", "script", "-C", "none", "-d", str(source), str(target)]
        subprocess.run(argv, check=True, capture_output=True)

    def _console(self, disk: Path, commands: str) -> str:
        rom = need_file(ROM, package="u-boot-qemu")
        argv = [need("qemu-system-x86_64"), "-accel", "tcg", "-m", "256", "-bios", str(rom), "-display", "none",
                "-serial", "stdio", "-monitor", "none", "-net", "none", "-no-reboot",
                "-drive", f"file={disk},format=raw,if=virtio"]  # fmt: skip
        shown = b""
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as machine:
            assert machine.stdin is not None
            assert machine.stdout is not None
            # A machine that hangs ends the test with what it said so far.
            guard = threading.Timer(_PATIENCE_S, machine.kill)
            guard.start()
            try:
                for awaited, answer in (
                    (b"stop autoboot", b"\x03\r"),
                    (b"=> ", f"{commands} source 5000000; echo AT-THE-{'END'}-NOW\r".encode()),
                    (b"\nAT-THE-END-NOW", b""),
                ):
                    begin = len(shown)
                    while awaited not in shown[begin:]:
                        read = os.read(machine.stdout.fileno(), 65536)
                        assert read, shown
                        shown += read
                    machine.stdin.write(answer)
                    machine.stdin.flush()
            finally:
                guard.cancel()
                machine.kill()
        return shown.replace(b"\r", b"").decode(errors="replace")


def _cases(cases: Sequence[Mapping[str, str]]) -> str:
    lines = []
    for case in cases:
        for name in ("ORDER", "A_OK", "A_TRY", "B_OK", "B_TRY"):
            value = case.get(name)
            lines.append(f'setenv {PREFIX}{name} "{value}"' if value is not None else f"setenv {PREFIX}{name}")
        lines.append("source 4000000")
        values = "|".join(f"${{{PREFIX}{name}}}" for name in ("ORDER", "A_OK", "A_TRY", "B_OK", "B_TRY"))
        lines.append(f'echo "CHOSEN|${{overhaul_slot}}|{values}"')
    return "\n".join(lines) + "\n"


def test_uboot_chooses_and_counts_as_the_rules_say_in_every_state(chosen: UBootShell) -> None:
    counters = [("1", "0"), ("1", "2"), ("0", "0"), ("0", "1"), ("0", "3"), ("0", "9")]
    cases = [
        {"ORDER": order, "A_OK": a_ok, "A_TRY": a_try, "B_OK": b_ok, "B_TRY": b_try}
        for order, (a_ok, a_try), (b_ok, b_try) in itertools.product(("A B", "B A"), counters, counters)
    ]
    for case, (slot, left) in zip(cases, chosen.run(cases, can_save=True), strict=True):
        variables = parse_variables(case, SLOTS)
        assert slot == chosen_slot(variables), case
        assert left == {**case, **render_variables(after_boot(variables))}, case


def test_uboot_reads_an_odd_environment_as_the_boot_control_does(chosen: UBootShell) -> None:
    cases = [
        {},
        {"ORDER": "B A"},
        {"ORDER": "B", "A_OK": "0", "B_OK": "0"},
        {"ORDER": "X B A", "B_TRY": "2"},
        {"ORDER": "X", "A_OK": "0"},
        {"ORDER": "B B A", "B_TRY": "12"},
        {"ORDER": "B A", "B_TRY": "x", "A_OK": "yes"},
        {"B_OK": "1", "A_OK": "0"},
    ]
    for case, (slot, left) in zip(cases, chosen.run(cases, can_save=True), strict=True):
        variables = parse_variables(case, SLOTS)
        assert slot == chosen_slot(variables), case
        told = {name: value for name, value in left.items() if value}
        assert parse_variables(told, SLOTS) == after_boot(variables), case


def test_an_attempt_that_cannot_be_counted_is_not_made(chosen: UBootShell) -> None:
    case = {"ORDER": "B A", "A_OK": "1", "B_OK": "0", "B_TRY": "3"}
    assert [slot for slot, _left in chosen.run([case], can_save=False)] == ["A"]
