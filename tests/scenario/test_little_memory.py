"""A device with little memory is updated all the same, by a way that takes less."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fleet import RealDevice, RealRepository, release_id
from tests.loopback import LoopbackServer, serving

from overhaul.agent.outcomes import Updated
from overhaul.agent.updating import NotEnoughMemoryError, update
from overhaul.progress import Silence
from overhaul.repository.packs import restore_image


@pytest.fixture(scope="module")
def server() -> Iterator[LoopbackServer]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def factory_device(tmp_path_factory: pytest.TempPathFactory, server: LoopbackServer) -> RealDevice:
    """A device on 1.0, where 2.0 is out and the delta to it is much smaller than its new chunks."""
    place = tmp_path_factory.mktemp("world")
    repository = RealRepository(place / "repository")
    server.root = repository.public
    tree = place / "tree"
    tree.mkdir()
    content = random.Random("content").randbytes(600_000)
    for version in ("1.0", "2.0"):
        (tree / "file").write_bytes(content.replace(content[:1], version[:1].encode()))
        repository.publish(tree, version)
    image = place / "1.0.ext4"
    records = repository.opened.published().releases
    restore_image(repository.opened.storage, records[release_id("1.0").target_path].image, image, progress=Silence())
    return RealDevice.make(
        place / "device", url=server.url, root=repository.root, image=image, version="1.0", slot_size=16 << 20
    )


@pytest.mark.parametrize(("available_kib", "way"), [(200_000, "delta"), (40_000, "chunks")])
def test_the_way_is_one_that_there_is_memory_for(
    factory_device: RealDevice, tmp_path: Path, available_kib: int, way: str
) -> None:
    device = _with_memory(factory_device.copy(tmp_path / "device"), available_kib)

    done = update(device.device, progress=Silence())

    assert isinstance(done, Updated)
    assert done.way == way


def test_where_no_way_has_enough_nothing_is_begun(factory_device: RealDevice, tmp_path: Path) -> None:
    device = _with_memory(factory_device.copy(tmp_path / "device"), 10_000)

    with pytest.raises(NotEnoughMemoryError):
        update(device.device, progress=Silence())
    assert device.device.states.load().target is None


def _with_memory(device: RealDevice, available_kib: int) -> RealDevice:
    root = device.directory / "root"
    (root / "proc").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemAvailable: {available_kib} kB\n")
    text = device.configuration.read_text()
    device.configuration.write_text(f'facts_root = "root"\n{text}')
    return device
