"""Slots as files and as block devices."""

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.small_disk import small_disk
from tests.tools import need

from overhaul.content.target import (
    ImageReader,
    SlotTarget,
    SlotTooSmallError,
    SlotUnusableError,
    is_same_file,
)

_SIZE = 4 * 1024 * 1024

MakeSlot = Callable[[bytes], Path]


@contextmanager
def _loop_device(backing: Path) -> Iterator[Path]:
    losetup = need("losetup")
    answer = subprocess.run([losetup, "-f", "--show", backing], check=True, capture_output=True, text=True)
    device = Path(answer.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run([losetup, "-d", device], check=True)


@pytest.fixture(params=["file", "device"])
def make_slot(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeSlot]:
    with ExitStack() as stack:

        def make(content: bytes) -> Path:
            path = tmp_path / "slot"
            path.write_bytes(content)
            return stack.enter_context(_loop_device(path)) if request.param == "device" else path

        yield make


def test_what_is_written_is_read_back_from_the_medium(make_slot: MakeSlot) -> None:
    path = make_slot(bytes(_SIZE))
    data = os.urandom(10_000)
    with SlotTarget(path, image_size=_SIZE) as slot:
        slot.write(12_345, data)
        slot.sync()
        assert slot.bytes_written == 10_000
        with slot.medium_reader() as reader, mmap.mmap(-1, _SIZE) as buffer:
            with memoryview(buffer) as view:
                assert reader.read_into(view, 0) == _SIZE
            assert buffer[:] == bytes(12_345) + data + bytes(_SIZE - 22_345)


@pytest.mark.parametrize(("offset", "size"), [(0, _SIZE), (5000, 3_000_001), (4096, 8192), (100, 50)])
def test_a_zeroed_range_is_zero_and_nothing_else(make_slot: MakeSlot, offset: int, size: int) -> None:
    content = os.urandom(_SIZE)
    path = make_slot(content)
    with SlotTarget(path, image_size=_SIZE) as slot:
        slot.zero(offset, size)
        slot.sync()
    assert path.read_bytes() == content[:offset] + bytes(size) + content[offset + size :]


def test_zeros_that_are_there_are_not_written(make_slot: MakeSlot) -> None:
    path = make_slot(bytes(_SIZE))
    with SlotTarget(path, image_size=_SIZE) as slot:
        slot.zero(0, _SIZE)
        assert slot.bytes_written == 0


def test_zeros_in_a_file_become_holes(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    path.write_bytes(os.urandom(_SIZE))
    with SlotTarget(path, image_size=_SIZE) as slot:
        slot.zero(1_000_000, 2_000_000)
        slot.sync()
        runs = list(slot.data_runs(0, _SIZE))
    assert path.stat().st_blocks * 512 <= _SIZE - 1_900_000
    assert len(runs) == 2


def test_copies_come_from_files_and_devices_alike(make_slot: MakeSlot, tmp_path: Path) -> None:
    path = make_slot(bytes(_SIZE))
    source = tmp_path / "source"
    source.write_bytes(os.urandom(3_000_000))
    with SlotTarget(path, image_size=_SIZE) as slot, ImageReader(source) as reader:
        slot.copy_from(reader, 100_000, 4096, 2_000_000)
        # Behind the end of the source there are zeros.
        slot.copy_from(reader, 2_999_000, 3_000_000, 2000)
        slot.sync()
        assert slot.bytes_written == 2_002_000
    written = path.read_bytes()
    assert written[4096:2_004_096] == source.read_bytes()[100_000:2_100_000]
    assert written[3_000_000:3_002_000] == source.read_bytes()[2_999_000:] + bytes(1000)


def test_nothing_is_written_outside_the_image(make_slot: MakeSlot) -> None:
    path = make_slot(bytes(_SIZE))
    with SlotTarget(path, image_size=_SIZE - 4096) as slot, ImageReader(path) as reader:
        for offset in (-1, _SIZE - 4096 - 10):
            with pytest.raises(ValueError, match="not inside"):
                slot.write(offset, b"x" * 20)
            with pytest.raises(ValueError, match="not inside"):
                slot.copy_from(reader, 0, offset, 20)
            with pytest.raises(ValueError, match="not inside"):
                slot.zero(offset, 20)


def test_a_slot_too_small_is_refused_untouched(make_slot: MakeSlot) -> None:
    path = make_slot(b"x" * _SIZE)
    with pytest.raises(SlotTooSmallError) as caught:
        SlotTarget(path, image_size=_SIZE + 1)
    assert (caught.value.size_bytes, caught.value.image_bytes) == (_SIZE, _SIZE + 1)
    assert path.read_bytes() == b"x" * _SIZE


def test_an_empty_file_takes_the_size_of_the_image(tmp_path: Path) -> None:
    path = tmp_path / "slot"
    path.touch()
    with SlotTarget(path, image_size=_SIZE) as slot:
        assert list(slot.data_runs(0, _SIZE)) == []
    assert path.stat().st_size == _SIZE


def test_a_mounted_device_is_refused(tmp_path: Path) -> None:
    backing = tmp_path / "disk"
    with backing.open("wb") as stream:
        stream.truncate(8 * 1024 * 1024)
    subprocess.run([need("mkfs.ext4"), "-q", backing], check=True)
    with _loop_device(backing) as device:
        (tmp_path / "mnt").mkdir()
        subprocess.run([need("mount"), device, tmp_path / "mnt"], check=True)
        try:
            with pytest.raises(SlotUnusableError, match="busy"):
                SlotTarget(device, image_size=4096)
        finally:
            subprocess.run([need("umount"), tmp_path / "mnt"], check=True)


@pytest.mark.parametrize("kind", ["missing", "directory", "pipe"])
def test_what_is_no_slot_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "slot"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(SlotUnusableError) as caught:
        SlotTarget(path, image_size=4096)
    assert caught.value.path == path


def test_a_failing_medium_is_the_owners_business() -> None:
    # The device that is always full.
    with pytest.raises(SlotUnusableError, match="neither a block device nor a regular file"):
        SlotTarget(Path("/dev/full"), image_size=4096)


def test_a_full_file_system_is_said_with_the_name_of_the_slot(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as small:
        path = small / "slot"
        path.touch()
        with (
            SlotTarget(path, image_size=1_000_000) as slot,
            pytest.raises(SlotUnusableError, match="No space left") as caught,
        ):
            slot.write(0, bytes(1_000_000))
        assert caught.value.path == path


def test_reading_beyond_the_end_gives_zeros(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"abc")
    with ImageReader(path) as reader:
        assert reader.read(1, 5) == b"bc\0\0\0"
        assert reader.read_into(memoryview(bytearray(5)), 1) == 2


def test_unreadable_places_come_as_zeros_and_the_rest_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    content = os.urandom(20_000)
    path.write_bytes(content)
    real = os.pread

    def failing(descriptor: int, size: int, offset: int) -> bytes:
        if offset < 9000 < offset + size:
            raise OSError(5, "Input/output error")
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", failing)
    with ImageReader(path) as reader:
        assert reader.read(0, 20_000) == content[:8192] + bytes(4096) + content[12_288:]


def test_one_file_by_two_names_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 4096)
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "three").write_bytes(b"x")
    assert is_same_file(tmp_path / "one", tmp_path / "two")
    assert not is_same_file(tmp_path / "one", tmp_path / "three")
    with _loop_device(tmp_path / "one") as device:
        (tmp_path / "four").symlink_to(device)
        assert is_same_file(device, tmp_path / "four")
