"""The Range header against the rules of RFC 9110."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.server.ranges import MAX_SPANS, Span, UnsatisfiableRangeError, parse_range


@pytest.mark.parametrize(
    ("header", "spans"),
    [
        ("bytes=0-0", [(0, 1)]),
        ("bytes=0-", [(0, 100)]),
        ("bytes=90-1000", [(90, 100)]),
        ("bytes=-7", [(93, 100)]),
        ("bytes=-1000", [(0, 100)]),
        ("BYTES=5-6", [(5, 7)]),
        ("bytes=50-59, 0-9", [(50, 60), (0, 10)]),
        ("bytes=0-9,200-300", [(0, 10)]),
        (None, []),
        ("", []),
        ("bytes=", []),
        ("bytes=9-5", []),
        ("bytes=0-9,9-5", []),
        ("bytes=a-b", []),
        ("bytes=-", []),
        ("bytes=1-2,", []),
        ("bytes=+1-2", []),
        ("bytes=1 - 2", []),
        ("bytes=١-٢", []),
        ("lines=1-2", []),
        ("bytes=0-60,10-80", []),
    ],
)
def test_a_header_names_these_spans_of_a_hundred_bytes(header: str | None, spans: list[tuple[int, int]]) -> None:
    assert [(span.start, span.end) for span in parse_range(header, size=100)] == spans


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_spans_that_hold_no_byte_are_refused_with_the_size(header: str, size: int) -> None:
    with pytest.raises(UnsatisfiableRangeError, match=str(size)) as refusal:
        parse_range(header, size=size)

    assert refusal.value.http_status == 416


def test_more_spans_than_are_sensible_are_ignored() -> None:
    spans = [f"{at * 2}-{at * 2}" for at in range(MAX_SPANS + 1)]

    assert parse_range("bytes=" + ",".join(spans[:-1]), size=10_000) != ()
    assert parse_range("bytes=" + ",".join(spans), size=10_000) == ()


@given(st.text(max_size=60), st.integers(0, 1000))
def test_no_header_names_bytes_outside_the_file(text: str, size: int) -> None:
    for header in (text, "bytes=" + text):
        try:
            spans = parse_range(header, size=size)
        except UnsatisfiableRangeError:
            continue
        assert all(0 <= span.start < span.end <= size for span in spans)
        assert sum(span.size for span in spans) <= size


@given(st.integers(1, 10**12).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1))), st.data())
def test_a_span_inside_the_file_comes_back_as_it_was_asked_for(case: tuple[int, int], data: st.DataObject) -> None:
    size, first = case
    last = data.draw(st.integers(first, size - 1))

    assert parse_range(f"bytes={first}-{last}", size=size) == (Span(first, last + 1),)
