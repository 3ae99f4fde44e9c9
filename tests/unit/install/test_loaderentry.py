"""Names, texts and order of boot entries, as systemd-boot reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.install.loaderentry import (
    Entry,
    EntryName,
    UnusableOptionsError,
    in_loader_order,
    inert,
    parse_name,
    render_entry,
    with_version,
)

SLOTS = st.from_regex(r"\A[A-Za-z][A-Za-z0-9]{0,15}\Z")


@given(slot=SLOTS, left=st.none() | st.integers(0, 9), done=st.integers(0, 99))
def test_any_name_is_read_as_it_was_written(slot: str, left: int | None, done: int) -> None:
    name = EntryName(slot=slot, left=left, done=done if left is not None else 0)
    assert parse_name(str(name)) == name


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("overhaul-A.conf", EntryName(slot="A")),
        ("overhaul-B+3.conf", EntryName(slot="B", left=3)),
        ("overhaul-B+2-1.conf", EntryName(slot="B", left=2, done=1)),
        ("overhaul-B+0-3.conf", EntryName(slot="B", left=0, done=3)),
        # systemd-boot writes the second number also when it is 0.
        ("overhaul-B+3-0.conf", EntryName(slot="B", left=3)),
        ("overhaul-.conf", None),
        ("overhaul-B+.conf", None),
        ("overhaul-B+1-2-3.conf", None),
        ("overhaul-B.conf.old", None),
        (".overhaul-B.conf", None),
        ("debian.conf", None),
        ("overhaul-B+3.conf\n", None),
    ],
)
def test_names_are_told_from_those_of_others(file: str, name: EntryName | None) -> None:
    assert parse_name(file) == name


def test_the_text_is_what_the_specification_asks_for() -> None:
    assert render_entry("B", version=7, options="root=PARTLABEL=root-{slot} ro", has_initrd=True) == (
        b"\nlinux /overhaul/B/linux\nversion 00000007\nsort-key overhaul\ntitle Overhaul, slot B\n"
        b"initrd /overhaul/B/initrd\noptions root=PARTLABEL=root-B ro overhaul.slot=B\n"
    )
    assert b"initrd" not in render_entry("B", version=7, options="ro", has_initrd=False)


@pytest.mark.parametrize("options", ["ro\nlinux /evil", "ro\r", "ro\0", "ro\x1b[2J"])
def test_options_that_would_be_other_lines_are_refused(options: str) -> None:
    with pytest.raises(UnusableOptionsError, match="one line"):
        render_entry("B", version=1, options=options, has_initrd=False)


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_another_number_changes_nothing_beyond_the_first_sector(first: int, second: int) -> None:
    text = render_entry("B", version=first, options="x" * 2000, has_initrd=True)
    other = with_version(text, second)
    assert len(text) == len(other)
    assert text[512:] == other[512:]


def entry(file: str, version: int, *, is_live: bool = True) -> Entry:
    name = parse_name(file)
    assert name is not None
    text = render_entry(name.slot, version=version, options="ro", has_initrd=False)
    return Entry(file=file, name=name, text=text if is_live else inert(text))


@pytest.mark.parametrize(
    ("entries", "order"),
    [
        ([entry("overhaul-A.conf", 1), entry("overhaul-B+3.conf", 2)], ["overhaul-B+3.conf", "overhaul-A.conf"]),
        ([entry("overhaul-A.conf", 3), entry("overhaul-B+3.conf", 2)], ["overhaul-A.conf", "overhaul-B+3.conf"]),
        ([entry("overhaul-B+0-3.conf", 2), entry("overhaul-A.conf", 1)], ["overhaul-A.conf", "overhaul-B+0-3.conf"]),
        ([entry("overhaul-B+3.conf", 2, is_live=False), entry("overhaul-A.conf", 1)], ["overhaul-A.conf"]),
        ([entry("overhaul-B+1-2.conf", 2), entry("overhaul-B.conf", 2)], ["overhaul-B.conf", "overhaul-B+1-2.conf"]),
        ([], []),
    ],
)
def test_used_up_entries_come_last_and_else_the_highest_number_first(entries: list[Entry], order: list[str]) -> None:
    assert [one.file for one in in_loader_order(entries)] == order
    assert [one.file for one in in_loader_order(reversed(entries))] == order


@pytest.mark.parametrize("text", [b"", b"#", b"\n", b"linux", b"\0" * 512, b"\nversion 00000001\n", b"#linux /x\n"])
def test_what_does_not_name_a_kernel_in_its_first_line_does_not_count(text: bytes) -> None:
    assert not Entry(file="overhaul-B.conf", name=EntryName(slot="B"), text=text).is_live
