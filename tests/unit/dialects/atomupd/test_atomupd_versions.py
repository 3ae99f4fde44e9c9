"""Versions and build ids are read as leniently, and ordered as strictly, as these clients expect."""

import itertools

import pytest

from overhaul.dialects.atomupd.versions import SNAPSHOT, parse_build_id, parse_version
from overhaul.errors import InputError


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("3", "3.0.0"),
        ("3.0", "3.0.0"),
        ("03.01", "3.1.0"),
        ("3.6.5.1", "3.6.5+1"),
        ("3.1 beta", "3.1.0-beta"),
        ("3.1.0_x", "3.1.0-x"),
        ("4.2rc1", "4.2.0-rc1"),
        ("4.2-rc1", "4.2.0-rc1"),
        ("3.6-20240101", "3.6.0-20240101"),
        ("3.1.0.rc1", "3.1.0+rc1"),
        ("snapshot", "snapshot"),
        ("3.1.", "3.1.0"),
    ],
)
def test_versions_are_normalised(text: str, normalised: str) -> None:
    assert normalised == parse_version(text).text


@pytest.mark.parametrize("text", ["v3.1", " 3.1", "valentine", "", "Snapshot", "3.6-01", "1.2.3-a..b", "1" * 300])
def test_texts_that_are_no_version_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_version(text)


def test_precedence_is_that_of_semantic_versioning() -> None:
    ascending = ["3.1.0-1", "3.1.0-rc.2", "3.1.0-rc.12", "3.1.0-rc10", "3.1.0-rc2", "3.1.0", "3.1.1", "3.10.0"]

    keys = [parse_version(text).precedence for text in ascending]

    assert all(low is not None and high is not None and low < high for low, high in itertools.pairwise(keys))


def test_only_versions_without_a_prerelease_are_stable() -> None:
    assert [parse_version(text).is_stable for text in ("3.1", "3.1.0.rc1", "3.1-rc1", "snapshot")] == [
        True,
        True,
        False,
        False,
    ]
    assert SNAPSHOT.is_snapshot


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("20190214", "20190214.0"),
        ("20190214.007", "20190214.7"),
        ("2019214", "20190214.0"),
        ("20190201.10", "20190201.10"),
    ],
)
def test_build_ids_are_normalised(text: str, printed: str) -> None:
    assert printed == str(parse_build_id(text))


@pytest.mark.parametrize(
    "text", ["20189999", "x", "", "20180214.-6", "20180214.12.34", "20190214.", "²0190214", "20190214.+1", "2019021400"]
)
def test_texts_that_are_no_build_id_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_build_id(text)


def test_build_ids_are_ordered_by_number_and_not_by_text() -> None:
    assert parse_build_id("20190201.9") < parse_build_id("20190201.10") < parse_build_id("20190202")
