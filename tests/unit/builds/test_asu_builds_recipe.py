"""What makes two requests the same image, and what no request may contain."""

import hashlib
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.builds.recipe import (
    InvalidRecipeError,
    Recipe,
    decode_recipe,
    encode_recipe,
    public_names,
    same_recipe,
)

BASE = Recipe(
    builder="openwrt", distribution="openwrt", version="23.05.5", target="ath79/generic", profile="tplink_archer-c7-v5"
)

#: One other value for each field.
OTHER: dict[str, object] = {
    "builder": "debian",
    "distribution": "libremesh",
    "version": "23.05.4",
    "revision": "r1-a",
    "target": "x86/64",
    "profile": "generic",
    "packages": ("vim",),
    "package_versions": (("vim", "9.1-1"),),
    "diff_packages": True,
    "defaults": "echo hi\n",
    "filesystem": "ext4",
    "rootfs_size_mb": 256,
    "repositories": (("a", "https://x/y"),),
    "repositories_mode": "append",
    "repository_keys": ("K",),
    "naming": "manifest",
}


def _with(**changes: object) -> Recipe:
    return msgspec.convert({**msgspec.to_builtins(BASE), **changes}, Recipe, strict=False)


def test_every_field_decides_the_key() -> None:
    assert set(OTHER) == set(Recipe.__struct_fields__)
    keys = {BASE.key, *(_with(**{field: value}).key for field, value in OTHER.items())}

    assert len(keys) == len(OTHER) + 1
    assert all(len(key) == 64 for key in keys)


def test_the_order_and_repetition_of_packages_do_not_count_and_stay_visible() -> None:
    one, other = _with(packages=("vim", "tmux")), _with(packages=("tmux", "vim", "vim"))

    assert one.key == other.key
    assert same_recipe(one, other)
    assert one.packages == ("vim", "tmux")


def test_no_character_can_move_from_one_field_to_the_next() -> None:
    """Upstream joined fields without separators, so these two had one hash."""
    assert _with(version="1.2", revision="3").canonical != _with(version="1.23").canonical
    assert _with(packages=("a", "b")).canonical != _with(packages=("a,b",)).canonical
    assert _with(packages=("a",), repository_keys=()).canonical != _with(packages=(), repository_keys=("a",)).canonical


def test_the_key_is_the_digest_of_length_prefixed_bytes() -> None:
    canonical = BASE.canonical
    assert canonical.startswith(b"overhaul recipe 1\ns" + struct.pack(">Q", 7) + b"builders" + struct.pack(">Q", 7))
    assert BASE.key == hashlib.sha256(canonical).hexdigest()
    # Records of finished builds hold this key: when it changes, every cached image is lost.
    assert BASE.key == "c11f83023b53bbb0148776556b559f83c341bcb8616b993ee52e54221ed53eb3"


def test_a_recipe_comes_back_from_its_record() -> None:
    recipe = _with(**OTHER)

    assert decode_recipe(encode_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("packages", ("vim;reboot",)),
        ("packages", ("$(reboot)",)),
        ("packages", ("`reboot`",)),
        ("packages", ("vim\n",)),
        ("packages", ("vim tmux",)),
        ("packages", ("--root=/",)),
        ("packages", ("../vim",)),
        ("packages", ("",)),
        ("packages", ("vim=1",)),
        ("packages", ("p",) * 2001),
        ("version", "23.05.5\n"),
        ("version", ".."),
        ("version", "1/../../2"),
        ("profile", "-n"),
        ("profile", "a\u0660"),
        ("target", "ath79/generic/more"),
        ("target", "ath79/.."),
        ("target", "../x86"),
        ("filesystem", "ext4 -o"),
        ("rootfs_size_mb", 0),
        ("repositories", (("a\nsrc/gz evil http://e", "https://x/y"),)),
        ("repositories", (("a", "https://x/y\nsrc/gz evil http://e"),)),
        ("repositories", (("a", "https://x/ y"),)),
        ("repositories", (("a", "file:///etc"),)),
        ("repositories", (("a", "https://x/$(id)"),)),
        ("repository_keys", ("a\0b",)),
        ("defaults", "a\0b"),
        ("revision", "r1\n"),
        ("package_versions", (("vim", "9 1"),)),
        ("package_versions", (("-vim", "9"),)),
    ],
)
def test_values_that_mean_something_else_further_down_are_refused(field: str, value: object) -> None:
    fields = {name: getattr(BASE, name) for name in Recipe.__struct_fields__}
    with pytest.raises(InvalidRecipeError) as refusal:
        Recipe(**{**fields, field: value})

    assert refusal.value.exit_code == 3
    assert "\n" not in str(refusal.value)


@given(st.text(max_size=40), st.text(max_size=40))
def test_text_of_any_kind_is_either_refused_or_keyed_apart(one: str, other: str) -> None:
    keys = {}
    for text in (one, other):
        try:
            keys[text] = _with(packages=(text,), defaults=text).key
        except (InvalidRecipeError, msgspec.ValidationError):
            continue
    assert len(set(keys.values())) == len(keys)


def test_a_short_name_has_longer_ones_behind_it() -> None:
    digest = hashlib.sha256(b"").hexdigest()

    assert public_names(digest, digits=12) == (digest[:12], digest[:24], digest)
    assert public_names(digest, digits=64) == (digest,)
