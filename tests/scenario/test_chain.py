"""Devices that skipped releases: deltas applied one after the other, through images that are never written."""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.crash.killing import run_killed_at
from tests.fleet import RealDevice, RealRepository
from tests.interruptions import packed_image
from tests.loopback import LoopbackServer, serving
from tests.releases import Published, publish, publish_real_delta, some_image, with_deltas

from overhaul.agent.outcomes import Updated
from overhaul.agent.updating import update
from overhaul.content import bydelta, published
from overhaul.content.assembler import AssemblyReport, assemble, preview
from overhaul.content.chains import find_chains
from overhaul.content.delta.recoders import RECODERS
from overhaul.content.plan import Limits, Way
from overhaul.content.preparing import Materials
from overhaul.progress import Silence
from overhaul.release.record import DeltaRef
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

_SIZE_KIB = 3 * 1024


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoopbackServer]:
    site = tmp_path / "site"
    site.mkdir()
    with serving(site) as running:
        yield running


@dataclass(frozen=True)
class Line:
    """Releases one after the other, each with a delta from the one before it."""

    server: LoopbackServer
    releases: tuple[Published, ...]
    directory: Path

    @property
    def old(self) -> Published:
        return self.releases[0]

    @property
    def new(self) -> Published:
        return self.releases[-1]

    @property
    def slot(self) -> Path:
        return self.directory / "slot.img"

    @property
    def cache(self) -> Path:
        return self.directory / "cache"

    def chains(self) -> tuple[tuple[DeltaRef, ...], ...]:
        by_version = {one.release.id.version: one.release for one in self.releases}
        return find_chains(
            self.new.release, self.old.index_sha256, read=lambda release: by_version.get(release.version)
        )

    def run(self, **options: object) -> AssemblyReport:
        arguments: dict[str, object] = {
            "source": self.old.image,
            "source_index": self.old.index_sha256,
            "chains": self.chains(),
            "cache": self.cache,
            "wait": lambda _seconds: None,
            **options,
        }
        self.slot.touch()
        materials = Materials(
            base_url=self.server.url,
            fetcher=open_fetcher(FetchSettings(allow_http=True)),
            **arguments,  # type: ignore[arg-type]  # tests pass on whatever they vary
        )
        return assemble(self.new.release, materials, target=self.slot)


def _next(old: bytes, seed: int) -> bytes:
    """Return an image in which two parts changed places and others were edited."""
    chance = random.Random(seed)
    data = bytearray(old)
    size = 400 * 1024
    data[:size], data[-size:] = data[-size:], data[:size]
    for _ in range(25):
        data[chance.randrange(size, len(data) - size)] ^= 1
    for _ in range(4):
        offset = chance.randrange(size, len(data) - size)
        data[offset : offset + 5000] = chance.randbytes(5000)
    return bytes(data)


def _line(server: LoopbackServer, directory: Path, *, count: int, zeros: int = 2_000_000) -> Line:
    assert server.root is not None
    releases = [publish(server.root, some_image(1, zeros=zeros), version="1.0", mended_blocks=2)]
    for number in range(1, count):
        before = releases[-1]
        content = _next(before.content, number)
        made = publish(
            server.root,
            content,
            version=f"1.{number}",
            earlier=releases[::-1],
            delta_from=before,
            mended_blocks=2,
        )
        releases.append(made)
    return Line(server, tuple(releases), directory)


@pytest.fixture
def line(server: LoopbackServer, tmp_path: Path) -> Line:
    return _line(server, tmp_path, count=3)


@pytest.fixture
def packed_line(server: LoopbackServer, tmp_path: Path) -> Line:
    """Three file systems with files that the device packs again."""
    assert server.root is not None
    releases: list[Published] = []
    for version in range(3):
        image = packed_image(tmp_path, version, size_kib=_SIZE_KIB)
        made = publish(server.root, image, version=f"2.{version}", earlier=releases[::-1], mended_blocks=2)
        if releases:
            delta = publish_real_delta(server.root, releases[-1], image)
            made = Published(with_deltas(made.release, delta), made.index, made.image)
        releases.append(made)
    return Line(server, tuple(releases), tmp_path)


@pytest.mark.parametrize("count", [3, 4])
def test_a_device_that_skipped_releases_gets_there_with_less_than_by_chunks(
    server: LoopbackServer, tmp_path: Path, count: int
) -> None:
    line = _line(server, tmp_path, count=count)
    report = line.run()
    assert report.way is Way.CHAIN
    assert len(report.plan.steps) == count - 1
    assert line.slot.read_bytes() == line.new.content
    assert report.repaired_chunks == 0
    assert report.bytes_received <= report.plan.download_bytes
    assert report.plan.spool_in_slot == (count == 3)
    line.slot.unlink()
    by_chunks = line.run(chains=())
    assert by_chunks.way is Way.CHUNKS
    assert report.bytes_received < by_chunks.bytes_received


def test_a_chain_that_costs_more_than_the_chunks_is_not_taken(server: LoopbackServer, tmp_path: Path) -> None:
    assert server.root is not None
    first = some_image(1)
    releases = [publish(server.root, first, version="1.0")]
    # Half of the release between is in no other one, so one delta brings it and the other takes it back.
    between = some_image(2)[: len(first) // 2] + first[len(first) // 2 :]
    for version, content in (("1.1", between), ("1.2", _next(first, 3))):
        before = releases[-1]
        releases.append(publish(server.root, content, version=version, earlier=releases[::-1], delta_from=before))
    line = Line(server, tuple(releases), tmp_path)
    assert [len(chain) for chain in line.chains()] == [2]

    report = line.run()

    assert report.way is Way.CHUNKS
    assert line.slot.read_bytes() == line.new.content
    assert report.bytes_received < sum(step.file.size for step in line.chains()[0])


def test_without_zeros_in_the_image_what_is_computed_lies_in_a_scratch_file(
    server: LoopbackServer, tmp_path: Path
) -> None:
    line = _line(server, tmp_path, count=3, zeros=0)
    report = line.run()
    assert report.way is Way.CHAIN
    assert not report.plan.spool_in_slot
    assert report.plan.scratch_bytes > report.plan.spool_bytes > 0
    assert line.slot.read_bytes() == line.new.content
    assert not list(line.cache.glob("*.spool"))


def test_without_room_for_it_a_chain_is_not_planned(server: LoopbackServer, tmp_path: Path) -> None:
    line = _line(server, tmp_path, count=3, zeros=0)
    report = line.run(cache=None)
    assert report.way is Way.CHUNKS
    assert any("needs room for" in reason for reason in report.plan.reasons)
    assert line.slot.read_bytes() == line.new.content


def test_files_packed_again_in_between_are_packed_again_here(packed_line: Line) -> None:
    report = packed_line.run()
    assert report.way is Way.CHAIN
    assert all(step.rebuilt for step in report.plan.steps)
    assert packed_line.slot.read_bytes() == packed_line.new.content
    assert report.repaired_chunks == 0


def test_a_library_that_packs_otherwise_in_between_costs_the_files_as_they_are(
    packed_line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands instead of the groups is fetched for the step in between as well."""
    recoders = {kind: recoder for kind, recoder in RECODERS.items() if recoder.format != "zlib"}
    proved = frozenset(
        name for chain in packed_line.chains() for delta in chain for part in delta.rebuilds for name in part.recoders
    )
    monkeypatch.setattr("overhaul.content.preparing.proved", proved.intersection)
    monkeypatch.setattr("overhaul.content.delta.recoders.RECODERS", recoders)
    report = packed_line.run()
    assert packed_line.slot.read_bytes() == packed_line.new.content
    assert report.way is Way.CHAIN
    assert any("could not be packed again" in reason for reason in report.refused)


@pytest.mark.parametrize("share", [0.001, 0.05])
def test_a_damaged_source_costs_bytes_and_not_the_update(line: Line, share: float) -> None:
    source = line.directory / "running.img"
    data = bytearray(line.old.content)
    chance = random.Random(3)
    for _ in range(max(1, int(share * len(data) / 4096))):
        data[chance.randrange(len(data))] ^= 0xFF
    source.write_bytes(data)
    report = line.run(source=source)
    assert line.slot.read_bytes() == line.new.content
    assert report.way is Way.CHAIN


def test_a_damaged_file_that_is_packed_again_in_between_costs_what_mends_it(packed_line: Line) -> None:
    undamaged = packed_line.run().bytes_received
    packed_line.slot.unlink()
    data = bytearray(packed_line.old.content)
    place = next(found.start() for found in re.finditer(b"\x1f\x8b\x08", data) if found.start() % 1024 == 0)
    data[place + 3000] ^= 0xFF
    source = packed_line.directory / "running.img"
    source.write_bytes(data)
    for kept in packed_line.cache.iterdir():
        kept.unlink()
    report = packed_line.run(source=source)
    assert report.repaired_chunks == 0
    # A table of mends and a block.
    assert report.bytes_received <= undamaged + 16 * 1024
    assert packed_line.slot.read_bytes() == packed_line.new.content
    assert report.way is Way.CHAIN


def test_a_delta_in_between_that_is_damaged_or_gone_costs_the_chain_and_not_the_update(line: Line) -> None:
    assert line.server.root is not None
    path = line.server.root / line.releases[1].release.image.deltas[0].file.path
    whole = path.read_bytes()
    path.write_bytes(whole[:-300] + bytes(300))
    report = line.run()
    assert report.way is Way.CHUNKS
    assert report.refused
    assert line.slot.read_bytes() == line.new.content
    path.unlink()
    line.slot.unlink()
    report = line.run(cache=None)
    assert report.way is Way.CHUNKS
    assert line.slot.read_bytes() == line.new.content


@pytest.mark.parametrize("zeros", [2_000_000, 0])
def test_killed_anywhere_in_a_chain_a_second_run_fetches_nothing_that_was_there(
    server: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zeros: int
) -> None:
    line = _line(server, tmp_path, count=3, zeros=zeros)
    monkeypatch.setattr(bydelta, "IN_FLIGHT_BYTES", 40_000)
    monkeypatch.setattr(published, "_GAP_BYTES", 0)
    whole = line.run().bytes_received

    def once() -> None:
        line.run()

    point, continued = 0, 0
    while True:
        line.slot.write_bytes(b"")
        for path in line.cache.glob("*"):
            path.unlink()
        if run_killed_at(once, point) is not None:
            break
        report = line.run()
        assert line.slot.read_bytes() == line.new.content, point
        assert report.repaired_chunks == 0
        assert report.bytes_received <= whole
        continued += report.bytes_received < whole // 2
        point = 2 * point + 1
    assert continued


def test_what_was_computed_in_between_and_damaged_since_is_computed_again(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """The agent dies when the release in between is computed."""

    def die(*_arguments: object, **_options: object) -> int:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("overhaul.content.assembler.fill_by_delta", die)
        with pytest.raises(Killed):
            line.run()
    computed = line.slot.read_bytes()
    assert any(computed)
    line.slot.write_bytes(
        bytes(byte ^ 1 if byte and place % 50_000 == 0 else byte for place, byte in enumerate(computed))
    )
    report = line.run()
    assert report.way is Way.CHAIN
    assert report.repaired_chunks == 0
    assert line.slot.read_bytes() == line.new.content


def test_a_preview_says_what_a_chain_costs(line: Line) -> None:
    materials = Materials(
        base_url=line.server.url,
        fetcher=open_fetcher(FetchSettings(allow_http=True)),
        source=line.old.image,
        source_index=line.old.index_sha256,
        chains=line.chains(),
        limits=Limits(),
    )
    plan = preview(line.new.release, materials)
    assert plan.way is Way.CHAIN
    assert plan.requests == 5
    assert any("chain of 2 deltas from 1.0 (b1) over 1.1" in reason for reason in plan.reasons)


def test_the_agent_finds_the_chain_in_the_signed_records(tmp_path: Path) -> None:
    images = [packed_image(tmp_path, version, size_kib=_SIZE_KIB) for version in range(3)]
    repository = RealRepository(tmp_path / "repository")
    settings = repository.directory / "overhaul.toml"
    _one_source(settings)
    repository = RealRepository(repository.directory)
    for number, image in enumerate(images):
        made = repository.publish(image, f"1.{number}")
        assert len(made.release.image.deltas) == min(number, 1)
    with serving(repository.public) as server:
        device = RealDevice.make(
            tmp_path / "device",
            url=server.url,
            root=repository.root,
            image=images[0],
            version="1.0",
            slot_size=_SIZE_KIB * 1024,
        )
        outcome = update(device.device, progress=Silence())
        assert isinstance(outcome, Updated)
        assert outcome.way == "chain"
        assert outcome.repaired_chunks == 0
        assert device.slot("B").read_bytes() == images[2].read_bytes()


def _one_source(settings: Path) -> None:
    """Have deltas made from the newest older release only."""
    lines = settings.read_text().splitlines(keepends=True)
    place = next(number for number, line in enumerate(lines) if line.startswith("[deltas]"))
    changed = ["sources = 1\n" if line.startswith("sources") else line for line in lines[place:]]
    settings.write_text("".join([*lines[:place], *changed]))
