"""Merging two changed versions of a text by lines, or not at all.

The rule is diff3's: lines that both versions still have divide the text; between two such places a change of one side
is taken, equal changes are taken once, and two different ones are a conflict. Changes without a common line between
them touch each other and are a conflict, too, so nothing is merged that a person would want to look at. A version
with a conflict is not merged in part: half of each side's configuration is nobody's.
"""

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

#: Above these, comparing could take minutes on a small device.
MAX_LINES = 4000
MAX_TEXT = 256 * 1024


class _Common(NamedTuple):
    """Lines that all three versions have."""

    base: int
    mine: int
    theirs: int
    length: int


def merge_lines(base: bytes, mine: bytes, theirs: bytes) -> bytes | None:
    """Return the text with the changes of both sides, or None where they conflict or are no texts."""
    if any(b"\0" in text or len(text) > MAX_TEXT for text in (base, mine, theirs)):
        return None
    versions = [text.splitlines(keepends=True) for text in (base, mine, theirs)]
    if any(len(lines) > MAX_LINES for lines in versions):
        return None
    old, ours, new = versions
    merged: list[bytes] = []
    at_base = at_mine = at_theirs = 0
    for common in _commons(old, ours, new):
        between = _settle(old[at_base : common.base], ours[at_mine : common.mine], new[at_theirs : common.theirs])
        if between is None:
            return None
        merged += between
        merged += old[common.base : common.base + common.length]
        at_base, at_mine, at_theirs = (start + common.length for start in common[:3])
    return b"".join(merged)


def _settle(base: list[bytes], mine: list[bytes], theirs: list[bytes]) -> list[bytes] | None:
    if mine in (base, theirs):
        return theirs
    return mine if theirs == base else None


def _commons(base: Sequence[bytes], mine: Sequence[bytes], theirs: Sequence[bytes]) -> Iterator[_Common]:
    """Yield the runs that all three share, ascending; the last one is empty and stands at the ends."""
    with_mine = SequenceMatcher(None, base, mine, autojunk=False).get_matching_blocks()
    with_theirs = SequenceMatcher(None, base, theirs, autojunk=False).get_matching_blocks()
    one = other = 0
    while one < len(with_mine) and other < len(with_theirs):
        first, second = with_mine[one], with_theirs[other]
        begin = max(first.a, second.a)
        end = min(first.a + first.size, second.a + second.size)
        if begin < end:
            yield _Common(begin, first.b + begin - first.a, second.b + begin - second.a, end - begin)
        if first.a + first.size < second.a + second.size:
            one += 1
        else:
            other += 1
    yield _Common(len(base), len(mine), len(theirs), 0)
