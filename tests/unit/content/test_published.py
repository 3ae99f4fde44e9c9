"""Published files as they are fetched: an error gives the connection back, and what is at hand is not fetched."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

import pytest

from overhaul.content.cache import ContentCache
from overhaul.content.delta.segments import Segment
from overhaul.content.frames import Frame
from overhaul.content.packranges import PackRange
from overhaul.content.published import PublishedFiles
from overhaul.release.record import DeltaRef, FileRef, ImageRecord, PackRef
from overhaul.transfer.fetcher import OversizeError, Request, Response
from overhaul.transfer.ranges import ShortFileError

_FILE = FileRef(path="content/any", size=100, sha256="00" * 32)
_IMAGE = ImageRecord(size=1, filesystem="raw", index=_FILE, packs=(PackRef(pack=_FILE, frames=_FILE),))
_FRAME = Frame(bytes(32), bytes(32), 0, 100, 200)
_SEGMENT = Segment(offset=0, size=100, sha256=bytes(32), output_sha256=bytes(32), streams=(), units=())
_DELTA = DeltaRef(
    source_index="00" * 32,
    source_version="1",
    source_build_id="1",
    file=_FILE,
    header_size=1,
    header_sha256="00" * 32,
    coders=(),
)


class ShortServer:
    """A server whose every file has ten bytes."""

    def __init__(self) -> None:
        self.open = 0

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Answer with the whole file."""
        self.open += 1
        try:
            yield Response(url=request.url, status=200, headers={"content-length": "10"}, body=iter([b"0123456789"]))
        finally:
            self.open -= 1


@pytest.mark.parametrize(
    "pieces",
    [
        lambda files: files.frames([PackRange(0, 0, 100, (_FRAME,))]),
        lambda files: files.segments(_DELTA, [_SEGMENT]),
    ],
    ids=["frames", "segments"],
)
def test_a_file_that_is_too_short_leaves_no_connection_open_while_its_error_is_held(
    pieces: Callable[[PublishedFiles], Iterator[bytes]],
) -> None:
    server = ShortServer()
    files = PublishedFiles(fetcher=server, base_url="memory:", image=_IMAGE, cache=ContentCache(None))

    with pytest.raises(ShortFileError) as held:
        list(pieces(files))

    assert held.value.end_byte == 10
    assert server.open == 0


def test_no_more_is_read_of_an_index_than_one_of_the_slot_could_have() -> None:
    class EndlessServer:
        """A server that never ends its answer."""

        @contextmanager
        def fetch(self, request: Request) -> Iterator[Response]:
            """Answer with zeros."""
            yield Response(url=request.url, status=200, headers={}, body=repeat(bytes(512)))

    files = PublishedFiles(fetcher=EndlessServer(), base_url="memory:", image=_IMAGE, cache=ContentCache(None))

    with pytest.raises(OversizeError) as held:
        files.other_index("00" * 32, image_bytes=1 << 20)

    assert held.value.limit_bytes < 4096


class RangeServer:
    """A server of one file that answers single ranges."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[int, int]] = []

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        """Answer with a range."""
        start, end = request.start, request.end
        assert end is not None
        self.asked.append((start, end))
        told = {"content-length": str(end - start), "content-range": f"bytes {start}-{end - 1}/{len(self.data)}"}
        yield Response(url=request.url, status=206, headers=told, body=iter([self.data[start:end]]))


_DATA = bytes(range(1, 101)) * 1000
_CUTS = [(0, 10_000), (10_000, 40_000), (40_000, 90_000), (90_000, 100_000)]
_SEGMENTS = [
    Segment(
        offset=start,
        size=end - start,
        sha256=hashlib.sha256(_DATA[start:end]).digest(),
        output_sha256=bytes(32),
        streams=(),
        units=(),
    )
    for start, end in _CUTS
]


@pytest.mark.parametrize("damaged", [False, True])
def test_segments_at_hand_are_not_fetched_unless_they_are_damaged(tmp_path: Path, damaged: bool) -> None:
    server, cache = RangeServer(_DATA), ContentCache(tmp_path)
    start, end = _CUTS[2]
    name = _SEGMENTS[2].sha256.hex()
    cache.put(name, _DATA[start:end])
    if damaged:
        (tmp_path / name).write_bytes(b"something else")
    files = PublishedFiles(fetcher=server, base_url="memory:", image=_IMAGE, cache=cache)

    assert list(files.segments(_DELTA, _SEGMENTS)) == [_DATA[begin:end] for begin, end in _CUTS]
    fetched = {place for begin, stop in server.asked for place in range(begin, stop, 10_000)}
    assert (start in fetched) == damaged
    assert {0, 10_000, 90_000} <= fetched


@pytest.mark.parametrize("keeps", [False, True])
def test_right_segments_are_kept_for_neighbours_where_that_is_asked_for(tmp_path: Path, keeps: bool) -> None:
    wrong = bytearray(_DATA)
    wrong[10_000] ^= 1
    files = PublishedFiles(
        fetcher=RangeServer(bytes(wrong)), base_url="memory:", image=_IMAGE, cache=ContentCache(tmp_path),
        keeps_segments=keeps,
    )  # fmt: skip

    list(files.segments(_DELTA, _SEGMENTS))

    names = [segment.sha256.hex() for segment in _SEGMENTS]
    assert [(tmp_path / name).exists() for name in names] == ([True, False, True, True] if keeps else [False] * 4)
    assert set(names) <= files.used
