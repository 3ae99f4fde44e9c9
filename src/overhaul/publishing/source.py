"""What a person hands to a publish (an image, a tree, a tar) becomes an image file to read."""

import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from overhaul.content.image import ImageShape, build_image, is_tar, unpack_tar
from overhaul.errors import InputError, OperatorError
from overhaul.host.processes import ProgramFailedError, run
from overhaul.progress import Progress

#: File system -> (offset of its mark, the mark).
_MARKS = {
    "ext4": (1080, b"\x53\xef"),
    "squashfs": (0, b"hsqs"),
    "erofs": (1024, b"\xe2\xe1\xf5\xe0"),
}
_HEAD_BYTES = 2048
_EXT4_64BIT = 0x80
#: No file system has blocks of more than 64 KiB; a number beyond is damage.
_BLOCK_BITS_MAX = 16
_TAR_SUFFIXES = frozenset({".tgz", ".tbz2", ".txz", ".tzst"})
#: Control characters that no text has and every image does, in its first kilobytes.
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


class MissingSourceError(InputError):
    """Nothing lies where the image should."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} does not exist or cannot be read; name an image, a directory tree or a tar.")


class NotAnImageError(InputError):
    """A file that no slot could hold as a system."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} is no image: {reason}; name an image, a directory tree or a tar.")


class CutShortError(InputError):
    """An image file that ends before its file system does: no device could run it."""

    def __init__(self, *, path: Path, filesystem: str, stated_bytes: int, size_bytes: int) -> None:
        self.path = path
        self.stated_bytes = stated_bytes
        self.size_bytes = size_bytes
        super().__init__(
            f"{path} is cut short: its {filesystem} file system takes {stated_bytes} bytes, and the file has "
            f"{size_bytes}; build or copy it again."
        )


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """An image file, and what is in it."""

    path: Path
    filesystem: str
    #: The directory it was made of, if any.
    tree: Path | None = None


class NoTreeError(OperatorError):
    """An image whose files cannot be looked at here."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The files of {path} cannot be read: {reason}; publish the tree or tar it was made of.")


def prepare_image(source: Path, *, shape: ImageShape, work: Path, progress: Progress) -> SourceImage:
    """Return the image that `source` is or becomes; a made one lies in the directory `work`."""
    if source.is_dir():
        return _from_tree(source, shape=shape, work=work, progress=progress)
    if source.exists() and not (source.is_file() or source.is_block_device()):
        raise NotAnImageError(path=source, reason="it is neither a file nor a block device")
    try:
        filesystem = detect_filesystem(source)
        packed = filesystem == "raw" and is_tar(source)
    except OSError as error:
        raise MissingSourceError(path=source) from error
    if not packed:
        if filesystem == "raw":
            _refuse_mistaken(source)
        else:
            _refuse_cut_short(source, filesystem)
        return SourceImage(path=source, filesystem=filesystem)
    tree = work / "tree"
    tree.mkdir()
    progress.begin(f"Unpacking {source.name}", None)
    unpack_tar(source, tree)
    progress.end()
    return _from_tree(tree, shape=shape, work=work, progress=progress)


@contextmanager
def tree_of(image: SourceImage, *, work: Path) -> Iterator[Path]:
    """Yield a directory with the files of `image`: what it was made of, or the image mounted for reading.

    Raises:
        NoTreeError: It holds no file system we know, or only root can mount it.
    """
    if image.tree is not None:
        yield image.tree
        return
    if image.filesystem == "raw":
        raise NoTreeError(path=image.path, reason="it holds no file system known here")
    if os.geteuid() != 0:
        raise NoTreeError(path=image.path, reason="only root can mount it")
    place = work / "mounted"
    place.mkdir()
    # A journal that must be played back would need to be written to: then the image is not finished.
    options = "loop,ro,nodev,nosuid,noexec" + (",noload" if image.filesystem == "ext4" else "")
    try:
        run(["mount", "-t", image.filesystem, "-o", options, image.path, place])
    except ProgramFailedError as error:
        raise NoTreeError(path=image.path, reason=str(error).rstrip(".")) from error
    try:
        yield place
    finally:
        run(["umount", place])


def detect_filesystem(image: Path) -> str:
    """Return `ext4`, `squashfs`, `erofs` or `raw` for the image file, by its content."""
    with image.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    for filesystem, (offset, mark) in _MARKS.items():
        if head[offset : offset + len(mark)] == mark:
            return filesystem
    return "raw"


def _refuse_cut_short(image: Path, filesystem: str) -> None:
    """Refuse an image that was not copied or built to its end; an empty one is refused elsewhere."""
    with image.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        size = stream.seek(0, os.SEEK_END)
    stated = _stated_bytes(head.ljust(_HEAD_BYTES, b"\0"), filesystem)
    if size < stated:
        raise CutShortError(path=image, filesystem=filesystem, stated_bytes=stated, size_bytes=size)


def _stated_bytes(head: bytes, filesystem: str) -> int:
    """Return how long a file system says it is; the offsets are those of the kernel's super blocks."""

    def number(layout: str, offset: int) -> int:
        return int(struct.unpack_from(layout, head, offset)[0])

    if filesystem == "squashfs":
        return number("<Q", 40)
    if filesystem == "erofs":
        return number("<I", 1024 + 36) << min(number("<B", 1024 + 12), _BLOCK_BITS_MAX)
    is_wide = number("<I", 1024 + 96) & _EXT4_64BIT
    blocks = number("<I", 1024 + 4) | (number("<I", 1024 + 336) << 32 if is_wide else 0)
    return blocks << min(10 + number("<I", 1024 + 24), _BLOCK_BITS_MAX)


def _refuse_mistaken(image: Path) -> None:
    """Refuse what has no known file system and was surely named by mistake."""
    if any(suffix == ".tar" or suffix in _TAR_SUFFIXES for suffix in image.suffixes[-2:]):
        raise NotAnImageError(path=image, reason="it is named like a tar and is none")
    with image.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head and not _NOT_TEXT.search(head):
        raise NotAnImageError(path=image, reason="it is a text")


def _from_tree(tree: Path, *, shape: ImageShape, work: Path, progress: Progress) -> SourceImage:
    image = work / "tree.ext4"
    build_image(tree, image, shape=shape, progress=progress)
    return SourceImage(path=image, filesystem="ext4", tree=tree)
