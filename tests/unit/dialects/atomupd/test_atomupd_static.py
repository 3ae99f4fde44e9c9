"""The static server: paths, bytes, exit codes, and what becomes of files that are there already."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.atomupd_pools import put_image, write_configuration

from overhaul.dialects.atomupd.static_cli import main

_HOLO = "holo/steamos/amd64/steamdeck"


class _Site:
    """One pool, one configuration and one tree."""

    def __init__(self, directory: Path) -> None:
        self.pool, self.tree, self.file = directory / "pool", directory / "tree", directory / "s.conf"
        self.pool.mkdir()
        self.tree.mkdir()
        self.configure()

    def configure(self, *sections: str, **images: str) -> None:
        write_configuration(self.file, self.pool, *sections, **images)

    def put(self, version: str, build_id: str, **fields: object) -> str:
        return put_image(self.pool, version, build_id, **fields)  # type: ignore[arg-type]

    def generate(self) -> int:
        before = Path.cwd()
        os.chdir(self.tree)
        try:
            return main(["-c", str(self.file)])
        finally:
            os.chdir(before)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.tree)): path.read_bytes()
            for path in self.tree.rglob("*")
            if path.is_file() and path.name[0] != "."
        }

    def builds(self, path: str) -> list[str]:
        """Return the build ids that a file offers."""
        document = json.loads((self.tree / path).read_bytes())
        return [one["image"]["buildid"] for one in document["minor"]["candidates"]] if document else []


@pytest.fixture
def site(tmp_path: Path) -> _Site:
    return _Site(tmp_path)


def test_an_answer_has_exactly_the_known_bytes(site: _Site) -> None:
    site.configure(Branches="stable")
    site.put("3.6.6", "20240108.1", name="a")
    checkpoint = site.put("3.7.2", "20240115.1", introduces_checkpoint=1, name="b")
    site.put("3.7.3", "20240115.2", requires_checkpoint=1, name="c")

    assert site.generate() == 0
    lines = (site.tree / _HOLO / "stable/3.6.6/20240108.1.json").read_text().split("\n")
    assert lines[:20] == [
        "{",
        '    "minor": {',
        '        "candidates": [',
        "            {",
        '                "image": {',
        '                    "arch": "amd64",',
        '                    "branch": "stable",',
        '                    "buildid": "20240115.1",',
        '                    "default_update_branch": "stable",',
        '                    "estimated_size": 0,',
        '                    "introduces_checkpoint": 1,',
        '                    "product": "steamos",',
        '                    "release": "holo",',
        '                    "requires_checkpoint": 0,',
        '                    "variant": "steamdeck",',
        '                    "version": "3.7.2"',
        "                },",
        f'                "update_path": "{checkpoint}"',
        "            },",
        "            {",
    ]
    assert lines[-4:] == ["        ],", '        "release": "holo"', "    }", "}"]


def test_each_image_and_branch_has_its_three_files(site: _Site) -> None:
    site.put("3.7.1", "20240108", introduces_checkpoint=2, requires_checkpoint=1)
    site.put("3.7.2", "20240109", branch="beta", requires_checkpoint=2)

    assert site.generate() == 0
    assert set(site.files()) == {
        f"{_HOLO}/{path}"
        for branch in ("stable", "beta")
        for path in (
            f"{branch}/3.7.1/20240108.0.json",
            f"{branch}/3.7.2/20240109.0.json",
            f"{branch}.cp2.json",
            f"{branch}.cp2.second_last.json",
        )
    }


def test_legacy_images_have_their_own_layout(site: _Site) -> None:
    site.configure(StrictPoolValidation="no")
    site.put("3.5", "20230101", variant="steamdeck-beta", branch=None)
    site.put("3.5.1", "20230102", variant="steamdeck-beta", branch=None)

    assert site.generate() == 0
    assert site.builds("steamos/amd64/3.5.0/steamdeck-beta/20230101.0.json") == ["20230102.0"]
    text = (site.tree / "steamos/amd64/3.5.0/steamdeck-beta/20230101.0.json").read_text()
    assert '"variant": "steamdeck-beta"' in text
    assert "branch" not in text
    assert (site.tree / "steamos/amd64/3.5.0/steamdeck.json").read_bytes() == b"{}"


def test_names_are_quoted_and_never_lead_out_of_the_tree(site: _Site) -> None:
    site.configure(Variants="../x", Branches="a/b", StrictPoolValidation="no")
    site.put("3.6.5.1", "20240101", variant="../x", branch="a/b", name="odd")

    assert site.generate() == 0
    assert "holo/steamos/amd64/_._x/a_b/3.6.5+1/20240101.0.json" in site.files()


def test_a_second_run_changes_nothing(site: _Site) -> None:
    site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109", branch="beta")
    site.generate()
    before = {path: (site.tree / path).stat().st_mtime_ns for path in site.files()}

    assert site.generate() == 0
    assert before == {path: (site.tree / path).stat().st_mtime_ns for path in site.files()}


def test_a_file_that_differs_in_sizes_only_stays(site: _Site) -> None:
    site.configure(Branches="stable")
    site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109")
    site.generate()
    path = site.tree / _HOLO / "stable/3.7.1/20240108.0.json"
    sized = path.read_bytes().replace(b'"estimated_size": 0', b'"estimated_size": 123456')
    path.write_bytes(sized)

    assert site.generate() == 0
    assert path.read_bytes() == sized


@pytest.mark.parametrize("old", [b"", b"no JSON", b'{"minor": {}}', b"[" * 5000, b'{"minor": {"release": 1}}'])
def test_a_damaged_old_file_is_replaced(site: _Site, old: bytes) -> None:
    site.configure(Branches="stable")
    site.put("3.7.1", "20240108")
    path = site.tree / _HOLO / "stable/3.7.1/20240108.0.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(old)

    assert site.generate() == 0
    assert path.read_bytes() == b"{}"


def test_an_answer_for_a_vanished_image_is_told_and_removed_only_when_asked(
    site: _Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.configure(Branches="stable")
    gone = site.pool / site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109")
    site.generate()
    stale = site.tree / _HOLO / "stable/3.7.1/20240108.0.json"
    notes = stale.with_name("notes.json")
    notes.write_text('{"of": "a person"}')
    gone.with_suffix(".manifest.json").unlink()
    site.put("3.7.3", "20240110")

    assert site.generate() == 0
    assert stale.exists()
    assert "20240108.0.json is the answer for no image" in caplog.text

    site.configure("[Overhaul]", "RemoveStale = yes", Branches="stable")
    assert site.generate() == 0
    assert not stale.exists()
    assert notes.exists()


def test_an_empty_pool_removes_nothing(site: _Site) -> None:
    site.configure("[Overhaul]", "RemoveStale = yes", Branches="stable")
    image = site.pool / site.put("3.7.1", "20240108")
    site.generate()
    before = site.files()
    image.with_suffix(".manifest.json").unlink()

    assert site.generate() == 0
    assert before == site.files()


@pytest.mark.parametrize(
    ("second", "fields"),
    [
        ("3.7.1", {"buildid": "20240108"}),
        ("3.7.2", {"shadow_checkpoint": True, "skip": True, "introduces_checkpoint": 1}),
        ("3.7.2", {"shadow_checkpoint": True}),
        ("3.7.2", {"introduces_checkpoint": 1, "requires_checkpoint": 1}),
        ("3.7.2", {"introduces_checkpoint": 5}),
        ("3.7.2", {"version": "valentine"}),
        ("3.7.2", {"branch": 7}),
        ("3.7.2", {"checkpoint": True}),
        ("3.7.2", {"bundle": False}),
        ("3.7.2", {"store": False}),
        ("3.7.2", {"variant": "unsupported", "bundle": False}),
    ],
)
@pytest.mark.parametrize("strict", [False, True], ids=["lenient", "strict"])
def test_a_bad_image_is_named_and_takes_the_good_ones_down_only_under_strict_compatibility(
    site: _Site, caplog: pytest.LogCaptureFixture, second: str, fields: dict[str, object], *, strict: bool
) -> None:
    site.configure("[Overhaul]", f"StrictCompatibility = {strict}", Branches="stable")
    site.put("3.7.1", "20240108", name="a-good", introduces_checkpoint=5)
    given = {"name": "b-bad", "version": second, "build_id": "20240109", **fields}
    put_image(site.pool, str(given.pop("version")), str(given.pop("build_id")), **given)  # type: ignore[arg-type]

    assert site.generate() == 1
    assert "b-bad.manifest.json" in caplog.text
    assert bool(site.files()) == (not strict)


def test_an_empty_manifest_is_named(site: _Site, caplog: pytest.LogCaptureFixture) -> None:
    site.configure(Branches="stable")
    site.put("3.7.1", "20240108")
    (site.pool / "empty.manifest.json").touch()

    assert site.generate() == 1
    assert "empty.manifest.json: it is not JSON" in caplog.text
    assert site.files()


def test_two_shadows_of_one_checkpoint_are_refused(site: _Site) -> None:
    site.configure("[Overhaul]", "StrictCompatibility = yes", Branches="stable")
    site.put("3.7.1", "20240108")
    for day in ("20240109", "20240110"):
        site.put("3.7.1", day, introduces_checkpoint=1, shadow_checkpoint=True, bundle=False, store=False)

    assert site.generate() == 1


def test_equal_builds_of_two_architectures_are_refused_only_under_strict_compatibility(site: _Site) -> None:
    site.configure(Branches="stable", Archs="amd64 arm64")
    site.put("3.7.1", "20240108")
    site.put("3.7.1", "20240108", arch="arm64")

    assert site.generate() == 0

    site.configure("[Overhaul]", "StrictCompatibility = yes", Branches="stable", Archs="amd64 arm64")
    assert site.generate() == 1


@pytest.mark.parametrize(("strict", "code"), [("yes", 1), ("no", 0)])
def test_a_branch_without_images_is_fatal_only_in_a_strict_pool(site: _Site, strict: str, code: int) -> None:
    site.configure(StrictPoolValidation=strict)
    site.put("3.7.1", "20240108")

    assert site.generate() == code
    assert bool(site.files()) == (code == 0)
    if code == 0:
        assert (site.tree / _HOLO / "beta.json").read_bytes() == b"{}"


def test_a_second_architecture_without_a_branch_gets_empty_answers(site: _Site) -> None:
    site.configure(StrictPoolValidation="no", Archs="amd64 arm64")
    site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109", branch="beta")
    site.put("3.7.3", "20240110", arch="arm64")

    assert site.generate() == 0
    assert (site.tree / "holo/steamos/arm64/steamdeck/beta.json").read_bytes() == b"{}"


@pytest.mark.parametrize(
    ("skip", "bundle", "overhaul", "code"),
    [(False, False, "no", 1), (False, True, "no", 0), (True, True, "yes", 1), (True, True, "no", 0)],
)
def test_an_unsupported_variant_matters_only_where_something_is_wrong(
    site: _Site, *, skip: bool, bundle: bool, overhaul: str, code: int
) -> None:
    site.configure("[Overhaul]", f"StrictCompatibility = {overhaul}", Branches="stable")
    site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109", variant="vanilla", skip=skip, bundle=bundle)

    assert site.generate() == code


def test_an_image_that_became_a_shadow_must_lose_its_file_first(site: _Site, caplog: pytest.LogCaptureFixture) -> None:
    site.configure(Branches="stable")
    site.put("3.7.0", "20240101")
    site.put("3.7.1", "20240108", name="it", introduces_checkpoint=1)
    site.generate()
    before = site.files()
    site.put("3.7.1", "20240108", name="it", introduces_checkpoint=1, shadow_checkpoint=True)

    assert site.generate() == 1
    assert "became a shadow checkpoint" in caplog.text
    assert before == site.files()


def test_skipped_images_have_answers_and_are_never_offered(site: _Site) -> None:
    site.configure(Branches="stable")
    site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109", skip=True, bundle=False)

    assert site.generate() == 0
    assert site.builds(f"{_HOLO}/stable/3.7.2/20240109.0.json") == ["20240108.0"]


def test_an_ended_variant_is_led_to_its_replacement(site: _Site) -> None:
    site.configure(Branches="stable", Variants="steamdeck old", VariantsEOL="old:steamdeck")
    site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109", variant="old")

    assert site.generate() == 0
    document = json.loads((site.tree / "holo/steamos/amd64/old/stable.json").read_bytes())
    assert list(document["minor"]) == ["candidates", "release", "replacement_eol_variant"]
    assert site.builds("holo/steamos/amd64/old/stable/3.7.2/20240109.0.json") == ["20240108.0"]


def test_remote_info_names_what_can_be_chosen(site: _Site) -> None:
    section = ["[Images.ProvideRemoteInfoConfig.amd64]", "Variants = steamdeck old", "Branches = stable beta"]
    site.configure(*section, Branches="stable", Variants="steamdeck old", VariantsEOL="old:steamdeck")
    site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109", variant="old")

    assert site.generate() == 0
    files = site.files()
    assert files[f"{_HOLO}/remote-info.conf"] == b"[Server]\nVariants = steamdeck\nBranches = stable;beta\n\n"
    assert b"Variants = steamdeck;old\n" in files["holo/steamos/amd64/old/remote-info.conf"]


def test_what_is_not_open_to_everybody_is_in_no_file(site: _Site) -> None:
    site.configure("[Overhaul.Rule.slow]", "Images = 3.7.3", "Percent = 50", Branches="stable")
    site.put("3.7.1", "20240108")
    site.put("3.7.2", "20240109")
    site.put("3.7.3", "20240110")

    assert site.generate() == 0
    assert site.builds(f"{_HOLO}/stable/3.7.1/20240108.0.json") == ["20240109.0"]


@pytest.mark.parametrize(
    ("options", "section"),
    [
        ({"PoolDir": "/nowhere/at/all"}, ""),
        ({"Products": ""}, ""),
        ({"VariantsEOL": "old"}, ""),
        ({"Unstable": "perhaps"}, ""),
        ({}, "[Images.ProvideRemoteInfoConfig]"),
        ({}, "[Images.ProvideRemoteInfoConfig.mips]"),
        ({}, "[Images.ProvideRemoteInfoConfig.amd64]\nVariants = x\nBranches ="),
        ({}, "[Overhaul]\nRemoveStall = yes"),
        ({}, "[Overhaul.Rule.x]\nImages = 3.*\nUnknownHardware = maybe"),
        ({}, "[Overhaul.Rule.x]\nImages = 3.*\nNotHardware = board"),
        ({"Branches": ""}, ""),
        ({}, "no section"),
    ],
)
def test_a_configuration_that_cannot_be_used_ends_with_1(
    site: _Site, caplog: pytest.LogCaptureFixture, options: dict[str, str], section: str
) -> None:
    site.configure(section, **options)
    if options.get("PoolDir") is None and "Products" not in options:
        site.put("3.7.1", "20240108")

    assert site.generate() == 1
    assert "s.conf" in caplog.text
    assert not [path for path in site.files() if path.endswith(".json")]


def test_wrong_usage_ends_with_2() -> None:
    with pytest.raises(SystemExit) as ended:
        main([])

    assert ended.value.code == 2


def test_only_one_generator_writes_into_a_tree(site: _Site) -> None:
    site.configure(StrictPoolValidation="no")
    site.put("3.7.1", "20240108")
    program = [sys.executable, "-m", "overhaul.dialects.atomupd.static_cli", "-v", "-c", str(site.file)]
    with subprocess.Popen([*program, "-r"], cwd=site.tree, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        try:
            assert any("files written" in line for line in daemon.stderr)
            second = subprocess.run(program, cwd=site.tree, capture_output=True, text=True, check=False)
            site.put("3.7.2", "20240109")
            (site.pool / "steamos" / "updated.txt").write_text("now")
            assert any("files written" in line for line in daemon.stderr)
        finally:
            daemon.send_signal(signal.SIGINT)

    assert second.returncode == 1
    assert "Another static server" in second.stderr
    assert daemon.returncode == 0
    assert site.builds(f"{_HOLO}/stable/3.7.1/20240108.0.json") == ["20240109.0"]
    assert not (site.tree / ".lockfile.lock").exists()
