"""Reading exactly the bytes asked for, however the server sends them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.release.record import FileRef
from overhaul.transfer.fetcher import InterruptedTransferError, OversizeError, Request, Response
from overhaul.transfer.fetching import WrongDigestError, fetch_bytes, fetch_ref
from overhaul.transfer.ranges import ShortFileError, WrongRangeError, cut_parts, read_ranges


class Shelf:
    """Serves `content` in pieces, with or without ranges."""

    def __init__(
        self, content: bytes, *, piece: int = 7, ranges: bool = True, shift: int = 0, says_length: bool = True
    ) -> None:
        self.content = content
        self.piece = piece
        self.ranges = ranges
        self.shift = shift
        self.says_length = says_length
        self.requests = 0

    @contextmanager
    def fetch(self, request: Request) -> Iterator[Response]:
        self.requests += 1
        data, status = self.content, 200
        headers: dict[str, str] = {}
        if self.ranges and (request.start or request.end is not None):
            data, status = self.content[request.start : request.end], 206
            headers["content-range"] = f"bytes {request.start + self.shift}-{request.end}/{len(self.content)}"
        if self.says_length:
            headers["content-length"] = str(len(data))
        pieces = (data[begin : begin + self.piece] for begin in range(0, len(data), self.piece))
        yield Response(url=request.url, status=status, headers=headers, body=pieces)


_PARTS = st.lists(st.integers(0, 300), min_size=2, max_size=12, unique=True).map(sorted)


@given(bounds=_PARTS, piece=st.integers(1, 400), ranges=st.booleans())
def test_ranges_are_the_bytes_asked_for(bounds: list[int], piece: int, ranges: bool) -> None:
    content = bytes(index % 251 for index in range(300))
    wanted = list(zip(bounds[::2], bounds[1::2], strict=False))
    shelf = Shelf(content, piece=piece, ranges=ranges)
    got = [b"".join(body) for body in read_ranges(shelf, "https://x/", wanted)]
    assert got == [content[begin:end] for begin, end in wanted]
    assert shelf.requests == (len(wanted) if ranges else 1)


@given(bounds=_PARTS, piece=st.integers(1, 400), lead=st.integers(0, 20))
def test_parts_are_cut_out_of_a_body(bounds: list[int], piece: int, lead: int) -> None:
    content = bytes(index % 251 for index in range(300))
    parts = list(zip(bounds[::2], bounds[1::2], strict=False))
    begin = max(0, bounds[0] - lead)
    body = (content[at : at + piece] for at in range(begin, len(content), piece))
    assert list(cut_parts(body, begin, parts)) == [content[start:end] for start, end in parts]


def test_a_file_that_ends_before_its_signed_size_is_the_publishers_business() -> None:
    with pytest.raises(ShortFileError) as caught:
        fetch_bytes(Shelf(bytes(50)), "https://x/", limit_bytes=100, start=10, end=90)
    assert (caught.value.end_byte, caught.value.wanted_end_byte) == (50, 90)


def test_an_end_that_nothing_announced_is_an_interruption() -> None:
    with pytest.raises(InterruptedTransferError):
        fetch_bytes(Shelf(bytes(50), says_length=False), "https://x/", limit_bytes=100, start=10, end=90)


def test_an_answer_for_another_range_is_refused() -> None:
    with pytest.raises(WrongRangeError, match="mixes up ranges"):
        fetch_bytes(Shelf(bytes(50), shift=1), "https://x/", limit_bytes=100, start=10, end=20)


@pytest.mark.parametrize("says_length", [False, True])
def test_more_than_the_limit_is_refused(says_length: bool) -> None:
    with pytest.raises(OversizeError):
        fetch_bytes(Shelf(bytes(101), says_length=says_length), "https://x/", limit_bytes=100)
    assert len(fetch_bytes(Shelf(bytes(100)), "https://x/", limit_bytes=100)) == 100


def test_a_range_beyond_the_limit_is_not_even_asked_for() -> None:
    shelf = Shelf(bytes(500))
    with pytest.raises(OversizeError):
        fetch_bytes(shelf, "https://x/", limit_bytes=100, start=0, end=101)
    assert shelf.requests == 0


def test_an_empty_range_needs_no_request() -> None:
    shelf = Shelf(b"")
    assert fetch_bytes(shelf, "https://x/", limit_bytes=100, start=5, end=5) == b""
    assert shelf.requests == 0


def test_a_reference_is_checked_by_size_and_digest() -> None:
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    ref = FileRef(path="a/b", size=4, sha256=sha256)
    assert fetch_ref(Shelf(b"test"), "https://x", ref) == b"test"
    for wrong, refusal in ((b"tesT", WrongDigestError), (b"tes", ShortFileError)):
        with pytest.raises(refusal, match="https://x/a/b"):
            fetch_ref(Shelf(wrong), "https://x/", ref)
