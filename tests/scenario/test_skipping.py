"""A device that skips a release fetches what leads over it, and nothing to find that out."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.loopback import serving
from tests.unit.content.delta.images import make_image, write_tree
from tests.unit.publishing.building import make_repository, publish_image

from overhaul.content.assembler import assemble
from overhaul.content.index import read_index
from overhaul.content.plan import Way
from overhaul.content.preparing import Materials
from overhaul.content.readback import is_zero_chunk
from overhaul.publishing.opening import Repository
from overhaul.release.record import DeltaRef, Release
from overhaul.repository.layout import public_key
from overhaul.repository.packs import places_in
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings


@dataclass(frozen=True)
class Line:
    """Three releases, of which the third changes little of the second, and the second much of the first."""

    repository: Repository
    images: list[Path]
    releases: list[Release]

    @property
    def delta(self) -> DeltaRef:
        """From the first to the third."""
        [found] = [one for one in self.releases[2].image.deltas if one.source_version == "1.0"]
        return found


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    directory = tmp_path_factory.mktemp("skipping")
    repository = make_repository(directory / "repo")
    chance = random.Random(7)
    library = bytearray(chance.randbytes(2 << 20))
    trees = [{"usr/lib/library": bytes(library)}]
    for offset in range(0, len(library), 16 << 10):
        library[offset] ^= 1
    trees.append({"usr/lib/library": bytes(library), "usr/share/new": chance.randbytes(600_000)})
    trees.append({**trees[1], "usr/share/small": b"small"})
    images, releases = [], []
    for number, tree in enumerate(trees):
        made = make_image(write_tree(directory / f"tree{number}", tree), directory / f"image{number}", size_kib=8192)
        images.append(made)
        sources = tuple(f"1.{earlier}" for earlier in range(number))
        releases.append(publish_image(repository, made, f"1.{number}", delta_from=sources).release)
    return Line(repository, images, releases)


def test_a_record_says_what_the_source_of_a_delta_lacks_whichever_release_stored_it(line: Line) -> None:
    storage, image = line.repository.storage, line.releases[2].image
    held, wanted = (
        {chunk.id for chunk in read_index(storage.read(public_key(one.image.index.path))) if not is_zero_chunk(chunk)}
        for one in (line.releases[0], line.releases[2])
    )
    places = places_in(storage, image.packs)
    assert line.delta.chunks_size == sum(places[identity].frame.size for identity in wanted - held)
    assert image.own_pack_bytes < line.delta.fetched_size() < line.delta.chunks_size


def test_a_small_release_in_between_costs_a_device_that_skips_it_no_tables(line: Line, tmp_path: Path) -> None:
    slot = tmp_path / "slot"
    slot.touch()
    with serving(line.repository.directory / "store/public") as server:
        materials = Materials(
            base_url=server.url,
            fetcher=open_fetcher(FetchSettings(allow_http=True)),
            source=line.images[0],
            source_index=line.releases[0].image.index.sha256,
        )
        report = assemble(line.releases[2], materials, target=slot)
        asked = [seen.path for seen in server.requests]

    assert slot.read_bytes() == line.images[2].read_bytes()
    assert report.way is Way.DELTA
    assert not any("frames" in path for path in asked)
    assert report.bytes_received == line.releases[2].image.index.size + line.delta.fetched_size()
