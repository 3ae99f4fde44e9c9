"""Whole assemblies over real HTTP: fresh, seeded, by delta, interrupted, damaged and lied to."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.crash.killing import run_killed_at
from tests.loopback import LoopbackServer, serving
from tests.releases import Published, publish, publish_delta, publish_real_delta, some_image, successor, with_deltas
from tests.tools import need

from overhaul.content import bydelta, fill, published
from overhaul.content.assembler import AssemblyFailedError, AssemblyReport, assemble, preview
from overhaul.content.delta.format import DeltaHeader, read_header
from overhaul.content.frames import read_frames
from overhaul.content.index import MalformedIndexError
from overhaul.content.plan import Way
from overhaul.content.preparing import Materials
from overhaul.content.target import SlotTooSmallError, SlotUnusableError
from overhaul.errors import NetworkError
from overhaul.progress import Silence
from overhaul.release.record import FileRef, encode_release
from overhaul.transfer.fetcher import RefusedStatusError
from overhaul.transfer.fetching import WrongDigestError
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.ranges import ShortFileError
from overhaul.transfer.settings import FetchSettings


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LoopbackServer]:
    site = tmp_path / "site"
    site.mkdir()
    with serving(site) as running:
        yield running


@pytest.fixture
def site(server: LoopbackServer) -> Path:
    assert server.root is not None
    return server.root


@pytest.fixture
def slot(tmp_path: Path) -> Path:
    path = tmp_path / "slot.img"
    path.touch()
    return path


@pytest.fixture
def old(site: Path) -> Published:
    return publish(site, some_image(1), version="1.0")


@pytest.fixture
def new(site: Path, old: Published) -> Published:
    return publish(site, successor(old.content, 2), version="1.1", earlier=[old], delta_from=old)


Run = Callable[..., AssemblyReport]


@pytest.fixture
def run(server: LoopbackServer, slot: Path) -> Run:
    def call(published: Published, *, target: Path = slot, **options: object) -> AssemblyReport:
        arguments: dict[str, object] = {"wait": lambda _seconds: None, **options}
        materials = Materials(
            base_url=server.url,
            fetcher=open_fetcher(FetchSettings(allow_http=True)),
            **arguments,  # type: ignore[arg-type]  # tests pass on whatever they vary
        )
        return assemble(published.release, materials, target=target)

    return call


def _from_old(old: Published) -> dict[str, object]:
    return {"source": old.image, "source_index": old.index_sha256}


def _damage(path: Path, *, share: float, seed: int = 3) -> None:
    data = bytearray(path.read_bytes())
    source = random.Random(seed)
    for offset in range(0, len(data), 4096):
        if source.random() < share:
            data[offset + source.randrange(4096)] ^= 0x40
    path.write_bytes(data)


def _corrupt(site: Path, ref: FileRef, *, at: float) -> None:
    path = site / ref.path
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


def test_a_fresh_slot_gets_the_whole_image(run: Run, old: Published, slot: Path) -> None:
    report = run(old)
    assert slot.read_bytes() == old.content
    assert report.way is Way.CHUNKS
    assert report.requests == 3
    assert report.bytes_received == report.plan.download_bytes
    assert report.repaired_chunks == 0


def test_zeros_become_holes(run: Run, old: Published, slot: Path) -> None:
    run(old)
    assert slot.stat().st_blocks * 512 < len(old.content) - 500_000


def test_a_seed_saves_what_it_has(run: Run, old: Published, new: Published, slot: Path) -> None:
    without_delta = Published(with_deltas(new.release), new.index, new.image)
    report = run(without_delta, **_from_old(old))
    assert slot.read_bytes() == new.content
    assert report.way is Way.CHUNKS
    assert report.reused_bytes > 0
    fresh = sum(pack.pack.size for pack in new.release.image.packs)
    assert report.bytes_received < 0.75 * fresh


def test_a_seed_without_index_is_cut_here(run: Run, old: Published, new: Published, slot: Path) -> None:
    report = run(new, seeds=[old.image])
    assert slot.read_bytes() == new.content
    assert report.reused_bytes > 0


def test_a_seed_that_has_everything_leaves_only_the_index_to_fetch(run: Run, new: Published, slot: Path) -> None:
    report = run(new, seeds=[new.image])
    assert slot.read_bytes() == new.content
    assert report.requests == 1


def test_a_missing_seed_is_no_reason_to_fail(run: Run, old: Published, slot: Path, tmp_path: Path) -> None:
    report = run(old, seeds=[tmp_path / "no-stick"])
    assert slot.read_bytes() == old.content
    assert "no-stick" in report.refused[0]


def test_a_delta_updates_in_three_requests(run: Run, old: Published, new: Published, slot: Path) -> None:
    report = run(new, **_from_old(old))
    assert slot.read_bytes() == new.content
    assert (report.way, report.requests) == (Way.DELTA, 3)
    assert report.bytes_received == report.plan.download_bytes
    assert report.bytes_received == new.release.image.index.size + new.release.image.deltas[0].file.size
    assert report.repaired_chunks == 0


def test_a_preview_promises_what_then_happens_and_writes_nothing(
    run: Run, old: Published, new: Published, slot: Path, server: LoopbackServer
) -> None:
    materials = Materials(
        base_url=server.url,
        fetcher=open_fetcher(FetchSettings(allow_http=True)),
        source=old.image,
        source_index=old.index_sha256,
    )
    plan = preview(new.release, materials, target=slot)
    assert slot.stat().st_size == 0
    assert run(new, **_from_old(old)).plan == plan


def test_a_slot_that_holds_the_image_costs_the_index_and_no_write(run: Run, old: Published) -> None:
    run(old)
    report = run(old)
    assert report.requests == 1
    assert report.kept_bytes == len(old.content)
    assert report.written_bytes == 0


def test_the_cache_saves_the_index_the_next_time(run: Run, old: Published, new: Published, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run(old, cache=cache)
    report = run(old, cache=cache)
    assert report.requests == 0
    (cache / old.index_sha256).write_bytes(b"damaged")
    assert run(old, cache=cache).requests == 1


def test_two_releases_take_turns_in_one_slot(run: Run, old: Published, new: Published, slot: Path) -> None:
    for release in (old, new, old, new):
        run(release)
        assert slot.read_bytes() == release.content


def test_a_slot_full_of_other_bytes_is_overwritten_also_where_zeros_belong(
    run: Run, old: Published, new: Published, slot: Path
) -> None:
    slot.write_bytes(random.Random(5).randbytes(len(new.content) + 70_000))
    rest = slot.read_bytes()[len(new.content) :]
    run(new, **_from_old(old))
    assert slot.read_bytes() == new.content + rest


@pytest.mark.parametrize("way", [Way.DELTA, Way.CHUNKS])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.2])
def test_a_damaged_source_costs_bytes_and_not_the_update(
    run: Run, old: Published, new: Published, slot: Path, tmp_path: Path, share: float, way: Way
) -> None:
    source = tmp_path / "running.img"
    source.write_bytes(old.content)
    _damage(source, share=share)
    wanted = new if way is Way.DELTA else Published(with_deltas(new.release), new.index, new.image)
    report = run(wanted, source=source, source_index=old.index_sha256)
    assert slot.read_bytes() == new.content
    assert report.way is way


def test_a_source_shorter_than_the_release_it_had_is_mended(
    run: Run, old: Published, new: Published, slot: Path, tmp_path: Path
) -> None:
    source = tmp_path / "running.img"
    source.write_bytes(old.content[:1_000_000])
    run(new, source=source, source_index=old.index_sha256)
    assert slot.read_bytes() == new.content


def _still_missing_bytes(new: Published, slot: Path) -> int:
    """Return the bytes of what would have to be fetched for a slot as it is, each file's description left out."""
    held = slot.read_bytes().ljust(len(new.content), b"\0")
    if not new.release.image.deltas:
        wrong = {c.id for c in new.index if held[c.offset : c.end] != new.content[c.offset : c.end]}
        return sum(size for identity, size in _frame_sizes(new).items() if identity in wrong)
    header = _header(new)
    return sum(
        segment.size
        for segment in header.segments
        if any(held[run.offset : run.end] != new.content[run.offset : run.end] for run in segment.output_runs)
    )


def _header(new: Published) -> DeltaHeader:
    delta = new.release.image.deltas[0]
    data = (new.image.parent / delta.file.path).read_bytes()
    return read_header(data[: delta.header_size])


def _frame_sizes(new: Published) -> dict[bytes, int]:
    sizes: dict[bytes, int] = {}
    for pack in new.release.image.packs:
        for frame in read_frames((new.image.parent / pack.frames.path).read_bytes()):
            sizes.setdefault(frame.chunk_id, frame.size)
    return sizes


@pytest.mark.parametrize("way", [Way.DELTA, Way.CHUNKS])
def test_killed_at_every_step_a_second_run_ends_right_and_fetches_nothing_it_had_written(
    run: Run,
    old: Published,
    new: Published,
    slot: Path,
    way: Way,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Small windows, so that this small image has many of them.
    monkeypatch.setattr(bydelta, "IN_FLIGHT_BYTES", 40_000)
    monkeypatch.setattr(fill, "IN_FLIGHT_BYTES", 40_000)
    monkeypatch.setattr(published, "_GAP_BYTES", 0)
    wanted = new if way is Way.DELTA else Published(with_deltas(new.release), new.index, new.image)
    cache = tmp_path / "cache"
    options = {"cache": cache, **(_from_old(old) if way is Way.DELTA else {})}
    described = wanted.release.image.index.size + sum(pack.frames.size for pack in wanted.release.image.packs)
    described += sum(delta.header_size for delta in wanted.release.image.deltas)

    def once() -> None:
        run(wanted, **options)

    point = 0
    continued = 0
    while True:
        slot.write_bytes(b"")
        for path in cache.glob("*"):
            path.unlink()
        passed = run_killed_at(once, point)
        if passed is not None:
            break
        missing = _still_missing_bytes(wanted, slot)
        continued += 0 < missing < _still_missing_bytes(wanted, Path(os.devnull))
        report = run(wanted, **options)
        assert slot.read_bytes() == new.content, point
        assert report.repaired_chunks == 0
        assert report.bytes_received <= missing + described
        point += max(1, point // 5)
    assert passed > 20
    assert continued > 3


def test_a_second_run_fetches_only_what_is_missing(
    run: Run, old: Published, new: Published, slot: Path, server: LoopbackServer
) -> None:
    delta = new.release.image.deltas[0]
    reached = delta.header_size + (delta.file.size - delta.header_size) * 2 // 3
    server.behave(delta.file.path, cut_after=[None, reached - delta.header_size, *[0] * 20])
    with pytest.raises(NetworkError):
        run(new, **_from_old(old))
    server.behaviours.clear()
    report = run(new, **_from_old(old))
    assert slot.read_bytes() == new.content
    whole = new.release.image.index.size + delta.file.size
    # Small segments: what is repeated is at most the one that was cut, and parts too small to leave out.
    assert report.bytes_received < whole - (delta.file.size - delta.header_size) // 2


def test_a_connection_cut_again_and_again_is_continued(
    run: Run, old: Published, new: Published, slot: Path, server: LoopbackServer
) -> None:
    delta = new.release.image.deltas[0]
    server.behave(delta.file.path, cut_after=[None, 70_000, 66_000, 0, 80_000, 3])
    report = run(new, **_from_old(old))
    assert slot.read_bytes() == new.content
    assert report.bytes_received == report.plan.download_bytes


def test_a_server_without_ranges_still_serves(
    run: Run, old: Published, new: Published, slot: Path, server: LoopbackServer
) -> None:
    for ref in (new.release.image.deltas[0].file, *(pack.pack for pack in new.release.image.packs)):
        server.behave(ref.path, ignores_ranges=True)
    run(new, **_from_old(old))
    assert slot.read_bytes() == new.content
    slot.write_bytes(b"")
    report = run(Published(with_deltas(new.release), new.index, new.image), **_from_old(old))
    assert slot.read_bytes() == new.content
    # One request for each description and pack, whatever the number of ranges.
    assert report.requests <= 2 + 2 * len(new.release.image.packs)


def test_a_corrupted_index_is_refused_before_anything_is_written(
    run: Run, old: Published, site: Path, slot: Path
) -> None:
    _corrupt(site, old.release.image.index, at=0.5)
    with pytest.raises(WrongDigestError):
        run(old)
    assert not slot.read_bytes().strip(b"\0")


def test_a_record_whose_index_describes_another_image_is_refused(run: Run, old: Published, site: Path) -> None:
    other = publish(site, some_image(9, size=500_000), version="9")
    image = old.release.image
    crossed = type(old.release)(
        format=1,
        id=old.release.id,
        published_at=0,
        image=type(image)(size=image.size, filesystem="raw", index=other.release.image.index, packs=image.packs),
    )
    with pytest.raises(MalformedIndexError):
        run(Published(crossed, old.index, old.image))


def test_a_corrupted_pack_is_refused_and_the_good_part_kept(run: Run, old: Published, site: Path, slot: Path) -> None:
    pack = old.release.image.packs[0].pack
    whole = (site / pack.path).read_bytes()
    _corrupt(site, pack, at=0.5)
    with pytest.raises(WrongDigestError, match="the frame at"):
        run(old)
    (site / pack.path).write_bytes(whole)
    report = run(old)
    assert slot.read_bytes() == old.content
    assert report.kept_bytes > len(old.content) // 5
    assert report.bytes_received < 0.8 * len(whole)


@pytest.mark.parametrize("kind", ["pack", "frames"])
def test_a_truncated_file_is_refused(run: Run, old: Published, site: Path, kind: str) -> None:
    ref: FileRef = getattr(old.release.image.packs[0], kind)
    (site / ref.path).write_bytes((site / ref.path).read_bytes()[: ref.size // 2])
    with pytest.raises(ShortFileError):
        run(old)


def test_an_index_that_never_ends_is_refused(run: Run, old: Published, server: LoopbackServer) -> None:
    server.behave(old.release.image.index.path, endless=True)
    with pytest.raises(Exception, match="sent more than"):
        run(old)


@pytest.mark.parametrize("at", [0.001, 0.5, 0.99])
def test_a_corrupted_delta_is_refused_and_packs_take_its_place(
    run: Run, old: Published, new: Published, site: Path, slot: Path, at: float
) -> None:
    _corrupt(site, new.release.image.deltas[0].file, at=at)
    report = run(new, **_from_old(old))
    assert slot.read_bytes() == new.content
    assert report.way is Way.CHUNKS
    assert len(report.refused) == 1


@pytest.mark.parametrize("harm", ["gone", "truncated"])
def test_a_delta_that_is_not_whole_on_the_server_is_replaced_by_packs(
    run: Run, old: Published, new: Published, site: Path, slot: Path, harm: str
) -> None:
    path = site / new.release.image.deltas[0].file.path
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-50_000])
    report = run(new, **_from_old(old))
    assert slot.read_bytes() == new.content
    assert report.way is Way.CHUNKS


def test_a_delta_for_an_image_of_another_size_is_refused(
    run: Run, old: Published, new: Published, site: Path, slot: Path
) -> None:
    wrong = publish_delta(site, old, new.content + bytes(8192))
    lying = Published(with_deltas(new.release, wrong), new.index, new.image)
    assert run(lying, **_from_old(old)).way is Way.CHUNKS
    assert slot.read_bytes() == new.content


def test_an_overloaded_server_does_not_turn_a_delta_into_chunks(
    run: Run, old: Published, new: Published, server: LoopbackServer
) -> None:
    server.behave(new.release.image.deltas[0].file.path, statuses=[503] * 50)
    with pytest.raises(RefusedStatusError):
        run(new, **_from_old(old))


def _lying_medium(monkeypatch: pytest.MonkeyPatch, *, times: int) -> None:
    """Let the medium swap a byte at 100 000 the first `times` times it is written."""
    real = os.pwrite
    left = [times]

    def lying(descriptor: int, data: memoryview, offset: int) -> int:
        if offset <= 100_000 < offset + len(data) and left[0]:
            left[0] -= 1
            harmed = bytearray(data)
            harmed[100_000 - offset] ^= 1
            return real(descriptor, harmed, offset)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", lying)


def test_what_the_medium_swapped_once_is_mended(
    run: Run, old: Published, slot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lying_medium(monkeypatch, times=1)
    report = run(old)
    assert slot.read_bytes() == old.content
    assert report.repaired_chunks == 1


def test_a_medium_that_swaps_bytes_again_and_again_is_named(
    run: Run, old: Published, slot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _lying_medium(monkeypatch, times=100)
    with pytest.raises(AssemblyFailedError) as caught:
        run(old)
    assert (caught.value.path, caught.value.wrong_chunks) == (slot, 1)
    assert caught.value.first_offset <= 100_000


class _Interrupting(Silence):
    """A person who presses Control-C after so much progress."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, amount: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("after", [1, 15, 40, 60])
def test_an_interrupted_run_is_continued(run: Run, old: Published, new: Published, slot: Path, after: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(new, progress=_Interrupting(after), **_from_old(old))
    run(new, **_from_old(old))
    assert slot.read_bytes() == new.content


def test_memory_does_not_grow_with_the_image(site: Path, slot: Path, server: LoopbackServer, tmp_path: Path) -> None:
    big = tmp_path / "big.img"
    source = random.Random(4)
    with big.open("wb") as stream:
        for _ in range(150):
            stream.write(source.randbytes(1_000_000))
    published = publish(site, big, version="3")
    record = tmp_path / "record.json"
    record.write_bytes(encode_release(published.release))
    program = (
        "import sys; from pathlib import Path\n"
        "from overhaul.content.assembler import assemble\n"
        "from overhaul.content.preparing import Materials\n"
        "from overhaul.host.memory import peak_memory_bytes\n"
        "from overhaul.release.record import decode_release\n"
        "from overhaul.transfer.opening import open_fetcher\n"
        "from overhaul.transfer.settings import FetchSettings\n"
        "materials = Materials(base_url=sys.argv[2], fetcher=open_fetcher(FetchSettings(allow_http=True)))\n"
        "assemble(decode_release(Path(sys.argv[1]).read_bytes()), materials, target=Path(sys.argv[3]))\n"
        "print(peak_memory_bytes())\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program, record, server.url, slot], check=True, capture_output=True, text=True
    )
    assert int(answer.stdout) < 80 * 1024 * 1024


def test_a_slot_too_small_is_refused_before_a_request(
    run: Run, old: Published, slot: Path, server: LoopbackServer
) -> None:
    slot.write_bytes(b"x" * 4096)
    with pytest.raises(SlotTooSmallError) as caught:
        run(old)
    assert caught.value.image_bytes == len(old.content)
    assert slot.read_bytes() == b"x" * 4096
    assert server.requests == []


def test_a_slot_that_is_not_there_is_not_made(run: Run, old: Published, tmp_path: Path) -> None:
    with pytest.raises(SlotUnusableError):
        run(old, target=tmp_path / "by-partlabel")
    assert not (tmp_path / "by-partlabel").exists()


def test_the_slot_the_device_runs_from_is_never_written(
    run: Run, old: Published, new: Published, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(old.image)
    before = old.content
    with pytest.raises(SlotUnusableError):
        run(new, target=tmp_path / "link", **_from_old(old))
    assert old.image.read_bytes() == before


def test_a_real_file_system_on_a_block_device_updates_by_delta(
    run: Run, site: Path, tmp_path: Path, server: LoopbackServer
) -> None:
    make = need("mkfs.ext4")
    images = []
    for number, text in enumerate(("first", "second")):
        tree = tmp_path / f"tree{number}"
        tree.mkdir()
        for name in range(60):
            (tree / f"file{name}").write_bytes(random.Random(name).randbytes(30_000) + text.encode() * (name % 7) * 500)
        image = tmp_path / f"image{number}.ext4"
        subprocess.run([make, "-q", "-d", tree, "-O", "^has_journal", image, "8M"], check=True, capture_output=True)
        images.append(image)
    old = publish(site, images[0], version="1.0")
    plain = publish(site, images[1], version="1.1", earlier=[old])
    delta = publish_real_delta(site, old, images[1])
    new = Published(with_deltas(plain.release, delta), plain.index, plain.image)
    backing = tmp_path / "disk"
    backing.write_bytes(os.urandom(new.release.image.size + 1_000_000))
    losetup = need("losetup")
    device = subprocess.run(
        [losetup, "-f", "--show", backing], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        report = run(new, target=Path(device), **_from_old(old))
        assert (report.way, report.repaired_chunks) == (Way.DELTA, 0)
        with Path(device).open("rb") as stream:
            assert stream.read(new.release.image.size) == new.content
    finally:
        subprocess.run([losetup, "-d", device], check=True)
    subprocess.run(["e2fsck", "-fn", backing], check=True, capture_output=True)
