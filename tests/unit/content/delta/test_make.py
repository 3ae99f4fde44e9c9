import gzip
import hashlib
import random
from pathlib import Path

import pytest
from tests.unit.content.delta.images import code_like, edited, make_image, write_tree

from overhaul.content.delta.apply import apply_copies, apply_segment, segment_is_done
from overhaul.content.delta.coders import KNOWN_CODERS
from overhaul.content.delta.errors import MalformedDeltaError, UnsuitableImageError
from overhaul.content.delta.format import PREFIX_SIZE, DeltaHeader, header_size_of, read_header
from overhaul.content.delta.make import MadeDelta, make_delta
from overhaul.progress import Silence


class _Memory:
    """An image in memory that notes what is written where."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.written: list[tuple[int, int]] = []

    def read(self, offset: int, size: int, /) -> bytes:
        assert offset + size <= len(self.data)
        return bytes(self.data[offset : offset + size])

    def write(self, offset: int, data: bytes, /) -> None:
        assert offset + len(data) <= len(self.data)
        self.data[offset : offset + len(data)] = data
        self.written.append((offset, len(data)))


def _header(delta: bytes) -> DeltaHeader:
    return read_header(delta[: header_size_of(delta[:PREFIX_SIZE])])


def _apply(delta: bytes, old: bytes) -> tuple[bytes, list[bool]]:
    header = _header(delta)
    assert header.source_size == len(old)
    source, target = _Memory(old), _Memory(bytes(header.target_size))
    apply_copies(header, source, target, Silence())
    answers = [apply_segment(s, delta[s.offset : s.end], source, target) for s in header.segments]
    assert not source.written
    assert sum(size for _, size in target.written) == sum(run.size for run in header.written)
    return bytes(target.data), answers


def _make(tmp_path: Path, old: Path, new: Path, *, workers: int = 2) -> tuple[MadeDelta, bytes]:
    out = tmp_path / "out.delta"
    made = make_delta(old, new, out, workers=workers, progress=Silence())
    return made, out.read_bytes()


def _old_files(chance: random.Random) -> dict[str, bytes]:
    files = {
        "bin/tool": code_like(chance, 300_000),
        "lib/modules/6.1.0-55/net/driver.ko": code_like(chance, 70_000),
        "lib/modules/6.1.0-55/fs/unchanged.ko": code_like(chance, 50_000),
        "lib/libbig.so.1": code_like(chance, 2_600_000),
        "doc/readme.gz": gzip.compress(code_like(chance, 90_000), mtime=0),
        "boot/initrd": chance.randbytes(1_200_000),
        "etc/motd": b"welcome\n",
        "etc/empty": b"",
    }
    files.update({f"etc/many/{number}": chance.randbytes(chance.randrange(1, 6000)) for number in range(60)})
    return files


def _new_files(chance: random.Random, old: dict[str, bytes]) -> dict[str, bytes]:
    files = {name.replace("-55/", "-56/"): data for name, data in old.items()}
    for name in list(files):
        way = chance.randrange(8)
        if name.startswith("etc/many/") and way == 0:
            del files[name]
        elif name.startswith("etc/many/") and way == 1:
            files[f"moved/{name}"] = files.pop(name)
        elif way == 2 or name in {"bin/tool", "lib/libbig.so.1", "boot/initrd"}:
            files[name] = edited(chance, files[name])
    files["boot/initrd"] = files["boot/initrd"][:100_000] + chance.randbytes(1_000_000)
    files["lib/libbig.so.2"] = files.pop("lib/libbig.so.1")
    files["etc/brand-new"] = chance.randbytes(10_000)
    return files


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    chance = random.Random(11)
    old = _old_files(chance)
    return (
        make_image(write_tree(tmp_path / "a", old), tmp_path / "old.ext4"),
        make_image(write_tree(tmp_path / "b", _new_files(chance, old)), tmp_path / "new.ext4"),
    )


@pytest.mark.parametrize("seed", range(8))
def test_applying_a_delta_gives_the_new_image(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    options = chance.choice([(), ("-b", "1024"), ("-O", "^extent,^64bit"), ("-O", "^metadata_csum")])
    old_files = _old_files(chance)
    old = make_image(write_tree(tmp_path / "a", old_files), tmp_path / "old.ext4", *options)
    new_files = _new_files(chance, old_files)
    new_size_kib = chance.choice([12, 16, 24]) * 1024
    new = make_image(write_tree(tmp_path / "b", new_files), tmp_path / "new.ext4", size_kib=new_size_kib)
    made, delta = _make(tmp_path, old, new)
    result, answers = _apply(delta, old.read_bytes())
    assert hashlib.sha256(result).digest() == hashlib.sha256(new.read_bytes()).digest()
    assert all(answers)
    assert (made.size, made.sha256) == (len(delta), hashlib.sha256(delta).hexdigest())
    head = delta[: made.header_size]
    assert made.header_sha256 == hashlib.sha256(head).hexdigest()
    assert made.coders == read_header(head).coders
    assert set(made.coders) <= KNOWN_CODERS
    assert made.size < sum(map(len, new_files.values())) // 2


def test_the_report_names_each_changed_file_its_reference_and_its_price(
    tmp_path: Path, images: tuple[Path, Path]
) -> None:
    made, delta = _make(tmp_path, *images)
    reports = {report.path: report for report in made.files}
    assert reports[b"/lib/libbig.so.2"].reference == b"/lib/libbig.so.1"
    assert reports[b"/lib/libbig.so.2"].method in {"covers", "copy"}
    assert reports[b"/lib/libbig.so.2"].delta_size < 100_000
    assert "zstd-prefix" in reports[b"/boot/initrd"].method
    assert reports[b"/etc/brand-new"].reference is None
    assert reports[b"/etc/brand-new"].delta_size > 9_000
    assert b"/lib/modules/6.1.0-56/fs/unchanged.ko" not in reports
    assert list(reports) == sorted(reports)
    total = sum(report.delta_size for report in made.files) + made.metadata_size
    assert abs(total + made.header_size - len(delta)) < len(reports)


def test_the_same_images_give_the_same_bytes_with_any_number_of_workers(
    tmp_path: Path, images: tuple[Path, Path]
) -> None:
    _, first = _make(tmp_path, *images, workers=1)
    _, second = _make(tmp_path, *images, workers=5)
    assert first == second


def test_an_image_told_from_itself_is_copied(tmp_path: Path, images: tuple[Path, Path]) -> None:
    made, delta = _make(tmp_path, images[0], images[0])
    assert made.files == ()
    assert made.size < 1000
    assert _apply(delta, images[0].read_bytes())[0] == images[0].read_bytes()


def test_damage_of_the_old_image_is_told_and_nothing_else_is_written(tmp_path: Path, images: tuple[Path, Path]) -> None:
    _, delta = _make(tmp_path, *images)
    header = _header(delta)
    chance = random.Random(5)
    old = bytearray(images[0].read_bytes())
    unit = max((unit for s in header.segments for unit in s.units), key=lambda unit: unit.window_size)
    for run in unit.window:
        old[run.offset : run.end] = chance.randbytes(run.size)
    result, answers = _apply(delta, bytes(old))
    assert not all(answers)
    new = images[1].read_bytes()
    for segment, answer in zip(header.segments, answers, strict=True):
        right = all(result[run.offset : run.end] == new[run.offset : run.end] for run in segment.output_runs)
        assert right == answer


def test_a_done_segment_is_known_by_the_bytes_it_would_write(tmp_path: Path, images: tuple[Path, Path]) -> None:
    _, delta = _make(tmp_path, *images)
    target = _Memory(images[1].read_bytes())
    for segment in _header(delta).segments:
        assert segment_is_done(segment, target)
        run = next(segment.output_runs)
        target.data[run.end - 1] ^= 1
        assert not segment_is_done(segment, target)


def test_a_payload_with_any_byte_changed_is_refused_before_anything_is_written(
    tmp_path: Path, images: tuple[Path, Path]
) -> None:
    _, delta = _make(tmp_path, *images)
    source, target = _Memory(images[0].read_bytes()), _Memory(images[1].read_bytes())
    chance = random.Random(8)
    for segment in _header(delta).segments:
        payload = bytearray(delta[segment.offset : segment.end])
        payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
        for wrong in (bytes(payload), delta[segment.offset : segment.end - 1], b""):
            with pytest.raises(MalformedDeltaError, match="signed digest"):
                apply_segment(segment, wrong, source, target)
    assert not target.written


@pytest.mark.parametrize("which", ["old", "new"])
def test_what_is_no_ext4_is_refused_by_name_and_leaves_no_file(
    tmp_path: Path, images: tuple[Path, Path], which: str
) -> None:
    for content in (b"", random.Random(1).randbytes(100_000)):
        strange = tmp_path / "strange.img"
        strange.write_bytes(content)
        old, new = (strange, images[1]) if which == "old" else (images[0], strange)
        with pytest.raises(UnsuitableImageError, match=r"strange\.img"):
            _make(tmp_path, old, new)
        assert not (tmp_path / "out.delta").exists()


def test_inodes_are_told_without_their_check_sums_and_belong_to_no_file(tmp_path: Path) -> None:
    files = {f"d{number % 9}/file-{number}": b"x" * (number % 2) for number in range(1500)}
    old = make_image(write_tree(tmp_path / "a", files), tmp_path / "old.ext4")
    new = make_image(write_tree(tmp_path / "b", {**files, "a-first": b""}), tmp_path / "new.ext4")
    made, _data = _make(tmp_path, old, new)
    (part,) = made.rebuilds
    assert [name.partition(".")[0] for name in part.recoders] == ["ext4-inodes"]
    # The sums of 1 500 inodes are 6 kB, one half of each would be 3; the times of the two trees, which differ from run
    # to run, make either form some hundred bytes bigger or smaller.
    assert part.size < part.instead_size - 4000
    assert {report.path for report in made.files} <= {b"/" + name.encode() for name in [*files, "a-first"]}
    assert made.metadata_size >= part.size // 2
