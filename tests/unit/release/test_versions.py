"""The order of versions: total, exact where a standard says so, sensible elsewhere."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.release.versions import Version, release_order_key

ANY_TOKEN = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}", fullmatch=True)
#: Tokens that share many beginnings, so that neighbours in the order are compared often.
CLOSE_TOKEN = st.lists(
    st.sampled_from(["1", "0", "10", "2", "rc", "a", ".", "-", "~", "+", "_", "20240501", "v", "snapshot"]),
    min_size=1,
    max_size=7,
).map("".join)
TOKEN = st.one_of(ANY_TOKEN, CLOSE_TOKEN, st.just("snapshot"))

#: Each group in rising order, as written.
RISING = [
    ["1.0.0-alpha", "1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11", "1.0.0-rc.1"],
    ["1.0.0-rc.1", "1.0.0", "2.0.0", "2.1.0", "2.1.1"],
    ["1.0-rc.2", "1.0-rc.10", "1.0-rc10", "1.0-rc2", "1.0"],
    ["4.2-beta", "4.2rc1", "4.2", "4.2.1", "4.10"],
    ["3.6.5", "3.6.5.1", "3.6.5.2", "3.6.6"],
    ["1.0-rc1~2", "1.0-rc1", "1.0-rc1+b2", "1.0~rc2", "1.0~rc10", "1.0", "1.0+deb12u2~bpo1", "1.0+deb12u2"],
    ["1.0+deb12u2", "1.0+deb12u10", "1.1"],
    ["20240430.9", "20240501", "20240501.3", "20240501-4", "20240501.10", "2024.05.02", "2024-05-03", "20250101"],
    ["snapshot", "bookworm", "r9-ffff", "r10-0000", "trixie", "0.1", "v0.2", "1"],
    ["9f3c2d", "20249999"],
]

EQUAL = [
    ["3", "3.0", "3.0.0", "03.00", "v3", "V3.0.0.0"],
    ["20240501", "2024.05.01", "2024-05-01", "20240501.0", "2024.5.1"],
    ["snapshot", "SNAPSHOT", "Snapshot"],
    ["4.2rc1", "4.2-rc1", "4.2.0-rc1", "4.2.rc1", "4.2_rc1"],
]


@pytest.mark.parametrize("texts", RISING, ids=lambda texts: texts[0])
def test_versions_rise_as_written(texts: list[str]) -> None:
    for older, newer in pairwise(texts):
        assert Version(older) < Version(newer), (older, newer)
        assert Version(newer) > Version(older), (older, newer)


@pytest.mark.parametrize("texts", EQUAL, ids=lambda texts: texts[0])
def test_spellings_of_one_version_are_equal_and_hash_alike(texts: list[str]) -> None:
    assert len({Version(text) for text in texts}) == 1


@given(TOKEN, TOKEN)
def test_exactly_one_of_older_equal_newer_holds(left: str, right: str) -> None:
    a, b = Version(left), Version(right)

    assert [a < b, a == b, a > b].count(True) == 1
    assert (a < b) == (b > a)
    assert (a <= b) == (not a > b)


@given(TOKEN, TOKEN, TOKEN)
def test_the_order_is_transitive(first: str, second: str, third: str) -> None:
    low, middle, high = sorted([Version(first), Version(second), Version(third)])

    assert low <= middle <= high
    assert low <= high
    assert (low == high) == (low == middle == high)


@given(TOKEN, TOKEN)
def test_equal_versions_have_equal_hashes(left: str, right: str) -> None:
    a, b = Version(left), Version(right)

    assert a == Version(left)
    assert hash(a) == hash(Version(left))
    assert a != b or hash(a) == hash(b)


@given(st.text(max_size=6000))
def test_reading_a_version_never_fails(text: str) -> None:
    assert Version(text) == Version(text)
    assert str(Version(text)) == text


def test_numbers_longer_than_python_reads_are_still_compared() -> None:
    assert Version("9" * 6000) < Version("1" + "0" * 6000)


SEMVER_NUMBER = st.one_of(st.integers(0, 12), st.integers(0, 9_999_999)).map(str)
SEMVER_WORD = st.from_regex(r"[0-9]*[a-zA-Z-][0-9a-zA-Z-]{0,3}", fullmatch=True)
SEMVER = st.tuples(
    st.tuples(SEMVER_NUMBER, SEMVER_NUMBER, SEMVER_NUMBER),
    st.lists(st.one_of(SEMVER_NUMBER, SEMVER_WORD), max_size=3),
)


def _semver_text(version: tuple[tuple[str, ...], list[str]]) -> str:
    numbers, prerelease = version
    return ".".join(numbers) + ("-" + ".".join(prerelease) if prerelease else "")


def _semver_precedence(left: tuple[tuple[str, ...], list[str]], right: tuple[tuple[str, ...], list[str]]) -> int:
    """Compare as section 11 of Semantic Versioning 2.0.0 reads, clause by clause."""
    for a, b in zip(left[0], right[0], strict=True):
        if int(a) != int(b):
            return -1 if int(a) < int(b) else 1
    if not left[1] or not right[1]:
        return bool(right[1]) - bool(left[1])
    for a, b in zip(left[1], right[1], strict=False):
        if a == b:
            continue
        if a.isdigit() and b.isdigit():
            return -1 if int(a) < int(b) else 1
        if a.isdigit() != b.isdigit():
            return -1 if a.isdigit() else 1
        return -1 if a < b else 1
    return (len(left[1]) > len(right[1])) - (len(left[1]) < len(right[1]))


@given(SEMVER, SEMVER)
def test_semantic_versions_have_exactly_the_precedence_of_their_standard(
    left: tuple[tuple[str, ...], list[str]], right: tuple[tuple[str, ...], list[str]]
) -> None:
    a, b = Version(_semver_text(left)), Version(_semver_text(right))

    assert _semver_precedence(left, right) == (a > b) - (a < b)


@given(SEMVER, st.from_regex(r"[0-9a-z.]{1,6}", fullmatch=True))
def test_build_metadata_decides_only_where_the_standard_ties(
    version: tuple[tuple[str, ...], list[str]], metadata: str
) -> None:
    text = _semver_text(version)
    next_patch = (*version[0][:2], str(int(version[0][2]) + 1)), version[1]

    assert Version(text) <= Version(f"{text}+{metadata}") < Version(_semver_text(next_patch))


@given(TOKEN, TOKEN, TOKEN, TOKEN)
def test_releases_are_ordered_by_version_and_then_by_build_id(
    version: str, other_version: str, build_id: str, other_build_id: str
) -> None:
    left, right = release_order_key(version, build_id), release_order_key(other_version, other_build_id)

    if Version(version) == Version(other_version):
        assert (left < right) == (Version(build_id) < Version(other_build_id))
    else:
        assert (left < right) == (Version(version) < Version(other_version))


def test_snapshots_are_told_apart_by_their_build_ids() -> None:
    assert Version("snapshot").is_snapshot
    assert not Version("snapshot-1").is_snapshot
    assert release_order_key("snapshot", "20240501.9") < release_order_key("snapshot", "20240501.10")
    assert release_order_key("snapshot", "20240501") < release_order_key("0.1", "20200101")


def test_a_version_is_no_text() -> None:
    assert Version("1") != "1"
    with pytest.raises(TypeError):
        assert Version("1") < "2"
