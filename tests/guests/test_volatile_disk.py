"""The disk that stands in for one with a write cache: what it keeps, and what a power cut takes."""

import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.guests.volatile_disk import SECTOR, VolatileDisk

SECTORS = 64


class Client:
    """The few requests of NBD that QEMU makes."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = connection.makefile("rb")
        assert self._reader.read(18)[:8] == b"NBDMAGIC"
        # No zeroes; the default export by the option that is as old as the protocol.
        connection.sendall(struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 1, 0))
        self.size, self.flags = struct.unpack(">QH", self._reader.read(10))

    def ask(self, kind: int, *, offset: int = 0, size: int = 0, data: bytes = b"", flags: int = 0) -> bytes:
        """Make one request and return what was read."""
        self._connection.sendall(struct.pack(">IHHQQI", 0x25609513, flags, kind, 7, offset, size or len(data)) + data)
        magic, error, handle = struct.unpack(">IIQ", self._reader.read(16))
        assert (magic, error, handle) == (0x67446698, 0, 7)
        return self._reader.read(size) if kind == 0 else b""


@contextmanager
def connected(disk: VolatileDisk) -> Iterator[Client]:
    """Be the machine until the block ends; the power goes away then."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(disk.address.partition("=")[2])
        client = Client(connection)
        with client._reader:
            yield client


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[VolatileDisk]:
    (tmp_path / "disk").write_bytes(bytes(SECTORS * SECTOR))
    with VolatileDisk(tmp_path / "disk") as made:
        yield made


def sectors(text: bytes) -> list[bytes]:
    return [text[place : place + SECTOR] for place in range(0, len(text), SECTOR)]


def test_what_was_written_is_read_back_before_it_is_on_the_medium(disk: VolatileDisk, tmp_path: Path) -> None:
    with connected(disk) as client:
        assert client.size == SECTORS * SECTOR
        client.ask(1, offset=SECTOR, data=b"x" * 2 * SECTOR)
        assert client.ask(0, offset=0, size=4 * SECTOR) == bytes(SECTOR) + b"x" * 2 * SECTOR + bytes(SECTOR)
        assert not any((tmp_path / "disk").read_bytes())


@pytest.mark.parametrize("is_flushed", [True, False])
def test_what_was_flushed_or_forced_survives_every_power_cut(
    disk: VolatileDisk, tmp_path: Path, is_flushed: bool
) -> None:
    with connected(disk) as client:
        client.ask(1, data=b"x" * 8 * SECTOR, flags=0 if is_flushed else 1)
        if is_flushed:
            client.ask(3)
    assert disk.cut(random.Random(1)) == (0, 0)
    assert (tmp_path / "disk").read_bytes()[: 8 * SECTOR] == b"x" * 8 * SECTOR


def test_a_power_cut_keeps_whole_sectors_of_the_rest_in_any_selection(disk: VolatileDisk, tmp_path: Path) -> None:
    shares = set()
    for seed in range(12):
        with connected(disk) as client:
            client.ask(1, data=bytes([seed + 1]) * SECTORS * SECTOR)
        before = sectors((tmp_path / "disk").read_bytes())
        kept, lost = disk.cut(random.Random(seed))
        assert kept + lost == SECTORS
        after = sectors((tmp_path / "disk").read_bytes())
        assert sum(new == bytes([seed + 1]) * SECTOR for new in after) == kept
        assert all(new in {old, bytes([seed + 1]) * SECTOR} for old, new in zip(before, after, strict=True))
        shares.add(kept)
    assert len(shares) > 4


def test_a_machine_that_is_switched_off_in_order_loses_nothing(disk: VolatileDisk, tmp_path: Path) -> None:
    with connected(disk) as client:
        client.ask(1, data=b"x" * SECTOR)
    disk.settle()
    assert (tmp_path / "disk").read_bytes()[:SECTOR] == b"x" * SECTOR
