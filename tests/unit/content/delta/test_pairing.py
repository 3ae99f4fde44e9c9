from collections.abc import Sequence

import pytest

from overhaul.content.delta.pairing import Pair, pair_files, part_of
from overhaul.content.ext4 import Extent, ImageFile


class _Image:
    """Files whose content is known by name alone."""

    def __init__(self, content: dict[bytes, bytes]) -> None:
        self.content = content
        self.files = [
            ImageFile(path, number, len(data), (Extent(number * 4096, 4096),) if data else ())
            for number, (path, data) in enumerate(content.items())
        ]


def _pairs(old: dict[bytes, bytes], new: dict[bytes, bytes]) -> dict[bytes, tuple[bytes | None, bool]]:
    ours, theirs = _Image(old), _Image(new)
    pairs: Sequence[Pair] = list(
        pair_files(
            ours.files,
            theirs.files,
            same_content=lambda mine, other: old[mine.path] == new[other.path],
            old_sample=lambda file: old[file.path][:2],
            new_sample=lambda file: new[file.path][:2],
        )
    )
    assert len({pair.new.path for pair in pairs}) == len(pairs)
    return {pair.new.path: (pair.old.path if pair.old else None, pair.is_same) for pair in pairs}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({b"/a": b"1"}, {b"/a": b"1"}, {b"/a": (b"/a", True)}),
        ({b"/a": b"1"}, {b"/a": b"2"}, {b"/a": (b"/a", False)}),
        ({b"/a": b"1"}, {b"/moved": b"1"}, {b"/moved": (b"/a", True)}),
        ({b"/a": b"1"}, {b"/b": b"2"}, {b"/b": (None, False)}),
        # The same content elsewhere is better than a changed file at the same path.
        ({b"/a": b"1", b"/b": b"2"}, {b"/b": b"1"}, {b"/b": (b"/a", True)}),
        # A kernel module of the release before.
        ({b"/lib/5.1/x.ko": b"1"}, {b"/lib/5.2/x.ko": b"2"}, {b"/lib/5.2/x.ko": (b"/lib/5.1/x.ko", False)}),
        ({b"/lib/libx.so.2": b"1"}, {b"/lib/libx.so.10": b"2"}, {b"/lib/libx.so.10": (b"/lib/libx.so.2", False)}),
        ({b"/old/libx.so.1": b"1"}, {b"/new/libx.so.2": b"2"}, {b"/new/libx.so.2": (b"/old/libx.so.1", False)}),
        # The same path goes before the same path without digits.
        ({b"/x1": b"1", b"/x2": b"2"}, {b"/x2": b"3"}, {b"/x2": (b"/x2", False)}),
        # Files without blocks travel with their inodes, and are no reference.
        ({b"/a": b""}, {b"/a": b"2", b"/b": b""}, {b"/a": (None, False)}),
    ],
)  # fmt: skip
def test_each_file_finds_its_reference(
    old: dict[bytes, bytes], new: dict[bytes, bytes], expected: dict[bytes, tuple[bytes | None, bool]]
) -> None:
    assert _pairs(old, new) == expected


def test_a_crowd_of_files_that_begin_alike_is_not_compared_in_full() -> None:
    old = {b"/%d" % number: b"ab%d" % number for number in range(1000)}
    compared = 0

    def same_content(mine: ImageFile, other: ImageFile) -> bool:
        nonlocal compared
        compared += 1
        return False

    image = _Image(old)
    new = _Image({b"/new/file": b"abc"})
    list(
        pair_files(
            image.files,
            new.files,
            same_content=same_content,
            old_sample=lambda _file: b"ab",
            new_sample=lambda _file: b"ab",
        )
    )
    assert 0 < compared <= 8


def test_a_part_of_extents_is_found_across_their_seams() -> None:
    extents = (Extent(1000, 10), Extent(5000, 5), Extent(0, 10))
    assert list(part_of(extents, 0, 25)) == [*extents]
    assert list(part_of(extents, 8, 17)) == [Extent(1008, 2), Extent(5000, 5), Extent(0, 2)]
    assert list(part_of(extents, 10, 12)) == [Extent(5000, 2)]
    assert list(part_of(extents, 25, 99)) == []
