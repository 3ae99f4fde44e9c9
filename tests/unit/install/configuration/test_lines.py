"""Merging by lines, with the real diff3 as the judge where its answer is the only one."""

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.tools import need

from overhaul.install.configuration.lines import MAX_LINES, merge_lines

TEXTS = st.lists(st.sampled_from([b"a\n", b"b\n", b"c\n", b"d\n", b"\n"]), max_size=12).map(b"".join)


@given(base=TEXTS, mine=TEXTS)
def test_a_change_of_one_side_is_taken(base: bytes, mine: bytes) -> None:
    assert merge_lines(base, mine, base) == mine
    assert merge_lines(base, base, mine) == mine
    assert merge_lines(base, mine, mine) == mine


@given(base=TEXTS, mine=TEXTS, theirs=TEXTS)
def test_the_sides_may_change_places(base: bytes, mine: bytes, theirs: bytes) -> None:
    assert merge_lines(base, mine, theirs) == merge_lines(base, theirs, mine)


def _edited(lines: list[bytes], seed: int) -> list[bytes]:
    """Change, remove and add a few lines, each of which is like no other line."""
    told = random.Random(seed)
    edited = list(lines)
    for number in range(told.randint(1, 4)):
        place = told.randrange(len(edited) + 1)
        match told.choice(["change", "remove", "add"]):
            case "add":
                edited.insert(place, b"added by %d as %d\n" % (seed, number))
            case "remove" if place < len(edited):
                del edited[place]
            case "change" if place < len(edited):
                edited[place] = b"changed by %d as %d\n" % (seed, number)
    return edited


@pytest.mark.parametrize("seed", range(60))
def test_what_diff3_merges_and_refuses_is_what_we_do(tmp_path: Path, seed: int) -> None:
    base = [b"line %d\n" % number for number in range(14)]
    versions = {"mine": _edited(base, 2 * seed), "base": base, "theirs": _edited(base, 2 * seed + 1)}
    for name, lines in versions.items():
        (tmp_path / name).write_bytes(b"".join(lines))

    judged = subprocess.run(
        [need("diff3"), "-m", "-E", "mine", "base", "theirs"], cwd=tmp_path, capture_output=True, check=False
    )

    merged = merge_lines(*(b"".join(versions[name]) for name in ("base", "mine", "theirs")))
    assert merged == (judged.stdout if judged.returncode == 0 else None)


def test_what_is_no_text_or_very_long_is_not_merged() -> None:
    assert merge_lines(b"a\0\n", b"b\n", b"c\n") is None
    many = b"x\n" * (MAX_LINES + 1)
    assert merge_lines(many, many + b"y\n", b"z\n" + many) is None


def test_a_last_line_without_an_end_stays_as_it_is() -> None:
    assert merge_lines(b"a\nb\nc\nd", b"A\nb\nc\nd", b"a\nb\nc\nD") == b"A\nb\nc\nD"
