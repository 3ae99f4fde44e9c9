import random
import sys
import zlib

import hdiffpatch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.content.delta.images import code_like, edited

from overhaul.content.delta.covers import decode_covers
from overhaul.content.delta.errors import MatcherMissingError
from overhaul.content.delta.matching import find_covers, is_incompressible, tell_by_covers, tell_by_prefix
from overhaul.content.zstd import decompress_with_prefix


@settings(max_examples=40)
@given(st.integers(0, 1 << 32), st.integers(0, 60_000))
def test_covers_lie_inside_ascend_and_give_back_the_new_bytes(seed: int, size: int) -> None:
    chance = random.Random(seed)
    old = code_like(chance, size)
    new = edited(chance, old)
    end = 0
    for cover in find_covers(new, old):
        assert cover.new >= end
        assert cover.size > 0
        assert cover.old >= 0
        assert cover.old + cover.size <= len(old)
        end = cover.new + cover.size
    assert end <= len(new)
    assert decode_covers(tell_by_covers(new, old), old, len(new)) == new


def test_the_covers_are_those_the_matcher_itself_applies() -> None:
    chance = random.Random(9)
    old = code_like(chance, 200_000)
    new = edited(chance, edited(chance, old))
    covers = find_covers(new, old)
    extra = len(new) - sum(cover.size for cover in covers)
    diff = hdiffpatch.diff(old, new, compression=None)
    assert hdiffpatch.apply(old, diff) == new
    assert covers
    assert diff.endswith(new[covers[-1].new + covers[-1].size :])
    assert extra < len(new) // 4


@pytest.mark.parametrize(("new", "window"), [(b"", b""), (b"", b"old"), (b"new", b""), (bytes(5000), bytes(5000))])
def test_little_or_nothing_is_told_too(new: bytes, window: bytes) -> None:
    assert decode_covers(tell_by_covers(new, window), window, len(new)) == new


def test_only_compressed_bytes_with_little_in_common_are_told_by_prefix() -> None:
    chance = random.Random(2)
    noise, other = chance.randbytes(100_000), chance.randbytes(100_000)
    assert is_incompressible(noise)
    assert is_incompressible(zlib.compress(code_like(chance, 400_000), 9))
    assert not is_incompressible(code_like(chance, 100_000))
    assert not is_incompressible(b"")
    assert tell_by_prefix(code_like(chance, 100_000), other) is None
    assert tell_by_prefix(noise, noise) is None
    mixed = noise[:5_000] + other
    frame = tell_by_prefix(mixed, noise)
    assert frame is not None
    assert len(frame) < len(mixed) - 4_000
    assert decompress_with_prefix(frame, noise, size=len(mixed)) == mixed


def test_a_matcher_with_another_format_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdiffpatch, "diff", lambda *_arguments, **_options: b"HDIFF14&\0" + bytes(50))
    with pytest.raises(ValueError, match="HDIFF14"):
        find_covers(b"new", b"old")


def test_a_missing_matcher_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hdiffpatch", None)
    with pytest.raises(MatcherMissingError, match=r"install overhaul\[publish\]"):
        find_covers(b"new", b"old")
