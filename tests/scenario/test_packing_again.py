"""Updates of images with compressed files: packed again where that works, told as they are where it does not."""

import gzip
import random
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.crash.killing import run_killed_at
from tests.loopback import LoopbackServer, serving
from tests.releases import Published, publish, publish_real_delta, with_deltas
from tests.tools import need
from tests.unit.content.delta.images import code_like, edited, make_image, write_tree
from tests.unit.content.delta.test_archives import make_archive

from overhaul.content.assembler import AssemblyReport, assemble, preview
from overhaul.content.delta import recoders
from overhaul.content.delta.format import read_header
from overhaul.content.plan import Limits, Way
from overhaul.content.preparing import Materials
from overhaul.release.record import FileRef
from overhaul.transfer.opening import open_fetcher
from overhaul.transfer.settings import FetchSettings

pytestmark = pytest.mark.xdist_group("packing-again")

#: How the library begins that is the same in both releases.
_UNCHANGED = b"\x7fELF, as it always was"


def _packed(program: list[str], plain: bytes) -> bytes:
    need(program[0])
    return subprocess.run(program, input=plain, check=True, capture_output=True).stdout


def _tree(directory: Path, files: dict[str, bytes], version: str) -> dict[str, bytes]:
    """Return a root file system: programs, documents, a kernel and an initial file system made of its programs."""
    module = _packed(["xz", "--check=crc32", "--lzma2=dict=1MiB"], files["usr/lib/modules/net.ko"])
    init = b"#!/bin/sh\necho %s\n" % version.encode()
    archive = make_archive(directory, {**files, "usr/lib/modules/disk.ko.xz": module, "init": init})
    plain = directory.parent / f"initrd-{version}"
    plain.write_bytes(archive)
    # Enough inodes, and all of them one place further in the new release.
    many = {f"usr/share/many/{number}": b"" for number in range(1200)} | {f"usr/lib/added-in-{version}": b""}
    return {
        **files,
        **many,
        "usr/share/doc/tool.gz": gzip.compress(files["usr/bin/tool"], mtime=0),
        "usr/share/doc/log.gz": _packed(["gzip", "-9n"], files["usr/lib/libbig.so"]),
        "boot/initrd": _packed(["zstd", "-q", "-9", "-c", str(plain)], b""),
        "usr/lib/modules/disk.ko.xz": module,
        "lib/firmware/radio.bin.xz": _packed(["xz", "-T2"], files["usr/bin/tool"]),
        "boot/kernel.lz4": _packed(["lz4", "-q", "-l", "-9", "-c"], files["usr/lib/libbig.so"]),
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackServer]:
    site = tmp_path_factory.mktemp("packing") / "site"
    site.mkdir()
    with serving(site) as running:
        yield running


@pytest.fixture(scope="module")
def releases(server: LoopbackServer) -> tuple[Published, Published]:
    assert server.root is not None
    site, chance = server.root, random.Random(17)
    old = {
        "usr/bin/tool": code_like(chance, 180_000),
        "usr/lib/libbig.so": code_like(chance, 1_100_000),
        "usr/lib/modules/net.ko": code_like(chance, 400_000) + bytes(20_000) + code_like(chance, 3000),
        "usr/lib/libsame.so": _UNCHANGED + code_like(chance, 300_000),
        "etc/motd": b"welcome\n",
    }
    new = {**old, "usr/bin/tool": edited(chance, old["usr/bin/tool"])}
    new["usr/lib/libbig.so"] = edited(chance, old["usr/lib/libbig.so"])
    new["usr/lib/modules/net.ko"] = edited(chance, old["usr/lib/modules/net.ko"])
    images = [
        make_image(
            write_tree(site.parent / f"tree-{version}", _tree(site.parent / f"cpio-{version}", files, version)),
            site.parent / f"{version}.ext4",
        )
        for version, files in (("1.0", old), ("1.1", new))
    ]
    first = publish(site, images[0], version="1.0")
    second = publish(site, images[1], version="1.1", earlier=[first])
    release = with_deltas(second.release, publish_real_delta(site, first, images[1]))
    return first, Published(release, second.index, second.image)


@pytest.fixture
def run(server: LoopbackServer, releases: tuple[Published, Published], tmp_path: Path) -> Callable[..., AssemblyReport]:
    first, second = releases
    slot = tmp_path / "slot.img"
    slot.touch()

    def call(**options: object) -> AssemblyReport:
        arguments: dict[str, object] = {
            "source": first.image,
            "source_index": first.index_sha256,
            "cache": tmp_path / "cache",
            "wait": lambda _seconds: None,
            **options,
        }
        materials = Materials(
            base_url=server.url,
            fetcher=open_fetcher(FetchSettings(allow_http=True)),
            **arguments,  # type: ignore[arg-type]  # tests pass on whatever they vary
        )
        report = assemble(second.release, materials, target=slot)
        assert slot.read_bytes() == second.content
        return report

    return call


def _delta_sizes(releases: tuple[Published, Published]) -> tuple[int, int]:
    """Return what a device fetches of the delta that packs everything again, and nothing."""
    (delta,) = releases[1].release.image.deltas
    return delta.fetched_size(range(len(delta.rebuilds))), delta.fetched_size()


def test_every_form_is_told_by_what_it_holds(releases: tuple[Published, Published]) -> None:
    (delta,) = releases[1].release.image.deltas
    formats = {name.partition("-")[0] for part in delta.rebuilds for name in part.recoders}
    assert formats >= {"lz4", "zstd", "xz", "ext4"}
    assert formats & {"gzip", "zlib"}
    again, plain = _delta_sizes(releases)
    assert again < 0.2 * plain


def test_what_was_packed_again_is_moved_into_an_initial_file_system(
    releases: tuple[Published, Published],
) -> None:
    (delta,) = releases[1].release.image.deltas
    of_archive = delta.rebuilds[-1]
    assert {name.partition("-")[0] for name in of_archive.recoders} == {"zstd"}
    # The module that stands in it packed has about 260 kB.
    assert of_archive.size < 5_000


def test_compressed_files_are_packed_again_and_cost_next_to_nothing(
    run: Callable[..., AssemblyReport], releases: tuple[Published, Published]
) -> None:
    report = run()
    assert report.way is Way.DELTA
    assert report.plan.rebuilt == frozenset(range(len(releases[1].release.image.deltas[0].rebuilds)))
    assert report.repaired_chunks == 0
    assert report.bytes_received == report.plan.download_bytes
    assert report.requests <= report.plan.requests
    assert report.bytes_received - releases[1].release.image.index.size == _delta_sizes(releases)[0]


def test_a_device_without_the_libraries_gets_the_files_as_they_are(
    run: Callable[..., AssemblyReport], releases: tuple[Published, Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overhaul.content.preparing.proved", lambda _names: frozenset())
    report = run()
    assert (report.way, report.plan.rebuilt) == (Way.DELTA, frozenset())
    assert report.repaired_chunks == 0
    expected = releases[1].release.image.index.size + _delta_sizes(releases)[1]
    # What lies between the parts that are fetched is fetched along when that costs less than a request.
    assert expected <= report.bytes_received < expected + 16 * 1024


def test_a_device_with_some_of_the_libraries_mixes_both(
    run: Callable[..., AssemblyReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "overhaul.content.preparing.proved", lambda names: {name for name in names if not name.startswith("zstd")}
    )
    report = run()
    assert report.plan.rebuilt
    assert report.repaired_chunks == 0
    assert report.plan.download_bytes <= report.bytes_received < report.plan.download_bytes + 16 * 1024


def test_without_room_for_a_work_area_nothing_is_packed_again(
    run: Callable[..., AssemblyReport], releases: tuple[Published, Published]
) -> None:
    report = run(cache=None)
    assert (report.way, report.plan.rebuilt) == (Way.DELTA, frozenset())
    report_again = run(limits=Limits(memory_bytes=200_000_000))
    assert report_again.kept_bytes == releases[1].release.image.size


def test_a_library_that_packs_otherwise_after_all_costs_the_delta_of_the_files_as_they_are(
    run: Callable[..., AssemblyReport], releases: tuple[Published, Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    lies = dict(recoders.RECODERS)
    lies["zstd-9"] = recoders.Recoder("zstd-9", recoders.RECODERS["zstd-3"].pack, 0)
    real_name = recoders.coder_name
    name = real_name("zstd-9")
    monkeypatch.setattr(recoders, "RECODERS", lies)
    monkeypatch.setattr(recoders, "coder_name", lambda kind: name if kind == "zstd-9" else real_name(kind))
    report = run()
    assert "could not be packed again" in report.refused[-1]
    assert report.repaired_chunks == 0
    assert report.bytes_received < sum(_delta_sizes(releases)) + releases[1].release.image.index.size


def test_a_damaged_old_file_is_mended_before_it_is_unpacked_once_more(
    run: Callable[..., AssemblyReport], releases: tuple[Published, Published], tmp_path: Path
) -> None:
    data = bytearray(releases[0].content)
    place = data.index(b"\x02\x21\x4c\x18")
    data[place + 5000 : place + 5100] = bytes(100)
    damaged = tmp_path / "damaged.ext4"
    damaged.write_bytes(data)
    report = run(source=damaged)
    assert report.way is Way.DELTA
    assert report.plan.rebuilt == frozenset(range(len(releases[1].release.image.deltas[0].rebuilds)))
    assert report.repaired_chunks == 0
    again, plain = _delta_sizes(releases)
    assert report.bytes_received < again + 0.25 * (plain - again)


def test_an_initial_file_system_made_of_a_damaged_file_is_made_once_more(
    run: Callable[..., AssemblyReport], releases: tuple[Published, Published], tmp_path: Path
) -> None:
    data = bytearray(releases[0].content)
    # The file is copied, and from there it is moved into the archive: no segment sees that it is damaged.
    place = next(found.start() for found in re.finditer(_UNCHANGED, data) if found.start() % 1024 == 0)
    data[place + 5000 : place + 5100] = bytes(100)
    damaged = tmp_path / "damaged.ext4"
    damaged.write_bytes(data)
    report = run(source=damaged)
    assert report.repaired_chunks > 0
    assert not report.refused
    again, plain = _delta_sizes(releases)
    assert report.bytes_received < again + 0.25 * (plain - again)


def test_an_update_killed_anywhere_while_packing_again_goes_on(
    run: Callable[..., AssemblyReport], releases: tuple[Published, Published], tmp_path: Path
) -> None:
    def begin() -> None:
        (tmp_path / "slot.img").write_bytes(b"")
        for kept in (tmp_path / "cache").glob("*"):
            kept.unlink()

    def update() -> None:
        run()

    points = run_killed_at(update, 1 << 30)
    assert points is not None
    one_group = max(part.size for part in releases[1].release.image.deltas[0].rebuilds)
    for share in (0.5, 0.7, 0.8, 0.9, 0.95, 0.99):
        begin()
        assert run_killed_at(update, int(points * share)) is None
        report = run()
        assert report.repaired_chunks == 0
        assert report.bytes_received <= _delta_sizes(releases)[0] + one_group


def test_a_preview_says_what_packing_again_saves(
    server: LoopbackServer, releases: tuple[Published, Published], tmp_path: Path
) -> None:
    first, second = releases
    materials = Materials(
        base_url=server.url,
        fetcher=open_fetcher(FetchSettings(allow_http=True)),
        source=first.image,
        source_index=first.index_sha256,
        cache=tmp_path / "cache",
    )
    plan = preview(second.release, materials)
    assert any("packed again here" in reason for reason in plan.reasons)
    assert plan.scratch_bytes > max(part.work_size for part in second.release.image.deltas[0].rebuilds)


def test_a_damaged_segment_of_a_group_costs_the_delta_and_not_the_update(
    run: Callable[..., AssemblyReport], server: LoopbackServer, releases: tuple[Published, Published]
) -> None:
    (delta,) = releases[1].release.image.deltas
    path = _file(server, delta.file)
    good = path.read_bytes()
    header = read_header(good[: delta.header_size])
    place = header.groups[-1].segments[0].offset
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    try:
        report = run()
    finally:
        path.write_bytes(good)
    assert report.way is Way.CHUNKS
    assert report.refused


def test_a_delta_that_ends_before_its_groups_costs_the_delta_and_not_the_update(
    run: Callable[..., AssemblyReport], server: LoopbackServer, releases: tuple[Published, Published]
) -> None:
    (delta,) = releases[1].release.image.deltas
    path = _file(server, delta.file)
    good = path.read_bytes()
    header = read_header(good[: delta.header_size])
    path.write_bytes(good[: header.groups[0].segments[0].offset])
    try:
        report = run()
    finally:
        path.write_bytes(good)
    assert report.way is Way.CHUNKS
    assert report.refused


def _file(server: LoopbackServer, ref: FileRef) -> Path:
    assert server.root is not None
    return server.root / ref.path
