"""Early clients are answered as their servers answered them: every row of the E1 table."""

import json
from pathlib import Path
from urllib.parse import urlencode

import pytest
from tests.atomupd_pools import put_image, write_configuration

from overhaul.dialects.atomupd.catalogue import make_catalogue
from overhaul.dialects.atomupd.pool import PoolScanner
from overhaul.dialects.atomupd.query import Answers
from overhaul.dialects.atomupd.server_configuration import read_server_configuration

_VERSIONED = [
    ("clockwerk", "3.0", "20190201.0", False),
    ("clockwerk", "3.1", "20190210.1", True),
    ("clockwerk", "3.2", "20190215.0", False),
    ("clockwerk", "3.3-rc1", "20190220.0", True),
    ("clockwerk", "3.3-rc2", "20190221.0", False),
    ("doom", "4.0", "20190301.0", True),
    ("doom", "4.1", "20190302.0", False),
    ("doom", "4.2-rc1", "20190303.0", False),
    ("earthshaker", "5.0", "20190401.0", False),
]
_SNAPSHOTS = [
    ("clockwerk", "snapshot", "20190201.1", False),
    ("clockwerk", "snapshot", "20190201.9", True),
    ("clockwerk", "snapshot", "20190201.10", False),
    ("doom", "snapshot", "20180102", False),
]


def _answers(directory: Path, images: list[tuple[str, str, str, bool]], *sections: str, **options: str) -> Answers:
    pool = directory / "pool"
    for release, version, build_id, checkpoint in images:
        put_image(pool, version, build_id, release=release, variant="atomic", branch=None, checkpoint=checkpoint)
    settings = {
        "Unstable": "",
        "Branches": "",
        "Releases": "clockwerk doom earthshaker",
        "Variants": "atomic",
        **options,
    }
    configuration = read_server_configuration(write_configuration(directory / "s.conf", pool, *sections, **settings))
    scanner = PoolScanner(configuration.pool, branches=configuration.support.has_branches)
    return Answers(make_catalogue(scanner.scan(), configuration.support), clock=lambda: 0.0)


def _ask(answers: Answers, release: str, version: str, build_id: str, **more: str) -> tuple[list[str], list[str]]:
    fields = {"product": "steamos", "release": release, "variant": "atomic", "arch": "amd64"}
    answer = answers.answer(urlencode({**fields, "version": version, "buildid": build_id, **more}).encode())
    assert answer.status == 200
    document = json.loads(answer.body or b"{}")
    return _offered(document, "minor"), _offered(document, "major")


def _offered(document: dict[str, dict[str, list[dict[str, dict[str, str]]]]], way: str) -> list[str]:
    candidates = document.get(way, {}).get("candidates", [])
    images = [candidate["image"] for candidate in candidates]
    return [image["buildid"] if image["version"] == "snapshot" else image["version"] for image in images]


@pytest.mark.parametrize(
    ("release", "version", "flag", "minor", "major"),
    [
        ("clockwerk", "3.0", None, ["3.1.0", "3.2.0"], ["4.0.0", "4.1.0"]),
        ("clockwerk", "3.0", "True", ["3.1.0", "3.3.0-rc1", "3.3.0-rc2"], ["4.0.0", "4.2.0-rc1"]),
        ("clockwerk", "3.0", "False", ["3.1.0", "3.2.0"], ["4.0.0", "4.1.0"]),
        ("clockwerk", "3.1", None, ["3.2.0"], ["4.0.0", "4.1.0"]),
        ("clockwerk", "3.2", None, [], ["4.0.0", "4.1.0"]),
        ("clockwerk", "3.3-rc1", None, [], ["4.0.0", "4.1.0"]),
        ("doom", "4.1", None, [], ["5.0.0"]),
        ("earthshaker", "5.0", None, [], []),
        ("clockwerk", "4.5", None, [], []),
        ("clockwerk", "9.9", None, [], []),
        ("unknown", "3.0", None, [], []),
        ("clockwerk", "snapshot", None, [], []),
    ],
)
def test_versions_lead_on_as_they_did(
    tmp_path: Path, release: str, version: str, flag: str | None, minor: list[str], major: list[str]
) -> None:
    more = {"want-unstable": flag} if flag is not None else {}

    assert (minor, major) == _ask(_answers(tmp_path, _VERSIONED), release, version, "20250101", **more)


@pytest.mark.parametrize("unknown", ["product", "variant", "arch"])
def test_what_is_not_in_the_pool_gets_nothing(tmp_path: Path, unknown: str) -> None:
    assert _ask(_answers(tmp_path, _VERSIONED), "clockwerk", "3.0", "20190201", **{unknown: "other"}) == ([], [])


def test_strict_compatibility_takes_any_flag_for_a_wish(tmp_path: Path) -> None:
    answers = _answers(tmp_path, _VERSIONED, "[Overhaul]", "StrictCompatibility = yes")

    minor, major = _ask(answers, "clockwerk", "3.0", "20190201", **{"want-unstable": "False"})

    assert (minor, major) == (["3.1.0", "3.3.0-rc1", "3.3.0-rc2"], ["4.0.0", "4.2.0-rc1"])
    assert _ask(answers, "clockwerk", "3.0", "20190201", **{"want-unstable": ""})[0] == ["3.1.0", "3.2.0"]


@pytest.mark.parametrize(("unstable", "offered"), [("yes", "3.3.0-rc2"), ("no", "3.2.0")])
def test_the_server_decides_about_unstable_images_where_its_file_says_so(
    tmp_path: Path, unstable: str, offered: str
) -> None:
    answers = _answers(tmp_path, _VERSIONED, Unstable=unstable)

    for wish in ("True", "False"):
        assert offered == _ask(answers, "clockwerk", "3.0", "20190201", **{"want-unstable": wish})[0][-1]


@pytest.mark.parametrize(("build_id", "minor"), [("20190201.1", ["20190201.9", "20190201.10"]), ("20250101", [])])
def test_snapshots_are_ordered_by_build_id(tmp_path: Path, build_id: str, minor: list[str]) -> None:
    answers = _answers(tmp_path, _SNAPSHOTS, Snapshots="true")

    assert (minor, ["20180102.0"]) == _ask(answers, "clockwerk", "snapshot", build_id)


def test_the_answer_is_the_documented_line(tmp_path: Path) -> None:
    answers = _answers(tmp_path, _VERSIONED)
    query = b"product=steamos&release=doom&variant=atomic&arch=amd64&version=4.1.0&buildid=20190302.0&checkpoint=False"

    assert answers.answer(query).body == (
        b'{"major": {"release": "earthshaker", "candidates": [{"image": {"product": "steamos", '
        b'"release": "earthshaker", "variant": "atomic", "arch": "amd64", "version": "5.0.0", '
        b'"buildid": "20190401.0", "checkpoint": false}, "update_path": "steamos/earthshaker/5.0/amd64/'
        b'steamos-earthshaker-20190401.0-5.0-amd64-atomic-None.raucb"}]}}'
    )


@pytest.mark.parametrize("half", ["bundle", "store"])
def test_images_without_bundle_or_store_are_left_out(tmp_path: Path, half: str) -> None:
    put_image(
        tmp_path / "pool",
        "3.9",
        "20200101",
        release="clockwerk",
        variant="atomic",
        branch=None,
        bundle=half != "bundle",
        store=half != "store",
    )

    answers = _answers(tmp_path, _VERSIONED[:1])

    assert _ask(answers, "clockwerk", "3.0", "20190201") == ([], [])
    assert not answers.catalogue.problems
