"""Which of two images is newer, under both rules.

Where snapshots and versions stand in one list, or versions that differ in metadata only, "newer" is not transitive.
What such a list looks like when sorted then depends on the order it began with and on the way it is sorted; it is
sorted stably, by asking only whether one image is below another, as the servers do that these clients know.
"""

import functools
from collections.abc import Iterable

from overhaul.dialects.atomupd.catalogue import Entry
from overhaul.dialects.atomupd.manifest import Image


def is_below(left: Image, right: Image, *, fourth_number: bool) -> bool:
    """Whether `left` is older under the rules of branches.

    `fourth_number` lets versions that differ only behind their third number be told apart by the fourth, and by
    release and build id where that is equal too.
    """
    if left.version.precedence is None or right.version.precedence is None:
        return (left.release, left.build_id) < (right.release, right.build_id)
    if left.version.precedence != right.version.precedence:
        return left.version.precedence < right.version.precedence
    if left.version.text != right.version.text:
        if not fourth_number:
            return False
        if left.version.fourth_number != right.version.fourth_number:
            return left.version.fourth_number < right.version.fourth_number
    return (left.release, left.build_id) < (right.release, right.build_id)


def is_same(left: Image, right: Image) -> bool:
    """Whether both have one place in the order of the rules of branches; product, variant and branch do not matter."""
    if left.build_id != right.build_id or left.release != right.release:
        return False
    # A snapshot has no version that could differ.
    return (
        left.version.text == right.version.text or left.version.precedence is None or right.version.precedence is None
    )


def sorted_entries(entries: Iterable[Entry], *, fourth_number: bool, newest_first: bool = False) -> list[Entry]:
    """Return `entries`, the lowest first or last; equal ones keep their order."""
    listed = list(entries)
    if all(entry.image.version.precedence is None for entry in listed):
        return sorted(listed, key=lambda entry: (entry.image.release, entry.image.build_id), reverse=newest_first)
    if all(entry.image.version.precedence is not None and not entry.image.version.metadata for entry in listed):
        return sorted(
            listed,
            key=lambda entry: (entry.image.version.precedence, entry.image.release, entry.image.build_id),
            reverse=newest_first,
        )

    def compare(left: Entry, right: Entry) -> int:
        # Sorting asks for nothing but "below".
        return -1 if is_below(left.image, right.image, fourth_number=fourth_number) else 1

    return sorted(listed, key=functools.cmp_to_key(compare), reverse=newest_first)


def is_below_seed(left: Image, right: Image) -> bool:
    """Whether `left` is older under the seed rules; images of different kinds cannot be compared."""
    if left.version.precedence is None or right.version.precedence is None:
        both = left.version.precedence is None and right.version.precedence is None
        return both and (left.release, left.build_id) < (right.release, right.build_id)
    return left.version.precedence < right.version.precedence
