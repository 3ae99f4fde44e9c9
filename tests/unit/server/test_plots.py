"""Plots: drawings that are XML, keep to their frame, and tell themselves in words."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from overhaul.server.plots import Frame, Line, amount, stacked_bars, step_plot

FRAME = Frame(name="p", title="A <title>", summary='It says "so".', since=1000, until=11_000)


def _numbers(drawing: Markup) -> list[float]:
    """Return every coordinate of the drawing."""
    root = ElementTree.fromstring(drawing)
    found = []
    for element in root.iter():
        for key in ("x", "y", "x1", "x2", "y1", "y2", "width", "height"):
            if key in element.attrib:
                found.append(float(element.attrib[key]))
        found += [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", element.attrib.get("d", ""))]
    return found


def test_a_plot_has_a_name_and_words_and_none_of_them_is_markup() -> None:
    root = ElementTree.fromstring(step_plot(FRAME, [Line(label="<b>", style="series-1", points=[(2000, 3.0)])]))
    names = {child.attrib.get("id"): child.text for child in root}
    assert root.attrib["role"] == "img"
    assert [names[name] for name in root.attrib["aria-labelledby"].split()] == ["A <title>", 'It says "so".']
    assert "style=" not in step_plot(FRAME, []), "the content policy forbids styles in the page"


@given(
    points=st.lists(st.tuples(st.integers(0, 20_000), st.floats(0, 1e15)), max_size=20),
    bars=st.dictionaries(
        st.integers(0, 20_000), st.dictionaries(st.sampled_from(["a", "b"]), st.floats(0, 1e15)), max_size=20
    ),
)
def test_nothing_is_drawn_outside_of_the_frame_whatever_the_figures(
    points: list[tuple[int, float]], bars: dict[int, dict[str, float]]
) -> None:
    parts = [("a", "first", "series-1"), ("b", "second", "series-2")]
    for drawing in (
        step_plot(FRAME, [Line(label="x", style="series-1", points=sorted(points))]),
        stacked_bars(FRAME, bars, parts=parts, bucket_s=500),
    ):
        assert all(0 <= number <= 340 for number in _numbers(drawing))


def test_bars_stand_on_each_other_and_tell_their_amounts() -> None:
    bars = {2000: {"a": 30.0, "b": 10.0}}
    drawing = stacked_bars(FRAME, bars, parts=[("a", "good", "g"), ("b", "bad", "r")], bucket_s=1000)
    first, second = (one for one in ElementTree.fromstring(drawing) if one.tag == "rect")
    assert float(second.attrib["y"]) + float(second.attrib["height"]) == pytest.approx(
        float(first.attrib["y"]), abs=0.2
    )
    assert float(first.attrib["height"]) == pytest.approx(3 * float(second.attrib["height"]), rel=0.02)
    assert [one[0].text for one in (first, second)] == ["1970-01-01 00:33 UTC: good 30", "1970-01-01 00:33 UTC: bad 10"]


@pytest.mark.parametrize("into_s", [0, 1, 79, 500])
def test_what_happened_in_a_bar_that_only_just_began_is_seen(into_s: int) -> None:
    drawing = stacked_bars(FRAME, {FRAME.until - into_s: {"a": 1.0}}, parts=[("a", "good", "g")], bucket_s=1000)
    (bar,) = (one for one in ElementTree.fromstring(drawing) if one.tag == "rect")
    assert float(bar.attrib["width"]) >= 1


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [(0, "B", "0 B"), (1500, "B", "1.5 kB"), (2.5e15, "B", "2.5e+03 TB"), (25, "%", "25 %"), (1200, "", "1200")],
)
def test_amounts_are_short(value: float, unit: str, words: str) -> None:
    assert amount(value, unit) == words
