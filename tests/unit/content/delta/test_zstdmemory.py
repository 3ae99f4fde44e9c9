"""Memory that lies in a file is there when it is given, or is not given."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.small_disk import small_disk

from overhaul.content.delta.zstdmemory import ZstdMemory

_SIZE = 32 << 20
#: Runs in a process of its own: what is not there kills it.
_USE = """
import ctypes, sys
from pathlib import Path
from overhaul.content.delta.zstdmemory import ZstdMemory

with ZstdMemory(Path(sys.argv[1])) as memory:
    address = memory.functions.allocate(None, int(sys.argv[2]))
    if address:
        ctypes.memset(address, 1, int(sys.argv[2]))
        memory.functions.free(None, address)
    print("used" if address else "refused")
"""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "small", "1m") as place:
        yield place


def _use(scratch: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", _USE, scratch, str(_SIZE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_big_buffer_is_given_where_there_is_room(tmp_path: Path) -> None:
    assert _use(tmp_path) == "used"
    assert not list(tmp_path.iterdir())


def test_a_buffer_without_room_is_refused_and_kills_nobody(small: Path) -> None:
    assert _use(small) == "refused"


def test_tables_of_the_librarys_own_threads_lie_in_no_file(tmp_path: Path) -> None:
    made: list[int] = []
    with ZstdMemory(tmp_path) as memory:

        def allocate() -> None:
            made.append(memory.functions.allocate(None, _SIZE))

        thread = threading.Thread(target=allocate)
        thread.start()
        thread.join()
        in_files = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
        memory.functions.free(None, made[0])
    assert made[0]
    assert in_files == []
