"""Files that are wholly there or not at all, and what writers that were killed leave beside them."""

import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from overhaul.host.files import replace_bytes, replace_together, replacing

#: Writes until its input ends, and says so; what is in the file tells which process wrote it.
_WRITER = """
import sys
from pathlib import Path
from overhaul.host.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    stream.write(b"of a process" * 1000)
    stream.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""
#: Writes again and again until it is killed.
_BUSY_WRITER = """
import sys
from pathlib import Path
from overhaul.host.files import replace_bytes
print("writing", flush=True)
while True:
    replace_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 3000)
"""


def start(program: str, *words: str | Path) -> subprocess.Popen[str]:
    """Start a program and wait until it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_killed_writers_left_is_gone_after_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    writers = [start(_WRITER, path) for _ in range(3)]
    for writer in writers:
        kill(writer)
    assert len(names(tmp_path)) == 3

    replace_bytes(path, b"whole")

    assert names(tmp_path) == ["state.json"]
    assert path.read_bytes() == b"whole"


def test_a_living_writer_keeps_its_file_whoever_writes_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    first, second = start(_WRITER, path), start(_WRITER, path)
    kill(first)

    replace_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert len(names(tmp_path)) == 2

    second.communicate()
    assert second.returncode == 0
    assert path.read_bytes() == b"of a process" * 1000
    assert names(tmp_path) == ["state.json"]


def test_two_writes_of_one_process_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as outer:
        outer.write(b"outer")
        with replacing(path) as inner:
            inner.write(b"inner")
        assert path.read_bytes() == b"inner"
    assert path.read_bytes() == b"outer"
    assert names(tmp_path) == ["file"]


def test_a_new_file_has_the_rights_that_were_asked_for_whatever_was_left(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    (left := tmp_path / ".secret.0.tmp").write_bytes(b"left" * 1000)
    left.chmod(0o666)

    replace_bytes(path, b"new", mode=0o600)

    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o600)
    assert names(tmp_path) == ["secret"]


def test_a_link_or_a_pipe_in_the_way_is_passed_by(tmp_path: Path) -> None:
    (other := tmp_path / "other").write_bytes(b"not ours")
    (tmp_path / ".file.0.tmp").symlink_to(other)
    os.mkfifo(tmp_path / ".file.1.tmp")

    replace_bytes(tmp_path / "file", b"whole")

    assert other.read_bytes() == b"not ours"
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_a_writer_that_finds_no_name_says_so(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f".file.{number}.tmp").mkdir()
    with pytest.raises(OSError, match="no temporary name"):
        replace_bytes(tmp_path / "file", b"whole")
    assert not (tmp_path / "file").exists()


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    replace_bytes(tmp_path / "file", b"old")
    with pytest.raises(TypeError), replacing(tmp_path / "file") as stream:
        stream.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_writers_that_race_and_are_killed_leave_a_whole_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    chance = random.Random(20261121)
    for _round in range(4):
        writers = [start(_BUSY_WRITER, path, name) for name in "abc"]
        for writer in writers:
            for _ in range(chance.randrange(1, 40)):
                replace_bytes(path, b"m" * 3000)
            kill(writer)
        content = path.read_bytes()
        assert len(content) == 3000
        assert len(set(content)) == 1
        assert len(names(tmp_path)) <= 1 + len(writers)
    replace_bytes(path, b"last")
    assert names(tmp_path) == ["file"]


def test_files_that_belong_together_are_all_durable_before_the_first_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def note(owner: object, name: str) -> None:
        real = getattr(owner, name)

        def noting(*given: object) -> object:
            done.append(name)
            return real(*given)

        monkeypatch.setattr(owner, name, noting)

    note(os, "fsync")
    note(Path, "replace")
    contents = {tmp_path / "b": b"signature", tmp_path / "a": b"signed"}
    replace_together(contents)
    assert done == ["fsync", "fsync", "replace", "replace", "fsync"]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents


def test_files_that_belong_together_stay_as_they_are_when_one_cannot_be_written(tmp_path: Path) -> None:
    replace_bytes(tmp_path / "first", b"old")
    with pytest.raises(FileNotFoundError):
        replace_together({tmp_path / "first": b"new", tmp_path / "missing/second": b"new"})
    assert names(tmp_path) == ["first"]
    assert (tmp_path / "first").read_bytes() == b"old"
