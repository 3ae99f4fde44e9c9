"""The model of a disk that loses power, and the recorder that feeds it, on programs of a few lines."""

import sys
from pathlib import Path

import pytest

from tests.crash.disk import Content, Recording, power_cuts, tree_digest
from tests.crash.recording import NotUnderstoodError, Recorder

NEW, OLD = b"n" * 1200, b"o" * 1200


def recorded(directory: Path, program: str, *, weak: tuple[str, ...] = ()) -> Recording:
    """Return what a Python program did in a directory that holds `old` and the directory `below`."""
    top = directory / "top"
    (top / "below").mkdir(parents=True)
    (top / "old").write_bytes(OLD)
    recorder = Recorder(top, weak=weak)
    text = f"import os, shutil, subprocess\nos.chdir('/')\ntop = {str(top)!r}\nNEW = {NEW!r}\n{program}"
    recorder.run([sys.executable, "-c", text], log=directory / "log")
    return recorder.recording


def contents(recording: Recording, path: str) -> set[bytes | None]:
    """Return all that a file can hold after a power cut; None: it is not there."""
    found: set[bytes | None] = set()
    for cut in power_cuts(recording, seed=1, samples=300):
        content = recording.tree(cut.point, cut.fates).get(path)
        assert content is None or isinstance(content, Content)
        found.add(None if content is None else content.data)
    return found


REPLACE = """
with open(f"{top}/.new", "wb", buffering=0) as stream:
    stream.write(NEW)
    SYNC
os.rename(f"{top}/.new", f"{top}/old")
"""
SYNC_DIRECTORY = "\nos.fsync(os.open(top, os.O_RDONLY | os.O_DIRECTORY))\n"


def test_a_synced_file_that_is_renamed_holds_the_old_bytes_or_the_new(tmp_path: Path) -> None:
    recording = recorded(tmp_path, REPLACE.replace("SYNC", "os.fsync(stream.fileno())"))
    assert contents(recording, "old") == {OLD, NEW}


def test_a_file_that_is_renamed_and_was_not_synced_may_be_empty_hollow_or_torn(tmp_path: Path) -> None:
    found = contents(recorded(tmp_path, REPLACE.replace("SYNC", "pass")), "old")
    assert {OLD, NEW, b"", bytes(1200), NEW[:512] + bytes(688), bytes(512) + NEW[512:]} <= found


def test_a_name_is_durable_when_its_directory_was_synced(tmp_path: Path) -> None:
    recording = recorded(tmp_path, REPLACE.replace("SYNC", "os.fsync(stream.fileno())") + SYNC_DIRECTORY)
    end = len(recording.operations)
    assert {
        tree_digest(recording.tree(cut.point, cut.fates))
        for cut in power_cuts(recording, seed=1, samples=300)
        if cut.point == end
    } == {tree_digest(recording.tree(end, {}))}


def test_a_later_write_may_survive_an_earlier_one_and_both_may_be_torn(tmp_path: Path) -> None:
    program = """
descriptor = os.open(f"{top}/old", os.O_WRONLY)
os.pwrite(descriptor, b"1" * 600, 0)
os.pwrite(descriptor, b"2" * 600, 600)
"""
    found = contents(recorded(tmp_path, program), "old")
    assert {OLD[:600] + b"2" * 600, b"1" * 600 + OLD[600:], b"1" * 512 + OLD[512:]} <= found


def test_in_a_weak_directory_a_rename_may_come_apart(tmp_path: Path) -> None:
    program = 'os.rename(f"{top}/old", f"{top}/new")'
    for weak, both in (((), False), ((".",), True)):
        recording = recorded(tmp_path / str(both), program, weak=weak)
        trees = [recording.tree(cut.point, cut.fates) for cut in power_cuts(recording, seed=1, samples=50)]
        names = {tuple(sorted(name for name in tree if name != "below")) for tree in trees}
        assert names == ({("old",), ("new",), ("new", "old"), ()} if both else {("old",), ("new",)})


@pytest.mark.parametrize(
    "program",
    [
        'shutil.copyfile(f"{top}/old", f"{top}/copy")',
        'open(f"{top}/old", "ab").write(b"more")',
        'open(f"{top}/old", "r+b").truncate(7)',
        'os.link(f"{top}/old", f"{top}/below/other"); os.unlink(f"{top}/old")',
        'os.symlink("old", f"{top}/link"); os.rename(f"{top}/below", f"{top}/moved")',
        'os.makedirs(f"{top}/a/b"); open(f"{top}/a/b/c", "wb").write(NEW); shutil.rmtree(f"{top}/a")',
        'subprocess.run(["dd", f"if={top}/old", f"of={top}/twin", "bs=100", "seek=3"], check=True)',
        'subprocess.run(["sh", "-c", f"cd {top} && printf abc > below/f && cp old g && mv below/f f"], check=True)',
        'd = os.open(f"{top}/old", os.O_RDWR); os.lseek(d, 100, 0); os.write(d, b"x"); os.posix_fallocate(d, 0, 5000)',
    ],
)
def test_what_was_recorded_gives_the_tree_that_is_there(tmp_path: Path, program: str) -> None:
    # The recorder itself compares after each run, and raises where something is missing.
    assert recorded(tmp_path, program).operations


@pytest.mark.parametrize(
    "program",
    [
        'import mmap; f = open(f"{top}/old", "r+b"); mmap.mmap(f.fileno(), 0)[:3] = b"abc"',
        'd = os.open(f"{top}/old", os.O_RDWR); os.writev(d, [b"a", b"b"])',
    ],
)
def test_a_call_that_is_not_understood_fails_the_recording(tmp_path: Path, program: str) -> None:
    with pytest.raises(NotUnderstoodError):
        recorded(tmp_path, program)


def test_a_program_that_fails_fails_the_recording(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ended with 3"):
        recorded(tmp_path, "raise SystemExit(3)")
