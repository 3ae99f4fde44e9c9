"""Sizes and times as people read them."""

import pytest

from overhaul.server import wording


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (130_000_000, "130 MB"),
        (2**31, "2.1 GB"),
        (5e12, "5.0 TB"),
    ],
)
def test_sizes_have_a_decimal_unit(amount: float | None, text: str) -> None:
    assert wording.size(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (5, "less than a minute"),
        (60, "1 minute"),
        (3600, "1 hour"),
        (90_061, "1 day 1 hour"),
        (2 * 86400 + 120, "2 days"),
        (7260, "2 hours 1 minute"),
    ],
)
def test_a_length_of_time_has_its_two_largest_units(seconds: int, text: str) -> None:
    assert wording.span(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1000, "just now"),
        (1030, "in a moment"),
        (880, "2 minutes ago"),
        (1000 + 86400 * 2, "in 2 days"),
        (-6200, "2 hours ago"),
    ],
)
def test_times_are_told_from_now(seconds: int, text: str) -> None:
    assert wording.relative(seconds, 1000) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, "–"), (3.14, "3.1 s"), (61, "1 min 1 s"), (3700, "1 h 1 min")])
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [("It is bad", "It is bad."), ("It is bad. ", "It is bad."), ("Is it bad?", "Is it bad?"), ("", "")],
)
def test_a_sentence_ends_once(text: str, told: str) -> None:
    assert wording.sentence(text) == told


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("NotEnoughSpaceError", "Not enough space"),
        ("TLSRefusedError", "TLS refused"),
        ("Sha256WrongError", "Sha 256 wrong"),
        ("Error", "Error"),
        ("x", "x"),
    ],
)
def test_errors_are_told_in_words(name: str, words: str) -> None:
    assert wording.error_words(name) == words


def test_commands_in_a_sentence_become_code_and_nothing_else_becomes_markup() -> None:
    assert wording.commands("<b> run `a <c>` now") == "&lt;b&gt; run <code>a &lt;c&gt;</code> now"
