"""Classes of paths, and variants of files."""

import pytest

from overhaul.dialects.swupd.device.pathclasses import Classes, is_boot, is_state
from overhaul.dialects.swupd.device.variants import APX, AVX2, AVX512, choose
from overhaul.dialects.swupd.hash import NO_HASH
from overhaul.dialects.swupd.manifest import Entry


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (b"/var", False),
        (b"/var/lib", True),
        (b"/home/me", True),
        (b"/data", True),
        (b"/usr/src/mine", True),
        (b"/usr/src/debug", False),
        (b"/usr/src/debug/x", False),
        (b"/usr/src/kernel/x", False),
        (b"/usr/src/kernels", True),
        (b"/usr/lib/var", False),
    ],
)
def test_state_is_what_the_running_device_writes(path: bytes, answer: bool) -> None:
    assert is_state(path) is answer


def test_boot_files_are_told_by_their_place() -> None:
    assert is_boot(b"/usr/lib/kernel/vmlinuz")
    assert not is_boot(b"/usr/lib/kernels")


def _line(path: bytes, flags: str) -> Entry:
    return Entry(flags[0], flags[1], flags[2], flags[3], NO_HASH, 10, path)


@pytest.mark.parametrize(
    ("flags", "path", "stateless", "stateful"),
    [
        ("F...", b"/etc/hosts", True, False),
        ("F...", b"/var/lib/x", True, True),
        ("F...", b"/usr/lib/modules/x", False, False),
        (".d..", b"/usr/lib/modules/x", True, False),
        (".g..", b"/usr/lib/x", True, True),
        ("F...", b"/mounted", True, True),
        ("F...", b"/usr/lib/x", False, False),
    ],
)
def test_what_belongs_to_the_device_is_left_alone(flags: str, path: bytes, stateless: bool, stateful: bool) -> None:
    mounts = frozenset({b"/mounted"})
    assert Classes(True, mounts).leaves_alone(_line(path, flags)) is stateless
    assert Classes(False, mounts).leaves_alone(_line(path, flags)) is stateful


@pytest.mark.parametrize(
    ("machine", "letters", "kept"),
    [
        (0, "ae", "a"),
        (AVX2, "ae", "e"),
        (AVX2 | AVX512, "ae", "e"),
        (AVX2, "cg", "c"),
        (AVX2 | AVX512, "dfh", "h"),
        (AVX2, "dfh", "f"),
        (0, "lnpu", "l"),
        (AVX2 | AVX512 | APX, "lnpu", "u"),
        (0, ".", "."),
        (AVX2, "C", "C"),
        (0, "v.", "."),
    ],
)
def test_of_several_variants_the_best_one_is_kept(machine: int, letters: str, kept: str) -> None:
    entries = [_line(b"/usr/bin/x", f"F.{letter}.") for letter in letters]
    assert "".join(entry.modifier for entry in choose(entries, machine)) == kept
