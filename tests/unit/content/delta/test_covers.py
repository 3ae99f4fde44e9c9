import contextlib
import random
import struct
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from overhaul.content.delta.covers import (
    MAX_ENTRIES,
    Cover,
    Parts,
    add_bytes,
    correct,
    correct_python,
    decode_covers,
    encode_covers,
    subtract_bytes,
)
from overhaul.content.delta.errors import MalformedDeltaError


@given(st.binary(max_size=300), st.randoms(use_true_random=False))
def test_addition_and_subtraction_wrap_in_each_byte_alone(left: bytes, chance: random.Random) -> None:
    right = chance.randbytes(len(left))
    assert add_bytes(left, right) == bytes((a + b) % 256 for a, b in zip(left, right, strict=True))
    assert subtract_bytes(left, right) == bytes((a - b) % 256 for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("size", [8 * 1024 - 1, 8 * 1024, 8 * 1024 + 1, 200_000])
def test_long_strings_are_added_in_pieces_without_a_seam(size: int) -> None:
    chance = random.Random(size)
    left, right = chance.randbytes(size), chance.randbytes(size)
    total = add_bytes(left, right)
    assert total == bytes((a + b) % 256 for a, b in zip(left, right, strict=True))
    assert subtract_bytes(total, right) == left


def _random_covers(chance: random.Random, new_size: int, window_size: int) -> list[Cover]:
    covers = []
    position = chance.randrange(3)
    while position < new_size:
        size = min(chance.choice((1, 5, 40, 900)), new_size - position, window_size)
        covers.append(Cover(position, chance.randrange(window_size - size + 1), size))
        position += size + chance.choice((0, 0, 1, 30))
    return covers


@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(0, 20_000), st.integers(1, 20_000))
def test_any_covers_give_back_the_new_bytes(seed: int, new_size: int, window_size: int) -> None:
    chance = random.Random(seed)
    window = chance.randbytes(window_size)
    new = bytearray(chance.randbytes(new_size))
    covers = _random_covers(chance, new_size, window_size)
    for cover in covers:
        new[cover.new : cover.new + cover.size] = window[cover.old : cover.old + cover.size]
        if chance.random() < 0.7:
            new[cover.new + chance.randrange(cover.size)] ^= chance.randrange(256)
    parts = encode_covers(bytes(new), window, covers)
    assert decode_covers(parts, window, new_size) == new


def test_more_corrections_than_are_made_at_once_have_no_seam() -> None:
    window = bytes(400_000)
    new = bytearray(window)
    new[::20] = b"x" * len(new[::20])
    parts = encode_covers(bytes(new), window, [Cover(0, 0, len(new))])
    assert len(parts.difference) == 20_000
    assert decode_covers(parts, window, len(new)) == new


@settings(max_examples=60)
@given(st.integers(0, 1 << 32), st.integers(0, 40))
def test_the_compiled_corrections_and_their_twin_agree(seed: int, count: int) -> None:
    chance = random.Random(seed)
    kept = array("I", (chance.choice((0, 1, 17, 300)) for _ in range(count)))
    corrected = array("I", (chance.choice((0, 1, 4, 200)) for _ in range(count)))
    base = chance.randbytes(sum(kept) + sum(corrected) + chance.choice((0, 5)))
    untouched = bytes(bytearray(base))
    difference = chance.randbytes(sum(corrected))
    expected = correct_python(base, difference, kept, corrected)

    assert correct(base, difference, kept, corrected) == expected
    assert base == untouched


@pytest.mark.parametrize("value", [0, 0x9F, 0xFF])
def test_correcting_a_single_byte_leaves_the_interpreters_own_alone(value: int) -> None:
    base = bytes([value])
    assert correct(base, b"\x05", array("I", [0]), array("I", [1])) == bytes([(value + 5) % 256])
    # The interpreter keeps one object for each single byte; a changed one would change every later byte of its kind.
    assert bytes([value])[0] == value
    assert bytes(bytearray([value, 1])[:1]) == base


def test_the_compiled_corrections_never_leave_their_bytes() -> None:
    from overhaul.content import _kernel as kernel

    for kept, corrected in (([4], [5]), ([0], [4]), ([0xFFFFFFFF, 0xFFFFFFFF], [1, 1])):
        with pytest.raises(ValueError, match="do not fit"):
            kernel.correct(b"12345678", b"abc", array("I", kept), array("I", corrected))
    with pytest.raises(ValueError, match="belong together"):
        kernel.correct(b"12345678", b"abc", array("I", [1]), array("I"))


def test_few_changes_in_much_that_is_equal_cost_few_bytes() -> None:
    window = random.Random(1).randbytes(100_000)
    new = bytearray(window)
    new[500] ^= 1
    new[70_000] ^= 1
    parts = encode_covers(bytes(new), window, [Cover(0, 0, len(new))])
    assert [len(part) for part in parts] == [8 + 12 + 2 * 8, 2, 0]


def test_without_covers_the_extra_bytes_are_all() -> None:
    assert decode_covers(encode_covers(b"new", b"", []), b"", 3) == b"new"


def _control(columns: list[list[int]]) -> bytes:
    words = [array("I", [value % (1 << 32) for value in column]).tobytes() for column in columns]
    planes = b"".join(data[place::4] for data in words for place in range(4))
    return struct.pack("<II", len(columns[0]), len(columns[3])) + planes


@pytest.mark.parametrize(
    ("columns", "difference", "extra"),
    [
        ([[0], [95], [10], [], []], b"", b""),  # ends behind the window
        ([[0], [-1], [10], [], []], b"", b""),  # begins before it
        ([[0], [0], [11], [], []], b"", b""),  # more than the unit has
        ([[0], [0], [9], [], []], b"", b""),  # less than the unit has
        ([[3], [0], [8], [], []], b"", b"ab"),  # more extra bytes than there are
        ([[0], [0], [10], [5], [6]], b"123456", b""),  # corrections behind the covers
        ([[0], [0], [10], [0], [2]], b"1", b""),  # fewer differences than corrections
        ([[0], [0], [10], [(1 << 32) - 1], [1]], b"1", b""),
        ([[0, 0], [0, -5], [(1 << 32) - 1, 1], [], []], b"", b""),
    ],
)
def test_parts_that_reach_outside_are_refused(columns: list[list[int]], difference: bytes, extra: bytes) -> None:
    with pytest.raises(MalformedDeltaError):
        decode_covers((_control(columns), difference, extra), bytes(100), 10)


def test_a_control_part_with_too_many_entries_is_refused() -> None:
    many = [0] * (MAX_ENTRIES + 1)
    with pytest.raises(MalformedDeltaError, match="131073 covers"):
        decode_covers((_control([many, many, many, [], []]), b"", b""), b"", 0)


def test_a_control_part_of_any_other_length_is_refused() -> None:
    parts = encode_covers(b"abcdefgh" * 20, b"abcdefgi" * 20, [Cover(0, 0, 160)])
    for length in range(len(parts.control)):
        with pytest.raises(MalformedDeltaError):
            decode_covers(Parts(parts.control[:length], parts.difference, parts.extra), b"abcdefgi" * 20, 160)


@settings(max_examples=200)
@given(st.data())
def test_flipped_control_bytes_are_refused_or_give_as_many_bytes(data: st.DataObject) -> None:
    window = bytes(range(256)) * 4
    new = window[40:700] + b"extra" + bytes(b ^ (n % 50 == 0) for n, b in enumerate(window[100:500])) + b"end"
    parts = encode_covers(new, window, [Cover(0, 40, 660), Cover(665, 100, 400)])
    control = bytearray(parts.control)
    control[data.draw(st.integers(0, len(control) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(MalformedDeltaError):
        assert len(decode_covers(Parts(bytes(control), *parts[1:]), window, len(new))) == len(new)
