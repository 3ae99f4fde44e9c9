"""Manifests of all eras are read, and what is none is refused with the field's name."""

import json

import pytest

from overhaul.dialects.atomupd.manifest import (
    UnusableManifestError,
    image_of_fields,
    image_of_os_release,
    parse_manifest,
)

_FIELDS = {
    "product": "steamos",
    "release": "holo",
    "variant": "steamdeck",
    "branch": "stable",
    "arch": "x86_64",
    "version": "3.7",
    "buildid": "20240115.1",
}


def test_numbers_and_truth_values_may_be_texts() -> None:
    image = image_of_fields({**_FIELDS, "introduces_checkpoint": "2", "requires_checkpoint": "1", "skip": "TRUE"})

    assert (image.introduces_checkpoint, image.requires_checkpoint, image.skip, image.level) == (2, 1, True, 2)
    assert not image_of_fields({**_FIELDS, "skip": "yes"}).skip
    assert image.arch == "amd64"


@pytest.mark.parametrize("missing", ["product", "release", "variant", "arch", "version", "buildid"])
def test_a_missing_field_is_named(missing: str) -> None:
    fields = {name: value for name, value in _FIELDS.items() if name != missing}

    with pytest.raises(UnusableManifestError, match=missing):
        image_of_fields(fields)


def test_a_branch_stands_in_for_the_other() -> None:
    only_default = {**_FIELDS, "branch": "", "default_update_branch": "beta"}

    assert image_of_fields(only_default).branch == "beta"
    assert image_of_fields(_FIELDS).default_update_branch == "stable"


@pytest.mark.parametrize(("variant", "branch"), [("steamdeck", "stable"), ("steamdeck-main", "main")])
def test_legacy_variants_hold_their_branch(variant: str, branch: str) -> None:
    image = image_of_fields({**_FIELDS, "variant": variant, "branch": None})

    assert ("steamdeck", branch, variant) == (image.variant, image.branch, image.shown_variant)


@pytest.mark.parametrize(
    "change",
    [
        {"variant": "atomic", "branch": ""},
        {"checkpoint": True},
        {"checkpoint": "true"},
        {"version": 3},
        {"buildid": 20240115},
        {"requires_checkpoint": "one"},
        {"requires_checkpoint": 1.5},
        {"branch": 7},
        {"version": "v3"},
    ],
)
def test_what_contradicts_the_rules_of_branches_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(UnusableManifestError):
        image_of_fields({**_FIELDS, **change})


def test_seed_rules_know_checkpoints_and_no_branches() -> None:
    image = image_of_fields({**_FIELDS, "variant": "atomic", "branch": "", "checkpoint": True}, branches=False)

    assert (image.checkpoint, image.branch, image.variant) == (True, "", "atomic")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"7", b"\xff", b"[" * 100_000, b'{"product": "\\ud800"}'])
def test_bytes_that_are_no_manifest_are_refused(data: bytes) -> None:
    with pytest.raises(UnusableManifestError):
        parse_manifest(data)


def test_unknown_fields_are_told() -> None:
    _image, unknown = parse_manifest(json.dumps({**_FIELDS, "colour": "blue"}).encode())

    assert unknown == ("colour",)


def test_os_release_is_taken_in_place_of_a_manifest() -> None:
    text = """
        ID=steamos
        VERSION_CODENAME="holo"
        VARIANT_ID='steamdeck'
        STEAMOS_DEFAULT_UPDATE_BRANCH=beta
        VERSION_ID=3.7.1
        BUILD_ID=20240115.1
        EMPTY=
    """

    image = image_of_os_release(text, arch="x86_64")

    assert image.name == "steamos/holo/amd64/steamdeck/beta 3.7.1 20240115.1"
    with pytest.raises(UnusableManifestError, match="buildid"):
        image_of_os_release(text.replace("20240115.1", '""'))
