"""A device with several mirrors is updated as long as one of them has what was signed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fleet import RealDevice, RealRepository, small_image
from tests.loopback import LoopbackServer, serving

from overhaul.agent.outcomes import Updated
from overhaul.agent.updating import update
from overhaul.errors import TrustError
from overhaul.progress import Silence


class Site:
    """A repository with two mirrors, and a device that prefers the first."""

    def __init__(self, directory: Path, first: LoopbackServer, second: LoopbackServer) -> None:
        self.repository = RealRepository(directory / "repository")
        self.images = {version: small_image(directory / version, version) for version in ("1.0", "2.0")}
        for version, image in self.images.items():
            self.repository.publish(image, version)
        self.first, self.second = first, second
        first.root = second.root = self.repository.public
        self.device = RealDevice.make(
            directory / "device",
            url=first.url,
            root=self.repository.root,
            image=self.images["1.0"],
            version="1.0",
            slot_size=self.images["2.0"].stat().st_size,
        )
        text = self.device.configuration.read_text()
        both = f'urls = ["{first.url}", "{second.url}"]'
        self.device.configuration.write_text(text.replace(f'urls = ["{first.url}"]', both))

    def published(self, *folders: str) -> dict[str, bytes]:
        """Return what lies in folders of the public tree."""
        public = self.repository.public
        found = (path for folder in folders for path in (public / folder).rglob("*") if path.is_file())
        return {str(path.relative_to(public)): path.read_bytes() for path in found}

    def require_update(self) -> None:
        assert isinstance(update(self.device.device, progress=Silence()), Updated)
        assert self.device.slot("B").read_bytes() == self.images["2.0"].read_bytes()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving() as first, serving() as second:
        yield Site(tmp_path, first, second)


def _flipped(data: bytes) -> bytes:
    damaged = bytearray(data)
    for place in range(len(data) // 2, len(data), 1000):
        damaged[place] ^= 1
    return bytes(damaged)


def _rubbish(data: bytes) -> bytes:
    return random.Random(len(data)).randbytes(len(data))


DAMAGE: dict[str, tuple[tuple[str, ...], Callable[[bytes], bytes]]] = {
    "flipped content": (("content",), _flipped),
    "content cut short": (("content",), lambda data: data[: len(data) // 2]),
    "flipped targets": (("targets",), _flipped),
    "rubbish for metadata": (("metadata",), _rubbish),
}


@pytest.mark.parametrize(("folders", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_a_mirror_with_other_bytes_is_left_for_the_next(
    site: Site, folders: tuple[str, ...], damage: Callable[[bytes], bytes]
) -> None:
    site.first.files.update({path: damage(data) for path, data in site.published(*folders).items()})

    site.require_update()

    assert site.second.requests


def test_where_no_mirror_has_what_was_signed_nothing_is_installed(site: Site) -> None:
    for mirror in (site.first, site.second):
        mirror.files.update({path: _flipped(data) for path, data in site.published("content").items()})

    with pytest.raises(TrustError):
        update(site.device.device, progress=Silence())
    assert site.device.boot.primary() == "A"


def test_what_a_verified_answer_lacks_is_asked_of_no_other_mirror(site: Site) -> None:
    text = site.device.configuration.read_text()
    site.device.configuration.write_text(text.replace('channel = "stable"', 'channel = "beta"'))

    with pytest.raises(TrustError):
        update(site.device.device, progress=Silence())
    assert not site.second.requests
