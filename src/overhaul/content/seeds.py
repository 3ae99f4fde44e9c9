"""Local bytes worth reusing: images whose chunks can be taken instead of fetched.

A seed is believed nothing. Its index, known or made by cutting it here, only says where a chunk ought to lie;
every chunk is hashed when it is taken, so a seed that changed or rots costs a fetch and nothing else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from overhaul.content.index import Chunk, chunk_id
from overhaul.content.target import ImageReader

#: Chunks that lie together in the seed and in the image are read together up to this size.
WINDOW_BYTES = 4 * 1024 * 1024


class Place(NamedTuple):
    """Where a chunk ought to lie."""

    reader: ImageReader
    offset: int


class Seeds:
    """All seeds of one assembly; the one that was added first is asked first."""

    def __init__(self) -> None:
        self._places: dict[bytes, list[Place]] = {}

    def __contains__(self, identity: object) -> bool:
        return identity in self._places

    def add(self, reader: ImageReader, chunks: Iterable[Chunk]) -> None:
        """Offer the chunks of an image."""
        for chunk in chunks:
            if chunk.end <= reader.size:
                places = self._places.setdefault(chunk.id, [])
                # Equal chunks repeat within an image; a second place in the same one is hardly ever worth it.
                if not any(place.reader is reader for place in places):
                    places.append(Place(reader, chunk.offset))

    def places(self, identity: bytes) -> Sequence[Place]:
        """Return where the chunk ought to lie, best first."""
        return self._places.get(identity, ())


@dataclass(frozen=True)
class Window:
    """Chunks that lie behind one another in the image, and in the same seed in the same way."""

    place: Place
    chunks: tuple[Chunk, ...]

    @property
    def size(self) -> int:
        """Bytes of all its chunks."""
        return self.chunks[-1].end - self.chunks[0].offset

    def good_runs(self) -> list[tuple[list[Chunk], memoryview]]:
        """Read the window and return the runs of chunks that are right, with their bytes."""
        data = memoryview(self.place.reader.read(self.place.offset, self.size))
        origin = self.chunks[0].offset
        runs: list[list[Chunk]] = []
        for chunk in self.chunks:
            if chunk_id(data[chunk.offset - origin : chunk.end - origin]) != chunk.id:
                continue
            if runs and runs[-1][-1].end == chunk.offset:
                runs[-1].append(chunk)
            else:
                runs.append([chunk])
        return [(run, data[run[0].offset - origin : run[-1].end - origin]) for run in runs]


def plan_windows(chunks: Iterable[Chunk], seeds: Seeds, *, choice: int) -> list[Window]:
    """Group chunks by where their place number `choice` lies; chunks without one are left out."""
    windows: list[Window] = []
    group: list[Chunk] = []
    place: Place | None = None
    for chunk in chunks:
        places = seeds.places(chunk.id)
        if len(places) <= choice:
            continue
        found = places[choice]
        if (
            place is not None
            and found.reader is place.reader
            and chunk.offset == group[-1].end
            and found.offset - place.offset == chunk.offset - group[0].offset
            and chunk.end - group[0].offset <= WINDOW_BYTES
        ):
            group.append(chunk)
            continue
        if place is not None:
            windows.append(Window(place, tuple(group)))
        place, group = found, [chunk]
    if place is not None:
        windows.append(Window(place, tuple(group)))
    return windows
