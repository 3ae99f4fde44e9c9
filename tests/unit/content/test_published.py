"""Published files as they are fetched: an error gives the connection back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from overhaul.content.cache import ContentCache
from overhaul.content.delta.segments import Segment
from overhaul.content.frames import Frame
from overhaul.content.plan import PackRange
from overhaul.content.published import PublishedFiles
from overhaul.release.record import DeltaRef, FileRef, ImageRecord, PackRef
from overhaul.transfer.fetcher import Request, Response
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
