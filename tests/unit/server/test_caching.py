"""What the name of a published file says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.server.caching import IMMUTABLE, REVALIDATE, etag_matches, naming_of

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "cache_control", "etag"),
    [
        ("metadata/timestamp.json", REVALIDATE, None),
        ("metadata/12.root.json", IMMUTABLE, None),
        ("metadata/3.alpha-policy.json", IMMUTABLE, None),
        ("metadata/0.root.json", REVALIDATE, None),
        ("metadata/root.json", REVALIDATE, None),
        (f"targets/alpha/policy/{DIGEST}.stable.json", IMMUTABLE, f'"{DIGEST}"'),
        (f"content/packs/01/{DIGEST}.pack", IMMUTABLE, f'"{DIGEST}"'),
        (f"castr/alpha/0123/{DIGEST}.cacnk", IMMUTABLE, f'"{DIGEST}"'),
        ("targets/alpha/stable.json", REVALIDATE, None),
        (f"content/packs/01/{DIGEST[1:]}.pack", REVALIDATE, None),
        (f"content/packs/01/{DIGEST}0.pack", REVALIDATE, None),
    ],
)
def test_a_name_with_its_own_digest_or_version_lasts_for_ever(path: str, cache_control: str, etag: str | None) -> None:
    naming = naming_of(path)

    assert naming is not None
    assert (naming.cache_control, naming.etag) == (cache_control, etag)


@pytest.mark.parametrize(
    ("path", "cache_control"),
    [
        ("swupd/kiosk/shop/amd64/version/format4/latest", REVALIDATE),
        ("swupd/kiosk/shop/amd64/version/latest_version.sig", REVALIDATE),
        ("swupd/kiosk/shop/amd64/channels/beta/version/format4/latest", REVALIDATE),
        ("swupd/kiosk/shop/amd64/channels/10/Manifest.MoM", REVALIDATE),
        ("swupd/kiosk/shop/amd64/20/format", REVALIDATE),
        ("swupd/kiosk/shop/amd64/20/Manifest.os-core.tar", IMMUTABLE),
        ("swupd/kiosk/shop/amd64/20/Manifest.MoM", IMMUTABLE),
        ("swupd/kiosk/shop/amd64/20/Manifest.MoM.sig", REVALIDATE),
        ("swupd/kiosk/shop/amd64/20/Manifest-os-core-delta-from-10", IMMUTABLE),
        ("swupd/kiosk/shop/amd64/20/pack-c++-from-10.tar", IMMUTABLE),
        ("swupd/kiosk/shop/amd64/20/pack-c++-from-0.tar.blocks", REVALIDATE),
        (f"swupd/kiosk/shop/amd64/20/delta/10-20-{DIGEST}-{DIGEST}", IMMUTABLE),
        (f"swupd/kiosk/shop/amd64/20/files/{DIGEST}.tar", IMMUTABLE),
        (f"swupd/kiosk/20/amd64/files/{DIGEST}.tar", REVALIDATE),
        ("ostree/kiosk/config", REVALIDATE),
        ("ostree/kiosk/summary", REVALIDATE),
        ("ostree/kiosk/summary.sig", REVALIDATE),
        ("ostree/kiosk/refs/heads/kiosk/stable", REVALIDATE),
        (f"ostree/kiosk/objects/{DIGEST[:2]}/{DIGEST[2:]}.filez", IMMUTABLE),
        (f"ostree/kiosk/objects/{DIGEST[:2]}/{DIGEST[2:]}.commit", IMMUTABLE),
        (f"ostree/kiosk/objects/{DIGEST[:2]}/{DIGEST[2:]}.commitmeta", REVALIDATE),
        ("ostree/kiosk/deltas/aB/c_+D-e/superblock", REVALIDATE),
        ("ostree/kiosk/deltas/aB/c_+D-e/0", REVALIDATE),
        ("ostree/kiosk/delta-indexes/aB/c_+D.index", REVALIDATE),
        ("atomupd/kiosk/images/kiosk/shop/amd64/1.0/b1/image.raucb", IMMUTABLE),
        (f"atomupd/kiosk/images/kiosk/shop/amd64/1.0/b1/image.castr/{DIGEST[:4]}/{DIGEST}.cacnk", IMMUTABLE),
        ("atomupd/kiosk/images/kiosk/shop/amd64/1.0/b1/image.manifest.json", REVALIDATE),
        ("atomupd/kiosk/meta/holo/kiosk/amd64/shop/stable.json", REVALIDATE),
    ],
)
def test_trees_of_other_systems_are_validated_by_the_file_and_not_by_reading_it(path: str, cache_control: str) -> None:
    naming = naming_of(path)

    assert naming is not None
    assert naming.is_foreign
    assert (naming.cache_control, naming.etag) == (cache_control, None)


@pytest.mark.parametrize(
    "path",
    [
        "ostree/kiosk/tmp/cache/x",
        "ostree/kiosk/state/x",
        "ostree/kiosk/extensions/x",
        "ostree/kiosk/.lock",
        "ostree/kiosk/origin.trustedkeys.gpg",
        "ostree/kiosk/overhaul.trustedkeys.gpg",
        f"ostree/kiosk/objects/{DIGEST[:2]}/{DIGEST[2:]}.filez.tmp",
        "ostree/kiosk",
        "swupd/kiosk/shop/amd64/.building-20/Manifest.MoM",
    ],
)
def test_what_other_systems_only_work_with_is_not_served(path: str) -> None:
    assert naming_of(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "metadata",
        "metadata/",
        "/metadata/1.root.json",
        "private/lock",
        "metadata/../private/lock",
        "metadata/./1.root.json",
        "metadata//1.root.json",
        "metadata/.hidden",
        "metadata/a\x00b",
        "metadata/a\nb",
        "metadata/1.root.json\n",
        "metadata\\..\\private",
        "metadata/%2e%2e/private",
        "metadata/" + "a" * 1100,
    ],
)
def test_what_is_no_plain_path_names_no_file(path: str) -> None:
    assert naming_of(path) is None


@given(st.text(alphabet="abc./%\\~ \x00", max_size=40))
def test_no_accepted_path_has_a_part_that_begins_with_a_dot(tail: str) -> None:
    path = "content/" + tail

    if naming_of(path) is not None:
        assert not any(part.startswith(".") or not part for part in path.split("/"))


@pytest.mark.parametrize(
    ("header", "matches"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), (None, False), ('"b"', False), ("a", False)],
)
def test_a_tag_is_found_in_any_place_of_the_header(header: str | None, matches: bool) -> None:
    assert etag_matches(header, '"a"') is matches
