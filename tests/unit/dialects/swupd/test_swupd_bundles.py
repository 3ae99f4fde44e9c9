"""Definitions of bundles: what they take, what they include, and which are refused."""

import pytest
from hypothesis import given
from tests.fuzz.mutations import fuzzing, judged, mutated

from overhaul.dialects.swupd.bundles import (
    Assignment,
    BundleDefinition,
    BundleDefinitionError,
    all_includes,
    parse_bundles_toml,
    parse_groups_ini,
)

TOML = b"""
[bundles.python]
title = "Python"
files = ["/usr/bin/python3*", "/usr/lib/python3"]

[bundles.editors]
includes = ["python"]
also-add = ["manuals"]
status = "Experimental"
files = ["/usr/bin/?i", "/usr/share/vim/**"]

[bundles.manuals]
files = ["/usr/share/man"]
"""
GROUPS = b"[os-core]\ngroup=os-core\n\n[editors]\ngroup=editors\nstatus=Deprecated\n"


def test_toml_and_the_old_groups_are_read() -> None:
    bundles = {one.name: one for one in parse_bundles_toml(TOML, place="x")}
    assert sorted(bundles) == ["editors", "manuals", "os-core", "python"]
    assert bundles["editors"].includes == ("os-core", "python")
    assert bundles["editors"].is_experimental
    assert bundles["os-core"].includes == ()
    old = parse_groups_ini(GROUPS, place="x")
    assert [(one.name, one.includes, one.is_deprecated) for one in old] == [
        ("editors", ("os-core",), True),
        ("os-core", (), False),
    ]
    assert all_includes(list(bundles.values()))["editors"] == {"os-core", "python"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"/usr/bin/python3.11", ["python"]),
        (b"/usr/bin/python2", ["os-core"]),
        (b"/usr/lib/python3", ["python"]),
        (b"/usr/lib/python3/deep/file", ["python"]),
        (b"/usr/lib/python33", ["os-core"]),
        (b"/usr/bin/vi", ["editors"]),
        (b"/usr/bin/a/i", ["os-core"]),
        (b"/usr/share/vim/doc/help.txt", ["editors"]),
        (b"/usr/share/man/man1/vi.1", ["manuals"]),
        (b"/usr/share/man/odd\nname", ["manuals"]),
    ],
)
def test_patterns_take_paths(name: bytes, expected: list[str]) -> None:
    assert Assignment(parse_bundles_toml(TOML, place="x")).bundles_of(name) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[bundles.a]\nincludes = ['b']", "names the bundle 'b'"),
        (b"[bundles.a]\nincludes = ['a']", "names the bundle 'a'"),
        (b"[bundles.a]\nincludes = ['b']\n[bundles.b]\nincludes = ['a']", "include one another"),
        (b"[bundles.os-core]\nincludes = ['b']\n[bundles.b]", "cannot include"),
        (b"[bundles.'../x']", "no name for a bundle"),
        (b"[bundles.full]", "no name for a bundle"),
        (b"[bundles.a]\nfiles = ['relative']", "does not match|matching regex"),
        (b"[bundles.a]\nfile = ['/x']", "unknown field"),
        (b'[bundles.a]\nstatus = "a\\nb"', "no plain text"),
        (b"nonsense", "cannot be built"),
        (b"\xff", "cannot be built"),
    ],
)
def test_definitions_that_cannot_be_built_are_refused(text: bytes, reason: str) -> None:
    with pytest.raises(BundleDefinitionError, match=reason):
        parse_bundles_toml(text, place="bundles.toml")


@fuzzing(150)
@given(mutated(TOML), mutated(GROUPS))
def test_spoilt_definitions_are_read_or_refused(toml: bytes, groups: bytes) -> None:
    judged(lambda: parse_bundles_toml(toml, place="x"), refusal=BundleDefinitionError)
    judged(lambda: parse_groups_ini(groups, place="x"), refusal=BundleDefinitionError)


def test_a_pattern_of_a_bundle_without_files_takes_nothing() -> None:
    assert Assignment([BundleDefinition(name="a")]).bundles_of(b"/x") == ["os-core"]
