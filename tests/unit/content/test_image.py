"""The same tree makes the same image, with everything a tree holds."""

import os
import subprocess
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.content.image import ImageShape, UnusableTreeError, build_image, is_tar
from overhaul.progress import Silence
from overhaul.publishing.source import MissingSourceError, detect_filesystem, prepare_image


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "tool").write_bytes(os.urandom(50_000))
    (tree / "bin" / "tool").chmod(0o4755)
    (tree / "bin" / "same").hardlink_to(tree / "bin" / "tool")
    (tree / "link").symlink_to("bin/tool")
    (tree / 'with space "and quotes"').write_bytes(b"x")
    os.mkfifo(tree / "pipe")
    if os.geteuid() == 0:
        os.chown(tree / "bin", 123, 456)
    os.utime(tree / "bin" / "tool", (1, 1_600_000_000))
    return tree


def _build(tree: Path, image: Path, *, name: str = "kiosk", size_bytes: int | None = None) -> bytes:
    need("mkfs.ext4")
    build_image(tree, image, shape=ImageShape(name=name, size_bytes=size_bytes), progress=Silence())
    return image.read_bytes()


def _debugfs(image: Path, command: str) -> str:
    done = subprocess.run([need("debugfs"), "-R", command, str(image)], check=True, capture_output=True)
    return done.stdout.decode()


def test_an_image_holds_owners_rights_links_and_times(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    _build(tree, image)
    subprocess.run([need("e2fsck"), "-fn", str(image)], check=True, capture_output=True)

    told = _debugfs(image, "stat /bin/tool")
    assert "Mode:  04755" in told
    assert "Links: 2" in told
    assert "2020" in told
    assert "FIFO" in _debugfs(image, "stat /pipe")
    assert "bin/tool" in _debugfs(image, "stat /link")
    if os.geteuid() == 0:
        assert "User:   123   Group:   456" in _debugfs(image, "stat /bin")


def test_a_copy_made_later_and_read_in_between_makes_the_same_image(tree: Path, tmp_path: Path) -> None:
    first = _build(tree, tmp_path / "one")
    subprocess.run(["cp", "-a", str(tree), str(tmp_path / "copy")], check=True)
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (5, path.lstat().st_mtime), follow_symlinks=False)

    assert _build(tmp_path / "copy", tmp_path / "two") == first


def test_another_name_makes_another_file_system_id(tree: Path, tmp_path: Path) -> None:
    first, second = _build(tree, tmp_path / "one"), _build(tree, tmp_path / "two", name="phone")

    assert first[1024 + 104 : 1024 + 120] != second[1024 + 104 : 1024 + 120]


def test_a_wanted_size_is_kept(tree: Path, tmp_path: Path) -> None:
    assert len(_build(tree, tmp_path / "image", size_bytes=20 << 20)) == 20 << 20


def test_a_tree_that_does_not_fit_is_refused_and_leaves_no_image(tree: Path, tmp_path: Path) -> None:
    (tree / "big").write_bytes(os.urandom(3 << 20))

    with pytest.raises(UnusableTreeError, match="--image-size"):
        _build(tree, tmp_path / "image", size_bytes=2 << 20)
    assert not (tmp_path / "image").exists()


def test_many_small_files_fit_the_computed_size(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for folder in range(20):
        (tree / str(folder)).mkdir(parents=True)
        for number in range(100):
            (tree / str(folder) / f"a-rather-long-file-name-{number}").write_bytes(b"x" * (number % 5))

    assert len(_build(tree, tmp_path / "image")) < 24 << 20


@pytest.mark.parametrize(
    ("command", "filesystem"),
    [
        (["mkfs.ext4", "-q", "{image}", "4M"], "ext4"),
        (["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress"], "squashfs"),
        (["mkfs.erofs", "--quiet", "{image}", "{tree}"], "erofs"),
    ],
)
def test_a_file_system_is_known_by_its_mark(tree: Path, tmp_path: Path, command: list[str], filesystem: str) -> None:
    image = tmp_path / "image"
    program = need(command[0])
    arguments = [word.format(tree=tree, image=image) for word in command[1:]]
    subprocess.run([program, *arguments], check=True, capture_output=True)

    assert detect_filesystem(image) == filesystem
    assert prepare_image(image, shape=ImageShape(name="x"), work=tmp_path, progress=Silence()).path == image


def test_other_bytes_are_raw_and_no_tar(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"anything")

    assert detect_filesystem(tmp_path / "image") == "raw"
    assert not is_tar(tmp_path / "image")


@pytest.mark.parametrize("flags", ["-cf", "-czf", "-cJf"])
def test_a_tar_is_known_by_its_content(tree: Path, tmp_path: Path, flags: str) -> None:
    subprocess.run(["tar", "-C", str(tree), flags, str(tmp_path / "archive"), "."], check=True)

    assert is_tar(tmp_path / "archive")


def test_a_source_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError, match="nowhere"):
        prepare_image(tmp_path / "nowhere", shape=ImageShape(name="x"), work=tmp_path, progress=Silence())
