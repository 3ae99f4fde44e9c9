"""Slots: their size, whether they are in use, and which one an update takes."""

from pathlib import Path

import pytest

from overhaul.install.fileboot import FileBoot
from overhaul.install.slots import (
    NoIdleSlotError,
    Slot,
    SlotMountedError,
    SlotUnusableError,
    idle_slot,
    refuse_mounted,
    slot_size,
)
from overhaul.install.state import DeviceState, Phase, SlotContent, Target
from overhaul.release.record import ReleaseId

CONTENT = SlotContent(release=ReleaseId(product="weather", variant="lite", arch="amd64", version="2.0", build_id="b2"))


def test_the_size_of_a_file_slot_is_its_length(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    path.write_bytes(b"x" * 5000)
    assert slot_size(Slot(name="A", path=path)) == 5000


def test_a_slot_that_is_missing_or_no_device_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path, Path("/dev/null")):
        with pytest.raises(SlotUnusableError, match="Slot A"):
            slot_size(Slot(name="A", path=path))


def test_a_mounted_slot_is_refused_also_under_another_name(tmp_path: Path) -> None:
    device = tmp_path / "sda2"
    device.write_bytes(b"")
    (tmp_path / "by-label").symlink_to(device)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"proc /proc proc rw 0 0\n{device} /mnt/b ext4 rw 0 0\n")
    with pytest.raises(SlotMountedError, match="/mnt/b"):
        refuse_mounted(Slot(name="B", path=tmp_path / "by-label"), mounts=mounts)
    refuse_mounted(Slot(name="A", path=tmp_path / "sda1"), mounts=mounts)


def test_a_file_slot_that_is_mounted_through_a_loop_device_is_refused(tmp_path: Path) -> None:
    slot, elsewhere = tmp_path / "slot.img", tmp_path / "mounted"
    slot.write_bytes(b"")
    elsewhere.mkdir()
    backing = tmp_path / "block/loop5/loop/backing_file"
    backing.parent.mkdir(parents=True)
    backing.write_text(f"{slot}\n")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/loop5 {elsewhere} ext4 ro 0 0\n")
    with pytest.raises(SlotMountedError, match="mounted at"):
        refuse_mounted(Slot(name="B", path=slot), mounts=mounts, devices=tmp_path / "block")
    backing.write_text(f"{slot}.other\n")
    refuse_mounted(Slot(name="B", path=slot), mounts=mounts, devices=tmp_path / "block")


@pytest.mark.parametrize("booted", ["A", "B"])
def test_the_running_slot_is_never_the_idle_one(tmp_path: Path, booted: str) -> None:
    slots = {name: Slot(name=name, path=tmp_path / name) for name in "AB"}
    boot = FileBoot(tmp_path / "boot.json", "AB")
    boot.mark_good(booted)
    boot.simulate_boot()
    assert idle_slot(slots, boot, DeviceState(rollout_id="0" * 32)).name != booted


def test_with_three_slots_a_bad_one_is_taken_before_a_good_one_and_an_interrupted_one_first(tmp_path: Path) -> None:
    slots = {name: Slot(name=name, path=tmp_path / name) for name in "ABC"}
    boot = FileBoot(tmp_path / "boot.json", "ABC")
    boot.mark_good("B")
    boot.mark_good("A")
    boot.simulate_boot()
    state = DeviceState(rollout_id="0" * 32)
    assert idle_slot(slots, boot, state).name == "C"
    target = Target(slot="B", content=CONTENT, fallback="A")
    interrupted = DeviceState(rollout_id="0" * 32, phase=Phase.INSTALLING, target=target)
    assert idle_slot(slots, boot, interrupted).name == "B"


def test_one_slot_alone_cannot_be_updated(tmp_path: Path) -> None:
    boot = FileBoot(tmp_path / "boot.json", "A")
    with pytest.raises(NoIdleSlotError):
        idle_slot({"A": Slot(name="A", path=tmp_path / "A")}, boot, DeviceState(rollout_id="0" * 32))
