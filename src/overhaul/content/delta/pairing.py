"""Deciding which old file each file of the new image is to be told from.

Content comes first: a file whose blocks are all in one old file, wherever it lies, is only copied. A changed file
takes as its reference the old file of the same path, else of the same path when runs of digits are not looked at
(kernel releases, library versions), else of the same such base name. More was measured to find nothing.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from overhaul.content.ext4 import Extent, ImageFile

_DIGITS = re.compile(rb"[0-9]+")
#: Old files of one size and one beginning that are compared in full; bounds work on images made of such files.
_CANDIDATES_MAX = 8

#: Tells whether the blocks of an old and a new file are equal, byte by byte.
SameContent = Callable[[ImageFile, ImageFile], bool]
#: Returns a short sample of a file's bytes: equal files have equal samples.
Sample = Callable[[ImageFile], bytes]


class Pair(NamedTuple):
    """A file of the new image and the old file it has most in common with."""

    new: ImageFile
    old: ImageFile | None
    is_same: bool


def pair_files(
    old: Sequence[ImageFile],
    new: Sequence[ImageFile],
    *,
    same_content: SameContent,
    old_sample: Sample,
    new_sample: Sample,
) -> Iterator[Pair]:
    """Yield every new file that has blocks with its old counterpart, in the order of `new`."""
    by_path = _first(old, lambda file: file.path)
    changed: set[int] = set()
    for file in new:
        counterpart = by_path.get(file.path)
        if file.extents and counterpart and same_content(counterpart, file):
            yield Pair(file, counterpart, is_same=True)
        elif file.extents:
            changed.add(file.inode)
    rest = [file for file in new if file.inode in changed]
    yield from _pair_changed(
        old, rest, by_path, same_content=same_content, old_sample=old_sample, new_sample=new_sample
    )


def _pair_changed(
    old: Sequence[ImageFile],
    changed: Sequence[ImageFile],
    by_path: dict[bytes, ImageFile],
    *,
    same_content: SameContent,
    old_sample: Sample,
    new_sample: Sample,
) -> Iterator[Pair]:
    by_numberless_path = _first(old, lambda file: numberless(file.path))
    by_numberless_name = _first(old, _numberless_name)
    sizes = {file.stored_size for file in changed}
    alike: dict[tuple[int, bytes], list[ImageFile]] = {}
    for file in old:
        if file.extents and file.stored_size in sizes:
            alike.setdefault((file.stored_size, old_sample(file)), []).append(file)
    for file in changed:
        candidates = alike.get((file.stored_size, new_sample(file)), ())
        moved = next((other for other in candidates[:_CANDIDATES_MAX] if same_content(other, file)), None)
        if moved:
            yield Pair(file, moved, is_same=True)
            continue
        reference = (
            by_path.get(file.path)
            or by_numberless_path.get(numberless(file.path))
            or by_numberless_name.get(_numberless_name(file))
        )
        yield Pair(file, reference if reference and reference.extents else None, is_same=False)


def _first(files: Iterable[ImageFile], key: Callable[[ImageFile], bytes]) -> dict[bytes, ImageFile]:
    found: dict[bytes, ImageFile] = {}
    for file in files:
        if file.extents:
            found.setdefault(key(file), file)
    return found


def numberless(path: bytes) -> bytes:
    """Return `path` as it compares when runs of digits are not looked at."""
    return _DIGITS.sub(b"0", path)


def _numberless_name(file: ImageFile) -> bytes:
    return numberless(file.path.rpartition(b"/")[2])


def part_of(extents: Iterable[Extent], begin: int, end: int) -> Iterator[Extent]:
    """Yield where the bytes `begin` to `end` of what `extents` hold, taken in order, lie in the image."""
    position = 0
    for offset, size in extents:
        low, high = max(begin, position), min(end, position + size)
        if low < high:
            yield Extent(offset + low - position, high - low)
        position += size
