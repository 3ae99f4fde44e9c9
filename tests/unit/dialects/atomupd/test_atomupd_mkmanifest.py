"""`steamos-atomupd-mkmanifest` prints what devices and servers read."""

import json
from pathlib import Path

import pytest

from overhaul.dialects.atomupd.manifest import parse_manifest
from overhaul.dialects.atomupd.mkmanifest_cli import main

_OS_RELEASE = {
    "NAME": '"Steam OS"',
    "ID": "steamos",
    "VERSION_CODENAME": "holo",
    "VARIANT_ID": "steamdeck",
    "VERSION_ID": '"3.7"',
    "BUILD_ID": "20240115",
}


@pytest.fixture
def os_release(tmp_path: Path) -> Path:
    return written(tmp_path)


def written(directory: Path, **changes: str) -> Path:
    """Write an os-release in which some fields are changed, or empty and so left out."""
    fields = {**_OS_RELEASE, **changes}
    path = directory / "os-release"
    path.write_text("".join(f"{name}={value}\n" for name, value in fields.items() if value))
    return path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_the_manifest_of_a_device_says_the_branch_it_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, STEAMOS_DEFAULT_UPDATE_BRANCH="beta")
    text = printed(capsys, "--os-release-path", path, "--branch", "main", "--arch", "x86_64")
    assert text == (
        '{\n  "product": "steamos",\n  "release": "holo",\n  "variant": "steamdeck",\n'
        '  "default_update_branch": "beta",\n  "arch": "amd64",\n  "version": "3.7.0",\n  "buildid": "20240115.0"\n}\n'
    )


def test_the_manifest_of_a_server_says_the_branch_it_is_published_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, STEAMOS_DEFAULT_UPDATE_BRANCH="beta")
    text = printed(capsys, "--os-release-path", path, "--branch", "main", "--server-manifest")
    document = json.loads(text)
    assert list(document)[2:5] == ["variant", "branch", "default_update_branch"]
    assert (document["branch"], document["default_update_branch"]) == ("main", "beta")


@pytest.mark.parametrize(
    ("options", "checkpoints"),
    [
        ([], {}),
        (["--introduces-checkpoint", "2"], {"introduces_checkpoint": 2, "requires_checkpoint": 0}),
        (["--requires-checkpoint", "1"], {"requires_checkpoint": 1}),
        (
            ["--introduces-checkpoint", "2", "--requires-checkpoint", "1"],
            {"introduces_checkpoint": 2, "requires_checkpoint": 1},
        ),
    ],
)
def test_checkpoints_are_written_when_there_are_any(
    os_release: Path, capsys: pytest.CaptureFixture[str], options: list[str], checkpoints: dict[str, int]
) -> None:
    document = json.loads(printed(capsys, "--os-release-path", os_release, "--branch", "stable", *options))
    assert {name: value for name, value in document.items() if name.endswith("_checkpoint")} == checkpoints


@pytest.mark.parametrize("checkpoint", [False, True])
def test_without_any_branch_the_manifest_is_one_of_the_first_generation(
    os_release: Path, capsys: pytest.CaptureFixture[str], checkpoint: bool
) -> None:
    options = ["--checkpoint"] if checkpoint else []
    text = printed(capsys, "--os-release-path", os_release, *options)
    document = json.loads(text)
    assert list(document) == ["product", "release", "variant", "arch", "version", "buildid", "checkpoint"]
    assert document["checkpoint"] is checkpoint
    assert parse_manifest(text.encode(), branches=False)[0].checkpoint is checkpoint


def test_options_win_over_os_release(os_release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"product": "other", "release": "doom", "variant": "devel", "arch": "arm64", "version": "snapshot"}
    options = [part for name, value in names.items() for part in (f"--{name}", value)]
    document = json.loads(printed(capsys, "--os-release-path", os_release, "--buildid", "20250101.3", *options))
    assert document == {**names, "buildid": "20250101.3", "checkpoint": False}


@pytest.mark.parametrize("missing", ["ID", "VERSION_CODENAME", "VARIANT_ID", "VERSION_ID", "BUILD_ID"])
def test_what_nobody_says_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str) -> None:
    assert main(["--os-release-path", str(written(tmp_path, **{missing: ""}))]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f"set {missing} in os-release" in output.err


@pytest.mark.parametrize(
    "arguments",
    [["--buildid", "20249999"], ["--version", "v3"], ["--introduces-checkpoint", "1"], ["--server-manifest"]],
)
def test_what_cannot_be_used_is_refused(
    os_release: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["--os-release-path", str(os_release), *arguments]) == 1
    assert capsys.readouterr().out == ""


def test_an_os_release_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--os-release-path", str(tmp_path / "none")]) == 1
    assert "none cannot be read: No such file" in capsys.readouterr().err


def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["--requires-checkpoint", "-1"])
    assert ending.value.code == 2
