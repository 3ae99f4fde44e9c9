"""The members of initial file systems, as the real cpio writes them."""

import os
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.tools import need

from overhaul.content.delta.archives import end_of_archives, members


def make_archive(tree: Path, files: dict[str, bytes]) -> bytes:
    """Return a cpio archive made by the real program."""
    need("cpio")
    for name, data in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*"))
    done = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"],
        input="\n".join(names).encode(),
        cwd=tree,
        check=True,
        capture_output=True,
        env={**os.environ, "LC_ALL": "C"},
    )
    return done.stdout


_FILES = {"init": b"#!/bin/sh\n", "lib/modules/a.ko": b"\x7fELF" * 400, "etc/empty": b""}


def test_every_file_is_found_where_it_lies(tmp_path: Path) -> None:
    archive = make_archive(tmp_path, _FILES)
    found = {member.name.decode(): archive[member.offset : member.offset + member.size] for member in members(archive)}
    assert {name: found[name] for name in _FILES} == _FILES


def test_archives_one_behind_the_other_are_one_list(tmp_path: Path) -> None:
    first, second = make_archive(tmp_path / "a", {"kernel/x86": b"microcode" * 9}), make_archive(tmp_path / "b", _FILES)
    both = first + bytes(512) + second
    names = [member.name for member in members(both)]
    assert b"kernel/x86" in names
    assert b"init" in names
    assert end_of_archives(first + bytes(512) + b"\x28\xb5\x2f\xfd") == len(first) + 512


def test_bytes_of_another_kind_have_no_members() -> None:
    assert list(members(b"\x7fELF" + bytes(500))) == []
    assert end_of_archives(b"\x7fELF" + bytes(500)) == 0


@given(cut=st.integers(0, 5000), place=st.integers(0, 5000), value=st.integers(0, 255))
def test_damaged_archives_end_early_and_never_lead_outside(cut: int, place: int, value: int) -> None:
    data = bytearray(_DAMAGED[: cut % len(_DAMAGED) + 1])
    data[place % len(data)] = value
    for member in members(bytes(data)):
        assert 0 <= member.offset <= member.offset + member.size <= len(data)


def _by_hand(name: bytes, data: bytes) -> bytes:
    fields = [0, 0o100644, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)


_DAMAGED = b"".join(_by_hand(b"name%d" % number, bytes([number]) * (37 * number)) for number in range(1, 12))
