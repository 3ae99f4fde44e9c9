"""What a person types becomes a value, or a sentence that names it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.cli.opening import (
    UnreadableReleaseNameError,
    parse_percent,
    parse_release,
    parse_size,
    release_text,
)
from overhaul.errors import InputError
from overhaul.release.names import UnusableNameError
from overhaul.release.record import ReleaseId

_NAMES = st.from_regex(r"[a-z0-9][a-z0-9._+~-]{0,20}", fullmatch=True)
_TOKENS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,20}", fullmatch=True)


@given(st.builds(ReleaseId, product=_NAMES, variant=_NAMES, arch=_NAMES, version=_TOKENS, build_id=_TOKENS))
def test_a_release_is_read_as_it_is_written(release: ReleaseId) -> None:
    assert parse_release(release_text(release)) == release


@pytest.mark.parametrize("text", ["kiosk", "kiosk/shop/x86_64/1.0", "kiosk/shop/x86_64/1.0/1/2", ""])
def test_a_release_named_in_part_is_refused(text: str) -> None:
    with pytest.raises(UnreadableReleaseNameError, match="PRODUCT/VARIANT/ARCH/VERSION/BUILD"):
        parse_release(text)


@pytest.mark.parametrize("text", ["Kiosk/shop/x86_64/1.0/1", "kiosk//x86_64/1.0/1", "kiosk/shop/../1.0/1"])
def test_a_release_with_a_bad_word_is_refused_by_that_word(text: str) -> None:
    with pytest.raises(UnusableNameError):
        parse_release(text)


@pytest.mark.parametrize(
    ("text", "percent"), [("all", None), ("10", 10.0), ("12.5%", 12.5), ("0", 0.0), ("100", 100.0)]
)
def test_a_percentage_is_read(text: str, percent: float | None) -> None:
    assert parse_percent(text) == percent


@pytest.mark.parametrize("text", ["", "many", "-1", "101", "nan", "1e9"])
def test_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_percent(text)


@pytest.mark.parametrize(("text", "size"), [("4096", 4096), ("512M", 512 << 20), ("2g", 2 << 30), ("8K", 8192)])
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "0", "-1", "1.5G", "12 M", "x"])
def test_no_size_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not a size"):
        parse_size(text)
