"""Names and places in a repository, and what a server says about them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.dialects.ostree.errors import BadRefNameError, MalformedOstreeDataError
from overhaul.dialects.ostree.layout import (
    CacheRule,
    Refspec,
    cache_rule,
    check_ref,
    decode_config,
    decode_ref,
    delta_directory,
    delta_index_path,
    delta_name,
    encode_config,
    encode_ref,
    object_path,
    parse_delta_directory,
    parse_delta_name,
    parse_object_path,
    parse_refspec,
    ref_path,
)
from overhaul.dialects.ostree.objects import ObjectName, ObjectType

_HELLO = bytes.fromhex("44f778e59f0a4748d6b0c90a47347212a231c4ad1e8f7ea5c5dffc7749153a6b")
_CHECKSUMS = st.binary(min_size=32, max_size=32)


def test_a_delta_lies_where_ostree_looks_for_it() -> None:
    assert delta_directory(None, _HELLO) == "deltas/RP/d45Z8KR0jWsMkKRzRyEqIxxK0ej36lxd_8d0kVOms"
    assert delta_index_path(_HELLO) == "delta-indexes/RP/d45Z8KR0jWsMkKRzRyEqIxxK0ej36lxd_8d0kVOms.index"


@given(source=_CHECKSUMS | st.none(), target=_CHECKSUMS)
def test_delta_names_and_directories_read_back(source: bytes | None, target: bytes) -> None:
    assert parse_delta_directory(delta_directory(source, target)) == (source, target)
    assert parse_delta_name(delta_name(source, target)) == (source, target)


@pytest.mark.parametrize("path", ["deltas", "deltas/", "deltas/ab/cd", "objects/RP/x", "deltas/RP/" + "A" * 42])
def test_other_directories_are_no_deltas(path: str) -> None:
    assert parse_delta_directory(path) is None


def test_objects_lie_by_their_checksum() -> None:
    name = ObjectName(ObjectType.FILE, _HELLO)
    path = "objects/44/f778e59f0a4748d6b0c90a47347212a231c4ad1e8f7ea5c5dffc7749153a6b"
    assert object_path(name) == f"{path}.filez"
    assert object_path(name, bare=True) == f"{path}.file"
    assert parse_object_path(f"{path}.filez") == name
    assert parse_object_path(f"{path}.odd") is None


@pytest.mark.parametrize("name", ["a", "kiosk/x86_64/shop", "_a/b.c-d", "0/1"])
def test_branch_names_are_taken(name: str) -> None:
    assert check_ref(name) == name
    assert parse_refspec(f"updates:{name}") == Refspec(name, "updates")
    assert ref_path(Refspec(name, "updates")) == f"refs/remotes/updates/{name}"


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "../a", "a/../b", ".a", "-a", "a b", "a\n", "ä", "a:b:c", "a/.b"]
)
def test_other_names_are_no_branches(name: str) -> None:
    with pytest.raises(BadRefNameError):
        check_ref(name)


def test_refs_read_back_and_damaged_ones_are_refused() -> None:
    assert decode_ref(encode_ref(_HELLO), what="ref") == _HELLO
    for data in (b"", b"\n", b"x" * 64, encode_ref(_HELLO).upper(), encode_ref(_HELLO)[1:], b"\xff" * 64):
        with pytest.raises(MalformedOstreeDataError):
            decode_ref(data, what="ref")


def test_a_configuration_reads_back() -> None:
    sections = {"core": {"repo_version": "1", "mode": "archive-z2"}, 'remote "updates"': {"url": "https://x/?a=b"}}
    assert decode_config(encode_config(sections), what="config") == sections
    for data in (b"mode=archive\n", b"[core]\nmode\n", b"\xff"):
        with pytest.raises(MalformedOstreeDataError):
            decode_config(data, what="config")


_DIGITS = _HELLO.hex()


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        (f"objects/44/{_DIGITS[2:]}.filez", CacheRule.IMMUTABLE),
        (f"objects/44/{_DIGITS[2:]}.commit", CacheRule.IMMUTABLE),
        (f"objects/44/{_DIGITS[2:]}.commitmeta", CacheRule.REVALIDATE),
        ("summary", CacheRule.REVALIDATE),
        ("summary.sig", CacheRule.REVALIDATE),
        ("config", CacheRule.REVALIDATE),
        ("refs/heads/kiosk/x86_64/shop", CacheRule.REVALIDATE),
        ("deltas/RP/d45-x/superblock", CacheRule.REVALIDATE),
        ("deltas/RP/d45-x/0", CacheRule.REVALIDATE),
        ("delta-indexes/RP/d45.index", CacheRule.REVALIDATE),
        ("updates.trustedkeys.gpg", CacheRule.HIDDEN),
        (".lock", CacheRule.HIDDEN),
        (".overhaul.lock", CacheRule.HIDDEN),
        ("tmp/cache/x", CacheRule.HIDDEN),
        ("state/x.commitpartial", CacheRule.HIDDEN),
        ("refs/heads/.half.tmp", CacheRule.HIDDEN),
        (f"objects/44/{_DIGITS[2:]}.odd", CacheRule.HIDDEN),
        ("objects/../config", CacheRule.HIDDEN),
    ],
)
def test_a_server_keeps_what_never_changes_and_hides_what_is_not_the_worlds(path: str, rule: CacheRule) -> None:
    assert cache_rule(path) is rule
