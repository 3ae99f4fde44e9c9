"""Frame tables of numbered chunks, for planners that never see their bytes."""

from collections.abc import Sequence

from overhaul.content.frames import Frame


def identity(number: int) -> bytes:
    """Return the id of a numbered chunk."""
    return number.to_bytes(32, "big")


def frame_table(numbers: Sequence[int], size: int = 25_000) -> list[Frame]:
    """Return the table of a pack that holds the numbered chunks of 60 000 bytes, each in `size` bytes."""
    return [Frame(identity(number), bytes(32), place * size, size, 60_000) for place, number in enumerate(numbers)]
