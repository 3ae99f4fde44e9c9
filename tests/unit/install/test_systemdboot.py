"""systemd-boot's backend on a directory that stands for the boot partition; tests/guests has the real one on VFAT."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.crash.killing import run_killed_at
from tests.small_disk import small_disk

from overhaul.install.boot import BootControl, BootControlError, SlotStatus
from overhaul.install.loaderentry import Entry, in_loader_order, inert, parse_name, render_entry
from overhaul.install.opening import open_boot
from overhaul.install.settings import parse_settings
from overhaul.install.systemdboot import SystemdBoot

OPTIONS = "root=PARTLABEL=root-{slot} ro"


@dataclass(frozen=True)
class Partition:
    """A boot partition with slot A confirmed, and two slots that are directories."""

    directory: Path

    @property
    def esp(self) -> Path:
        return self.directory / "esp"

    @property
    def boot(self) -> SystemdBoot:
        return SystemdBoot(
            self.esp,
            {name: self.directory / name for name in "AB"},
            kernel="/vmlinuz",
            initrd="/initrd.img",
            options=OPTIONS,
            root=self.directory / "running",
            look_into=nullcontext,
        )

    def entries(self) -> list[Entry]:
        found = []
        for file in sorted((self.esp / "loader/entries").iterdir()):
            name = parse_name(file.name)
            if name is not None:
                found.append(Entry(file=file.name, name=name, text=file.read_bytes()))
        return found

    def fill(self, slot: str, release: str, *, has_initrd: bool = True) -> None:
        (self.directory / slot / "vmlinuz").write_text(f"kernel {release}" * 1000)
        (self.directory / slot / "initrd.img").unlink(missing_ok=True)
        if has_initrd:
            (self.directory / slot / "initrd.img").write_text(f"initrd {release}" * 3000)

    def put(self, file: str, text: bytes) -> None:
        (self.esp / "loader/entries" / file).write_bytes(text)

    def stored(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.esp.rglob("*") if path.is_file()}

    def restore(self, stored: dict[Path, bytes]) -> None:
        for path in set(self.stored()) - set(stored):
            path.unlink()
        for path, data in stored.items():
            path.write_bytes(data)


@pytest.fixture
def partition(tmp_path: Path) -> Partition:
    made = Partition(tmp_path)
    for name in ("A", "B", "running/proc/sys/kernel/random", "esp/loader/entries", "esp/overhaul/A"):
        (tmp_path / name).mkdir(parents=True)
    made.fill("A", "1.0")
    made.fill("B", "2.0")
    (tmp_path / "running/proc/cmdline").write_text("overhaul.slot=A\n")
    (made.esp / "loader/loader.conf").write_text("# ours\ntimeout 0\ndefault  overhaul-*\n")
    (made.esp / "overhaul/A/linux").write_bytes((tmp_path / "A/vmlinuz").read_bytes())
    (made.esp / "overhaul/A/initrd").write_bytes((tmp_path / "A/initrd.img").read_bytes())
    made.put("overhaul-A.conf", render_entry("A", version=1, options=OPTIONS, has_initrd=True))
    made.put("debian.conf", b"linux /vmlinuz\n")
    return made


def test_a_trial_brings_the_kernel_the_initrd_and_one_counted_entry(partition: Partition) -> None:
    partition.boot.try_next("B", attempts=3)
    for name, source in {"linux": "vmlinuz", "initrd": "initrd.img"}.items():
        assert (partition.esp / "overhaul/B" / name).read_bytes() == (partition.directory / "B" / source).read_bytes()
    text = (partition.esp / "loader/entries/overhaul-B+3.conf").read_bytes()
    assert text == render_entry("B", version=2, options=OPTIONS, has_initrd=True)
    assert sorted(file.name for file in (partition.esp / "loader/entries").iterdir()) == [
        "debian.conf", "overhaul-A.conf", "overhaul-B+3.conf",
    ]  # fmt: skip


def test_confirming_gives_the_entry_without_counter_the_text_that_was_tried(partition: Partition) -> None:
    partition.boot.try_next("B", attempts=3)
    entries = partition.esp / "loader/entries"
    (entries / "overhaul-B+3.conf").rename(entries / "overhaul-B+2-1.conf")
    tried = (entries / "overhaul-B+2-1.conf").read_bytes()
    partition.boot.mark_good("B")
    assert (entries / "overhaul-B.conf").read_bytes() == tried
    assert not (entries / "overhaul-B+2-1.conf").exists()


def test_what_bless_boot_leaves_is_understood(partition: Partition) -> None:
    text = render_entry("B", version=2, options=OPTIONS, has_initrd=True)
    partition.put("overhaul-B.conf", text)
    assert partition.boot.state("B").status is SlotStatus.GOOD
    assert partition.boot.primary() == "B"
    (partition.esp / "loader/entries/overhaul-B.conf").unlink()
    partition.put("overhaul-B+0-3.conf", text)
    assert partition.boot.state("B").status is SlotStatus.BAD
    assert partition.boot.primary() == "A"


@pytest.mark.parametrize(
    "change",
    [
        lambda boot: boot.mark_bad("B"),
        lambda boot: boot.try_next("B", attempts=3),
        lambda boot: boot.mark_good("B"),
    ],
    ids=["mark_bad", "try_next", "mark_good"],
)
def test_the_files_of_the_other_slot_and_of_others_are_never_touched(
    partition: Partition, change: Callable[[BootControl], None]
) -> None:
    def of_others() -> dict[Path, tuple[bytes, int]]:
        return {path: (data, path.stat().st_mtime_ns) for path, data in partition.stored().items() if "B" not in str(
            path.relative_to(partition.esp))}  # fmt: skip

    before = of_others()
    change(partition.boot)
    assert of_others() == before


def test_an_older_kernel_in_the_way_is_written_over_only_while_nothing_starts_it(partition: Partition) -> None:
    """Killed anywhere, what the loader would start is whole and of one release."""
    partition.boot.try_next("B", attempts=3)
    partition.boot.mark_good("B")
    partition.fill("B", "3.0 is longer", has_initrd=False)
    stored = partition.stored()
    outcomes = set()
    for point in range(1000):
        partition.restore(stored)
        passed = run_killed_at(lambda: partition.boot.try_next("B", attempts=2), point)
        live = in_loader_order(partition.entries())
        assert any(entry.name.slot == "A" and entry.name.left is None for entry in live)
        started = live[0].name.slot
        if started == "B":
            kernel = (partition.esp / "overhaul/B/linux").read_text()
            assert kernel in {"kernel 2.0" * 1000, "kernel 3.0 is longer" * 1000}
            assert (b"initrd" in live[0].text) == kernel.startswith("kernel 2.0")
        outcomes.add((started, live[0].name.left))
        # And it can be done again.
        partition.boot.try_next("B", attempts=2)
        assert [entry.file for entry in partition.entries()] == ["overhaul-A.conf", "overhaul-B+2.conf"]
        assert not (partition.esp / "overhaul/B/initrd").exists()
        if passed is not None:
            break
    assert outcomes == {("B", None), ("A", None), ("B", 2)}


def test_what_a_power_cut_left_of_an_entry_neither_counts_nor_stands_in_the_way(partition: Partition) -> None:
    text = render_entry("B", version=9, options=OPTIONS, has_initrd=True)
    partition.put("overhaul-B+2-1.conf", b"")
    partition.put("overhaul-B+3.conf", inert(text))
    partition.put("overhaul-B.conf", bytes(600))
    assert partition.boot.state("B").status is SlotStatus.BAD
    partition.boot.try_next("B", attempts=3)
    assert [entry.file for entry in partition.entries()] == ["overhaul-A.conf", "overhaul-B+3.conf"]
    assert partition.boot.state("B").attempts_left == 3


def test_going_back_to_the_other_good_slot_copies_nothing(partition: Partition) -> None:
    partition.boot.try_next("B", attempts=3)
    partition.boot.mark_good("B")
    (partition.directory / "running/proc/cmdline").write_text("overhaul.slot=B\n")
    before = (partition.esp / "overhaul/A/linux").stat()
    partition.boot.try_next("A", attempts=3)
    after = (partition.esp / "overhaul/A/linux").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert partition.boot.primary() == "A"
    assert partition.boot.state("A").status is SlotStatus.TRIAL
    assert partition.boot.state("B").status is SlotStatus.GOOD


def test_what_is_told_a_second_time_is_never_taken_back_on_the_way(partition: Partition) -> None:
    """A killed agent tells the loader again; the good entry that the trial took the place of is gone by then."""
    partition.boot.try_next("B", attempts=3)
    stored = partition.stored()
    for point in range(100):
        partition.restore(stored)
        passed = run_killed_at(lambda: partition.boot.try_next("B", attempts=3), point)
        assert partition.stored() == stored
        if passed is not None:
            break
    assert passed


def test_the_running_slot_is_read_where_it_runs(partition: Partition) -> None:
    """A device that gets this boot loader confirms what runs, and its slot cannot be mounted a second time."""
    (partition.esp / "loader/entries/overhaul-A.conf").unlink()
    (partition.directory / "running/vmlinuz").write_bytes(b"as it runs")
    partition.boot.mark_good("A")
    assert (partition.esp / "overhaul/A/linux").read_bytes() == b"as it runs"
    assert partition.boot.state("A").status is SlotStatus.GOOD


@pytest.mark.parametrize("configuration", ["", "default overhaul-B.conf\n", "default @saved\n", "timeout 0\n"])
def test_a_loader_that_goes_by_something_else_is_not_relied_on(partition: Partition, configuration: str) -> None:
    (partition.esp / "loader/loader.conf").write_text(configuration)
    with pytest.raises(BootControlError, match=r"default overhaul-\*"):
        partition.boot.require_ready("B")
    with pytest.raises(BootControlError, match=r"default overhaul-\*"):
        partition.boot.try_next("B", attempts=3)
    assert partition.boot.state("B").status is SlotStatus.BAD


@pytest.mark.parametrize(("value", "is_refused"), [("overhaul-a.conf\0", True), ("\0", False), ("", False)])
def test_a_default_in_the_firmware_is_named_with_its_cure(partition: Partition, value: str, is_refused: bool) -> None:
    variables = partition.directory / "running/sys/firmware/efi/efivars"
    variables.mkdir(parents=True)
    name = "LoaderEntryDefault-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    (variables / name).write_bytes(b"\7\0\0\0" + value.encode("utf-16-le"))
    if is_refused:
        with pytest.raises(BootControlError, match=r'bootctl set-default ""'):
            partition.boot.try_next("B", attempts=3)
    else:
        partition.boot.try_next("B", attempts=3)
        assert partition.boot.primary() == "B"


def test_a_partition_that_is_not_mounted_is_an_error_that_asks_for_it(partition: Partition) -> None:
    partition.esp.rename(partition.directory / "unmounted")
    boot = partition.boot
    for call in (boot.primary, lambda: boot.require_ready("B"), lambda: boot.try_next("B", attempts=3)):
        with pytest.raises(BootControlError, match="mounted there"):
            call()


@pytest.mark.parametrize(("more_bytes", "is_refused"), [(0, False), (64 << 10, False), (256 << 10, True)])
def test_a_partition_without_room_for_such_a_kernel_as_runs_is_refused_beforehand(
    partition: Partition, more_bytes: int, is_refused: bool
) -> None:
    """What lies there of the slot itself is written over, so that room counts; the partition has 1 MiB."""
    kept = partition.stored()
    with small_disk(partition.esp, "1m"):
        for path, data in kept.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (partition.esp / "overhaul/A/linux").write_bytes(bytes(400 << 10))
        (partition.esp / "overhaul/B").mkdir(exist_ok=True)
        (partition.esp / "overhaul/B/linux").write_bytes(bytes(100 << 10))
        (partition.esp / "more").write_bytes(bytes(more_bytes))
        if is_refused:
            with pytest.raises(BootControlError, match=r"room for \d+ bytes of kernel and initrd of slot B"):
                partition.boot.require_ready("B")
        else:
            partition.boot.require_ready("B")


def test_a_slot_without_the_named_kernel_is_refused_and_stays_bad(partition: Partition) -> None:
    (partition.directory / "B/vmlinuz").unlink()
    with pytest.raises(BootControlError, match=r"slot B has no kernel /vmlinuz"):
        partition.boot.try_next("B", attempts=3)
    assert partition.boot.state("B").status is SlotStatus.BAD


def test_a_slot_that_cannot_be_mounted_is_an_error_of_the_device(tmp_path: Path, partition: Partition) -> None:
    (tmp_path / "noise").write_bytes(b"noise" * 4096)
    boot = SystemdBoot(
        partition.esp,
        {"A": tmp_path / "A", "B": tmp_path / "noise"},
        kernel="/vmlinuz",
        initrd="/initrd.img",
        options=OPTIONS,
        root=tmp_path / "running",
    )
    with pytest.raises(BootControlError, match="cannot be looked into: mount ended"):
        boot.try_next("B", attempts=3)
    assert boot.primary() == "A"


def test_slots_that_vfat_cannot_tell_apart_are_refused(partition: Partition) -> None:
    boot = SystemdBoot(
        partition.esp, {"A": Path("x"), "a": Path("y")}, kernel="/k", initrd="/i", options="", look_into=nullcontext
    )
    with pytest.raises(BootControlError, match="upper and lower"):
        boot.try_next("a", attempts=3)


def test_the_configuration_opens_it() -> None:
    text = b"""
product = "p"
variant = "v"
arch = "amd64"
[repository]
urls = ["https://updates.example.com"]
[slots]
A = "/dev/a"
B = "/dev/b"
[boot]
backend = "systemd-boot"
file = "/boot"
"""
    assert isinstance(open_boot(parse_settings(text, Path("/etc/overhaul/device.toml"))), SystemdBoot)
