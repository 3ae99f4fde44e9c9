"""What this device can give: chunks of the releases in its slots, each compared with its index before it goes out, and
what it kept of the published files that brought them: indexes, and the headers and segments of deltas.

A slot that runs may have been written to; what then differs from the release is this device's own, and stays here.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from overhaul.content.cache import ContentCache
from overhaul.content.index import Index, chunk_id, read_index
from overhaul.content.target import ImageReader, SlotUnusableError
from overhaul.errors import TrustError
from overhaul.install.slots import Slot
from overhaul.install.state import DeviceState
from overhaul.transfer.neighbour import MAX_RUN_BYTES


@dataclass
class Shelf:
    """The slots of a device whose releases are known."""

    slots: dict[str, Slot]
    #: Loads the state as it is now.
    state: Callable[[], DeviceState]
    cache: ContentCache
    _known: dict[str, Index] = field(default_factory=dict)

    def has_image(self, index_sha256: str) -> bool:
        """Tell whether a slot holds the image, and its index is at hand."""
        return self._slot(index_sha256) is not None and self._index(index_sha256) is not None

    def size_of_piece(self, sha256: str) -> int | None:
        """Return the bytes of a published file, or of a part of one, that this device has kept."""
        return self.cache.size_of(sha256)

    def piece(self, sha256: str) -> bytes | None:
        """Return what has this digest, if it is here and whole."""
        return self.cache.get(sha256)

    def size_of(self, index_sha256: str, first: int, last: int) -> int | None:
        """Return the bytes of a run of chunks, or None when it is none that may be asked for."""
        index = self._index(index_sha256) if self._slot(index_sha256) is not None else None
        if index is None or not 0 <= first <= last < len(index):
            return None
        size = index.chunks[last].end - index.chunks[first].offset
        return size if size <= MAX_RUN_BYTES or first == last else None

    def chunks(self, index_sha256: str, first: int, last: int) -> bytes | None:
        """Return a run of chunks, or None when the slot does not hold all of them as they were released."""
        path, index = self._slot(index_sha256), self._index(index_sha256)
        if path is None or index is None or self.size_of(index_sha256, first, last) is None:
            return None
        wanted = index.chunks[first : last + 1]
        origin = wanted[0].offset
        try:
            with ImageReader(path) as reader:
                data = reader.read(origin, wanted[-1].end - origin)
        except SlotUnusableError:
            return None
        view = memoryview(data)
        is_right = all(chunk_id(view[one.offset - origin : one.end - origin]) == one.id for one in wanted)
        return data if is_right else None

    def _slot(self, index_sha256: str) -> Path | None:
        # A slot that is being written has no content in the state.
        for name, content in self.state().slots.items():
            if content.index_sha256 == index_sha256 and name in self.slots:
                return self.slots[name].path
        return None

    def _index(self, index_sha256: str) -> Index | None:
        if index_sha256 not in self._known:
            data = self.cache.get(index_sha256)
            try:
                # One at a time: an index of a big image takes megabytes.
                self._known = {} if data is None else {index_sha256: read_index(data)}
            except TrustError:
                return None
        return self._known.get(index_sha256)
