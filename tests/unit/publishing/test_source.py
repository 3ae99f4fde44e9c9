"""What is surely no image is refused before anything is published of it."""

import os
import subprocess
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.content.image import ImageShape
from overhaul.progress import Silence
from overhaul.publishing.source import CutShortError, MissingSourceError, NotAnImageError, SourceImage, prepare_image


def _prepare(source: Path, work: Path) -> SourceImage:
    return prepare_image(source, shape=ImageShape(name="test"), work=work, progress=Silence())


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(NotAnImageError, match="neither a file nor a block device"):
        _prepare(tmp_path / "pipe", tmp_path)


def test_a_text_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "image.img").write_text("<html>404 Größe not found</html>\n")

    with pytest.raises(NotAnImageError, match="it is a text"):
        _prepare(tmp_path / "image.img", tmp_path)


@pytest.mark.parametrize("name", ["rootfs.tar", "rootfs.tar.zst", "rootfs.tgz"])
def test_what_is_named_like_a_tar_must_be_one(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(4096))

    with pytest.raises(NotAnImageError, match="named like a tar"):
        _prepare(tmp_path / name, tmp_path)


@pytest.mark.parametrize(
    ("filesystem", "command"),
    [
        ("ext4", ["mkfs.ext4", "-q", "-d", "{tree}", "{image}", "4M"]),
        ("ext4", ["mkfs.ext4", "-q", "-O", "^64bit", "-b", "1024", "-d", "{tree}", "{image}", "4M"]),
        ("squashfs", ["mksquashfs", "{tree}", "{image}", "-quiet", "-no-progress", "-nopad"]),
        ("erofs", ["mkfs.erofs", "--quiet", "{image}", "{tree}"]),
    ],
)
def test_an_image_that_ends_before_its_file_system_is_refused(
    tmp_path: Path, filesystem: str, command: list[str]
) -> None:
    image, tree = tmp_path / "image", tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(20_000))
    words = [word.format(tree=tree, image=image) for word in command[1:]]
    subprocess.run([need(command[0]), *words], check=True, capture_output=True)
    whole = image.stat().st_size

    assert _prepare(image, tmp_path).filesystem == filesystem
    os.truncate(image, whole - 1)
    with pytest.raises(CutShortError, match=f"cut short: its {filesystem} file system takes {whole} bytes") as caught:
        _prepare(image, tmp_path)
    assert (caught.value.stated_bytes, caught.value.size_bytes) == (whole, whole - 1)


def test_an_image_of_a_file_system_nobody_knows_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "image-1.2.img").write_bytes(b"LUKS\xba\xbe" + bytes(4096))

    assert _prepare(tmp_path / "image-1.2.img", tmp_path).filesystem == "raw"


def test_what_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingSourceError):
        _prepare(tmp_path / "nothing", tmp_path)
