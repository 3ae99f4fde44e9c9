"""What every boot control keeps, over the file backend, GRUB's environment block, systemd-boot's entries and
U-Boot's environment.

The start of the device between two lives is done by the rules of `install.countdown` and `install.loaderentry` here;
that the real loaders follow the same rules is shown in tests/interop/test_grub.py, tests/interop/test_uboot.py
and tests/guests.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.crash.killing import run_killed_at
from tests.tools import need
from tests.uboot_environment import make_environment, start_with_environment

from overhaul.install.boot import BootControl, BootControlError, SlotStatus
from overhaul.install.countdown import (
    AttemptsError,
    UnknownSlotError,
    after_boot,
    chosen_slot,
    parse_variables,
    render_variables,
)
from overhaul.install.envblock import read_block, write_block
from overhaul.install.fileboot import FileBoot
from overhaul.install.grub import GrubBoot
from overhaul.install.loaderentry import Entry, EntryName, in_loader_order, parse_name, render_entry
from overhaul.install.systemdboot import SystemdBoot
from overhaul.install.uboot import UBoot

SLOTS = ("A", "B")


@dataclass(frozen=True)
class Machine:
    """A boot control and the boot loader that reads it."""

    boot: BootControl
    start: Callable[[], str]
    #: The file that holds the variables, or the directory.
    place: Path

    def stored(self) -> dict[Path, bytes]:
        """Return what the loader has to go by."""
        files = self.place.rglob("*") if self.place.is_dir() else [self.place]
        return {file: file.read_bytes() for file in files if file.is_file()}

    def restore(self, stored: dict[Path, bytes]) -> None:
        """Let the loader go by what was stored."""
        for file in set(self.stored()) - set(stored):
            file.unlink()
        for file, data in stored.items():
            file.write_bytes(data)


def file_machine(directory: Path) -> Machine:
    path = directory / "boot.json"
    boot = FileBoot(path, SLOTS)
    return Machine(boot=boot, start=boot.simulate_boot, place=path)


def grub_machine(directory: Path) -> Machine:
    path = directory / "grubenv"
    subprocess.run([need("grub-editenv"), str(path), "create"], check=True)
    root = directory / "root"
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    boots = 0

    def start() -> str:
        nonlocal boots
        environment = read_block(path.read_bytes())
        variables = parse_variables(environment, SLOTS)
        slot = chosen_slot(variables)
        path.write_bytes(write_block({**environment, **render_variables(after_boot(variables))}))
        boots += 1
        (root / "proc/cmdline").write_text(f"root=/dev/x overhaul.slot={slot} quiet\n")
        (root / "proc/sys/kernel/random/boot_id").write_text(f"boot-{boots}\n")
        return slot

    start()
    return Machine(boot=GrubBoot(path, {name: directory / name for name in SLOTS}, root=root), start=start, place=path)


def systemd_boot_machine(directory: Path) -> Machine:
    root, partition = directory / "root", directory / "esp"
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    for name in SLOTS:
        (directory / name).mkdir()
        (directory / name / "vmlinuz").write_bytes(b"kernel " + name.encode())
    (partition / "loader/entries").mkdir(parents=True)
    (partition / "loader/loader.conf").write_text("timeout 0\ndefault overhaul-*\n")
    (partition / "overhaul/A").mkdir(parents=True)
    shutil.copy(directory / "A/vmlinuz", partition / "overhaul/A/linux")
    first = render_entry("A", version=1, options="ro", has_initrd=False)
    (partition / "loader/entries/overhaul-A.conf").write_bytes(first)
    boot = SystemdBoot(
        partition,
        {name: directory / name for name in SLOTS},
        kernel="/vmlinuz",
        initrd="/initrd.img",
        options="ro",
        root=root,
        look_into=nullcontext,
    )
    boots = 0

    def start() -> str:
        nonlocal boots
        slot = start_with_entries(partition)
        boots += 1
        (root / "proc/cmdline").write_text(f"root=/dev/x overhaul.slot={slot} quiet\n")
        (root / "proc/sys/kernel/random/boot_id").write_text(f"boot-{boots}\n")
        (root / "vmlinuz").write_bytes((directory / slot / "vmlinuz").read_bytes())
        return slot

    start()
    return Machine(boot=boot, start=start, place=partition)


def uboot_machine(directory: Path) -> Machine:
    environment, configuration = directory / "environment.img", directory / "fw_env.config"
    make_environment(environment, configuration, "")
    root = directory / "root"
    (root / "proc/sys/kernel/random").mkdir(parents=True)
    boots = 0

    def start() -> str:
        nonlocal boots
        slot = start_with_environment(configuration)
        boots += 1
        (root / "proc/cmdline").write_text(f"root=/dev/x overhaul.slot={slot} quiet\n")
        (root / "proc/sys/kernel/random/boot_id").write_text(f"boot-{boots}\n")
        return slot

    start()
    boot = UBoot(configuration, {name: directory / name for name in SLOTS}, root=root)
    return Machine(boot=boot, start=start, place=environment)


def start_with_entries(partition: Path) -> str:
    """Choose and count as systemd-boot does, and return the slot whose kernel was started."""
    entries = []
    for file in (partition / "loader/entries").iterdir():
        name = parse_name(file.name)
        if name is not None:
            entries.append(Entry(file=file.name, name=name, text=file.read_bytes()))
    chosen = in_loader_order(entries)[0]
    if chosen.name.left is not None:
        counted = EntryName(slot=chosen.name.slot, left=max(0, chosen.name.left - 1), done=chosen.name.done + 1)
        target = partition / "loader/entries" / str(counted)
        # What it cannot rename it boots uncounted, so no other entry may stand in the way.
        assert not target.exists()
        (partition / "loader/entries" / chosen.file).rename(target)
    kernel = (partition / f"overhaul/{chosen.name.slot}/linux").read_bytes()
    assert kernel == b"kernel " + chosen.name.slot.encode()
    return chosen.name.slot


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Let nobody write to what lies in `directory`, root neither."""
    subprocess.run([need("mount"), "--bind", directory, directory], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


@pytest.fixture(params=[file_machine, grub_machine, systemd_boot_machine, uboot_machine])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    made: Machine = request.param(tmp_path)
    return made


def test_a_new_device_runs_its_first_slot_and_the_other_is_bad(machine: Machine) -> None:
    assert machine.start() == "A"
    assert machine.boot.booted() == machine.boot.primary() == "A"
    assert machine.boot.state("A").status is SlotStatus.GOOD
    assert machine.boot.state("B").status is SlotStatus.BAD


def test_every_start_has_an_id_of_its_own(machine: Machine) -> None:
    first = machine.boot.boot_id()
    assert machine.boot.boot_id() == first
    machine.start()
    assert machine.boot.boot_id() != first


def test_a_trial_boots_as_often_as_it_may_and_then_the_old_slot_boots(machine: Machine) -> None:
    machine.boot.try_next("B", attempts=3)
    assert machine.boot.state("B").attempts_left == 3
    assert machine.boot.primary() == "B"
    assert machine.boot.booted() == "A"
    assert [machine.start() for _ in range(6)] == ["B", "B", "B", "A", "A", "A"]
    assert machine.boot.state("B").status is SlotStatus.BAD


def test_a_confirmed_slot_boots_for_ever_and_the_old_one_stays_good(machine: Machine) -> None:
    machine.boot.try_next("B", attempts=1)
    machine.start()
    machine.boot.mark_good("B")
    assert [machine.start() for _ in range(12)] == ["B"] * 12
    assert machine.boot.state("A").status is SlotStatus.GOOD


def test_a_bad_slot_is_never_booted(machine: Machine) -> None:
    machine.boot.try_next("B", attempts=3)
    machine.boot.mark_bad("B")
    assert machine.start() == "A"
    assert machine.boot.state("B").status is SlotStatus.BAD


def test_marking_the_running_trial_bad_brings_the_old_slot_back(machine: Machine) -> None:
    machine.boot.try_next("B", attempts=3)
    machine.start()
    machine.boot.mark_bad("B")
    assert machine.boot.primary() == "A"
    assert machine.start() == "A"


def test_with_no_good_slot_left_something_is_booted_all_the_same(machine: Machine) -> None:
    machine.boot.mark_bad("A")
    machine.boot.mark_bad("B")
    assert machine.start() in SLOTS


def test_calls_may_be_made_twice(machine: Machine) -> None:
    for _ in range(2):
        machine.boot.try_next("B", attempts=2)
    assert machine.start() == "B"
    for _ in range(2):
        machine.boot.mark_good("B")
    assert machine.start() == "B"
    for _ in range(2):
        machine.boot.mark_bad("A")
    assert machine.start() == "B"


def test_asking_whether_an_update_could_be_told_changes_nothing(machine: Machine) -> None:
    for status in (None, SlotStatus.TRIAL, SlotStatus.BAD):
        if status is SlotStatus.TRIAL:
            machine.boot.try_next("B", attempts=3)
        elif status is SlotStatus.BAD:
            machine.boot.mark_bad("B")
        stored = machine.stored()
        machine.boot.require_ready("B")
        assert machine.stored() == stored
    with pytest.raises(UnknownSlotError, match=r"'C'.*A, B"):
        machine.boot.require_ready("C")


def test_variables_that_cannot_be_written_are_refused_beforehand(machine: Machine) -> None:
    directory = machine.place if machine.place.is_dir() else machine.place.parent
    with read_only(directory), pytest.raises(BootControlError, match="Read-only file system"):
        machine.boot.require_ready("B")
    machine.boot.require_ready("B")


@pytest.mark.parametrize("attempts", [0, -1, 10])
def test_attempts_that_cannot_be_counted_are_refused(machine: Machine, attempts: int) -> None:
    with pytest.raises(AttemptsError):
        machine.boot.try_next("B", attempts=attempts)
    assert machine.boot.state("B").status is SlotStatus.BAD


def test_an_unknown_slot_is_refused_by_name(machine: Machine) -> None:
    for call in (machine.boot.mark_bad, machine.boot.mark_good, machine.boot.state):
        with pytest.raises(UnknownSlotError, match=r"'C'.*A, B"):
            call("C")


@pytest.mark.parametrize("kept_bytes", [0, 1, 20, 60])
@pytest.mark.parametrize("machine", [file_machine, grub_machine], indirect=True)
def test_a_truncated_store_is_an_error_that_names_it(machine: Machine, kept_bytes: int) -> None:
    machine.boot.try_next("B", attempts=3)
    machine.place.write_bytes(machine.place.read_bytes()[:kept_bytes])
    with pytest.raises(BootControlError, match=str(machine.place)):
        machine.boot.primary()


#: What U-Boot's tools do is killed in tests/crash/test_power_cuts.py.
@pytest.mark.parametrize("machine", [file_machine, grub_machine, systemd_boot_machine], indirect=True)
@pytest.mark.parametrize(
    ("is_tried", "change", "before", "after"),
    [
        pytest.param(True, lambda boot: boot.mark_bad("B"), ["B", "B", "B", "A"], ["A"] * 4, id="mark_bad"),
        pytest.param(
            False, lambda boot: boot.try_next("B", attempts=2), ["A"] * 4, ["B", "B", "A", "A"], id="try_next"
        ),
        pytest.param(True, lambda boot: boot.mark_good("B"), ["B", "B", "B", "A"], ["B"] * 4, id="mark_good"),
    ],
)
def test_a_change_killed_anywhere_is_made_wholly_or_not_at_all(
    machine: Machine, is_tried: bool, change: Callable[[BootControl], None], before: list[str], after: list[str]
) -> None:
    if is_tried:
        machine.boot.try_next("B", attempts=3)
    stored = machine.stored()
    point = 0
    outcomes = []
    while True:
        machine.restore(stored)
        passed = run_killed_at(lambda: change(machine.boot), point)
        started = [machine.start() for _ in range(4)]
        if passed is not None:
            assert started == after
            break
        assert started in (before, after)
        outcomes.append(started == after)
        point += 1
    assert passed == point >= 2
    # Once durable it stays: the change does not come and go from one crash point to the next.
    assert outcomes == sorted(outcomes)
