"""Sources that are damaged here and there: what is fetched for that stays near what is damaged.

The image holds files as a system has them, in chunks of some twenty blocks; blocks are damaged by chance. Where many
are, fetching all that was published of the chunks is the limit.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.loopback import LoopbackServer, serving
from tests.releases import Published, publish, publish_real_delta, with_deltas
from tests.unit.content.delta.images import code_like, edited, make_image, write_tree

from overhaul.content.assembler import AssemblyReport, assemble
from overhaul.content.plan import Way
from overhaul.content.preparing import Materials
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

_BLOCK = 4096
_SIZE_KIB = 24 * 1024


@dataclass(frozen=True)
class Scene:
    """Two releases with a delta between them."""

    server: LoopbackServer
    old: Published
    new: Published

    def update(self, directory: Path, *, source: Path, way: Way = Way.DELTA) -> AssemblyReport:
        """Update a slot from `source`, and check what came out."""
        slot = directory / "slot.img"
        slot.write_bytes(b"")
        release = self.new.release if way is Way.DELTA else with_deltas(self.new.release)
        materials = Materials(
            base_url=self.server.url,
            fetcher=open_fetcher(FetchSettings(allow_http=True)),
            source=source,
            source_index=self.old.index_sha256,
            cache=directory / f"cache-{source.name}-{way}",
            wait=lambda _seconds: None,
        )
        report = assemble(release, materials, target=slot)
        assert report.way is way
        assert slot.read_bytes() == self.new.content
        return report


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("damage")
    site = directory / "site"
    site.mkdir()
    chance = random.Random(5)
    files = {f"usr/lib/part{number}": code_like(chance, chance.randrange(1 << 21)) for number in range(10)}
    files |= {f"usr/share/text{number}": code_like(chance, chance.randrange(40_000)) for number in range(100)}
    # The same chunks in two places.
    files |= {"usr/lib/twin1": files["usr/lib/part3"], "usr/lib/twin2": files["usr/lib/part4"]}
    old = make_image(write_tree(directory / "old", files), directory / "old.img", size_kib=_SIZE_KIB)
    for number in (2, 5):
        files[f"usr/lib/part{number}"] = edited(chance, files[f"usr/lib/part{number}"])
    files["usr/bin/added"] = code_like(chance, 30_000)
    new = make_image(write_tree(directory / "new", files), directory / "new.img", size_kib=_SIZE_KIB)
    first = publish(site, old, version="1.0", mended_blocks=2)
    second = publish(site, new, version="1.1", earlier=[first], mended_blocks=2)
    second = Published(with_deltas(second.release, publish_real_delta(site, first, new)), second.index, new)
    with serving(site) as server:
        yield Scene(server, first, second)


def _damaged(old: Published, directory: Path, share: float) -> tuple[Path, int]:
    """Return the old image with this share of its blocks damaged, and how many bytes these blocks have."""
    chance = random.Random(int(share * 10_000))
    data = bytearray(old.content)
    blocks = range(len(data) // _BLOCK)
    hit = chance.sample(blocks, max(1, int(share * len(blocks))))
    for block in hit:
        data[block * _BLOCK : (block + 1) * _BLOCK] = chance.randbytes(_BLOCK)
    path = directory / f"damaged-{share}.img"
    path.write_bytes(data)
    return path, len(hit) * _BLOCK


@pytest.mark.parametrize("way", [Way.DELTA, Way.CHUNKS])
@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_damage_costs_at_most_half_as_much_again_as_is_damaged(
    scene: Scene, tmp_path: Path, share: float, way: Way
) -> None:
    undamaged = scene.update(tmp_path, source=scene.old.image, way=way).bytes_received
    source, damaged_bytes = _damaged(scene.old, tmp_path, share)
    report = scene.update(tmp_path, source=source, way=way)
    # What says where mends and frames lie is fetched once, whatever is damaged.
    described = sum(pack.frames.size for pack in scene.new.release.image.packs)
    described += sum(pack.mends.header_size for pack in scene.new.release.image.packs if pack.mends)
    # One block in five leaves hardly a chunk with less than three wrong ones: then everything is fetched.
    everything = sum(pack.pack.size for pack in scene.new.release.image.packs)
    limit = max(1.5 * damaged_bytes, 1.02 * everything if share == 0.2 else 0)
    assert report.bytes_received - undamaged - described <= limit


def test_a_few_wrong_blocks_cost_little_more_than_they(scene: Scene, tmp_path: Path) -> None:
    undamaged = scene.update(tmp_path, source=scene.old.image).bytes_received
    source, damaged_bytes = _damaged(scene.old, tmp_path, 0.002)
    report = scene.update(tmp_path, source=source)
    headers = sum(pack.mends.header_size for pack in scene.new.release.image.packs if pack.mends)
    assert report.bytes_received - undamaged - headers <= 1.5 * damaged_bytes
    assert report.repaired_chunks > 0


@pytest.mark.parametrize("harm", ["gone", "lied", "header"])
def test_mends_that_are_gone_or_wrong_cost_the_chunks_and_not_the_update(
    scene: Scene, tmp_path: Path, harm: str
) -> None:
    source, _damaged_bytes = _damaged(scene.old, tmp_path, 0.01)
    assert scene.server.root is not None
    kept: dict[Path, bytes] = {}
    for pack in scene.new.release.image.packs:
        assert pack.mends
        path = scene.server.root / pack.mends.file.path
        kept[path] = path.read_bytes()
        match harm:
            case "gone":
                path.unlink()
            case "lied":
                data = kept[path]
                path.write_bytes(data[: pack.mends.header_size] + random.Random(1).randbytes(len(data)))
            case _:
                path.write_bytes(bytes(len(kept[path])))
    try:
        report = scene.update(tmp_path, source=source)
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    assert report.repaired_chunks > 0


def test_a_source_that_is_something_else_altogether_costs_hardly_more_than_everything(
    scene: Scene, tmp_path: Path
) -> None:
    source = tmp_path / "other.img"
    source.write_bytes(random.Random(9).randbytes(_SIZE_KIB * 1024))
    report = scene.update(tmp_path, source=source, way=Way.CHUNKS)
    image = scene.new.release.image
    full = sum(pack.pack.size + pack.frames.size for pack in image.packs)
    headers = sum(pack.mends.header_size for pack in image.packs if pack.mends)
    assert report.bytes_received <= 1.01 * full + headers + 2 * image.index.size + 256 * 2 * _BLOCK
