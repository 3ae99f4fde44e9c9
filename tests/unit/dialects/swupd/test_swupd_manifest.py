"""Manifests are read and written byte for byte as the grammar says, and nothing else is read."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.mutations import fuzzing, judged, mutated

from overhaul.dialects.swupd.hash import NO_HASH
from overhaul.dialects.swupd.manifest import (
    Entry,
    MalformedManifestError,
    Manifest,
    deleted_entry,
    encode_manifest,
    parse_manifest,
    sort_key,
)

A, B = "a" * 64, "b" * 64

GOLDEN_MOM = f"""MANIFEST\t4
version:\t20
previous:\t10
filecount:\t2
timestamp:\t1795222924
contentsize:\t0

M...\t{A}\t10\teditors
M...\t{B}\t20\tos-core
""".encode()
GOLDEN_BUNDLE = f"""MANIFEST\t29
version:\t20
previous:\t10
minversion:\t10
filecount:\t3
timestamp:\t1795222924
contentsize:\t5120
includes:\tos-core
also-add:\tman

D...\t{A}\t10\t/usr/share/ed
F...\t{B}\t20\t/usr/bin/ed
.d..\t{NO_HASH}\t20\t/usr/bin/old
""".encode()
BUNDLE = Manifest(
    format=29,
    version=20,
    previous=10,
    minversion=10,
    timestamp=1795222924,
    content_size=5120,
    includes=("os-core",),
    also_add=("man",),
    entries=(
        Entry("D", ".", ".", ".", A, 10, b"/usr/share/ed"),
        Entry("F", ".", ".", ".", B, 20, b"/usr/bin/ed"),
        deleted_entry(b"/usr/bin/old", version=20),
    ),
)


def test_a_bundle_is_written_and_read_as_the_golden_bytes() -> None:
    assert encode_manifest(BUNDLE) == GOLDEN_BUNDLE
    assert parse_manifest(GOLDEN_BUNDLE, name="editors") == BUNDLE


def test_a_mom_is_written_and_read_as_the_golden_bytes() -> None:
    mom = parse_manifest(GOLDEN_MOM, name="MoM")
    assert [(entry.name, entry.version, entry.hash) for entry in mom.entries] == [
        (b"editors", 10, A),
        (b"os-core", 20, B),
    ]
    assert encode_manifest(mom) == GOLDEN_MOM


def test_entries_are_sorted_by_version_and_bytewise_name() -> None:
    entries = (
        Entry("F", ".", ".", ".", A, 20, b"/a"),
        Entry("F", ".", ".", ".", A, 10, b"/\xff"),
        Entry("F", ".", ".", ".", A, 10, b"/Z"),
    )
    lines = encode_manifest(Manifest(format=4, version=20, entries=entries)).splitlines()[-3:]
    assert [line.split(b"\t")[2:] for line in lines] == [[b"10", b"/Z"], [b"10", b"/\xff"], [b"20", b"/a"]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"MANIFEST\t29", b"MANIFEST\t2"),
        (b"MANIFEST\t29", b"MANIFEST 29"),
        (b"version:\t20\n", b""),
        (b"version:\t20\n", b"version:\t20\nversion:\t20\n"),
        (b"version:\t20", b"version:\t0"),
        (b"version:\t20", b"version:\t4294967296"),
        (b"version:\t20", b"version:\t+20"),
        (b"filecount:\t3", b"filecount:\t2"),
        (b"filecount:\t3", b"filecount:\t4000001"),
        (b"contentsize:\t5120", b"contentsize:\t2000000000001"),
        (b"includes:\tos-core", b"includes:\t../os-core"),
        (b"includes:\tos-core", b"includes os-core"),
        (b"\n\n", b"\n"),
        (b"/usr/bin/ed\n", b"/usr/bin/ed"),
        (b"/usr/bin/ed", b"usr/bin/ed"),
        (b"/usr/bin/ed", b"/usr/../ed"),
        (b"/usr/bin/ed", b"/usr//ed"),
        (b"/usr/bin/ed", b"/usr/bin/ed/"),
        (b"/usr/bin/ed", b"/usr/./ed"),
        (b"/usr/bin/ed", b"/usr/bin/e\td"),
        (b"/usr/bin/ed", b"/" + b"x" * 9000),
        (b"F...", b"M..."),
        (b"F...", b"...."),
        (b"F...", b"X..."),
        (b"F...", b"F.."),
        (B.encode(), B.encode().upper()),
        (b"20\t/usr/bin/ed", b"0\t/usr/bin/ed"),
        (b"/usr/bin/old\n", b"/usr/bin/old\n\n"),
        (b"MANIFEST\t29\n", b"MANIFEST\t29\r\n"),
    ],
)  # fmt: skip
def test_what_breaks_the_grammar_is_refused(old: bytes, new: bytes) -> None:
    spoilt = GOLDEN_BUNDLE.replace(old, new, 1)
    assert spoilt != GOLDEN_BUNDLE
    with pytest.raises(MalformedManifestError, match="editors"):
        parse_manifest(spoilt, name="editors")


def test_a_mom_lists_bundles_only() -> None:
    for line in (b"F...", b"D..."):
        with pytest.raises(MalformedManifestError):
            parse_manifest(GOLDEN_MOM.replace(b"M...", line, 1), name="MoM")
    with pytest.raises(MalformedManifestError):
        parse_manifest(GOLDEN_MOM.replace(b"editors", b"../editors"), name="MoM")


def test_header_lines_nobody_knows_are_ignored() -> None:
    data = GOLDEN_BUNDLE.replace(b"includes:", b"colour:\tblue\nincludes:")
    assert parse_manifest(data, name="editors") == BUNDLE


def test_every_truncation_is_refused_or_a_shorter_list() -> None:
    for end in range(len(GOLDEN_BUNDLE)):
        cut = judged(partial(parse_manifest, GOLDEN_BUNDLE[:end], name="x"), refusal=MalformedManifestError)
        assert cut is None or GOLDEN_BUNDLE[:end].endswith(b"\n")


_NAMES = st.binary(min_size=1, max_size=40).map(lambda raw: b"/" + raw.translate(None, b"\n\t\0/.") + b"x")


@given(
    st.lists(
        st.builds(
            Entry, st.sampled_from("FDL"), *map(st.just, (".", ".", ".", A)), st.integers(1, (1 << 31) - 1), _NAMES
        ),
        max_size=20,
    ),
    st.integers(3, 1000),
)
def test_what_is_written_is_read_back(entries: list[Entry], number: int) -> None:
    manifest = Manifest(format=number, version=10, entries=tuple(sorted(entries, key=sort_key)))
    assert parse_manifest(encode_manifest(manifest), name="os-core") == manifest


@fuzzing(300)
@given(mutated(GOLDEN_BUNDLE))
def test_spoilt_manifests_are_read_or_refused_in_one_sentence(data: bytes) -> None:
    judged(lambda: parse_manifest(data, name="os-core"), refusal=MalformedManifestError)
