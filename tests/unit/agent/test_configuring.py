"""What a device reads of its own slots for carrying its configuration over."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.agent.configuring import ReleaseContents
from overhaul.release.configuration import Node, NodeKind

_SIZE = 4 << 20
_TEXT = b"Port 22\n"
_NODE = Node(kind=NodeKind.FILE, mode=0o644, size=len(_TEXT), sha256=hashlib.sha256(_TEXT).digest())
#: Runs in a process of its own: a mapping of a medium that fails kills whoever looks into it.
_READ = """
import sys
from pathlib import Path
from tests.unit.agent.test_configuring import read
print(read(Path(sys.argv[1])))
"""


def read(slot: Path) -> bytes | None:
    return ReleaseContents(slot=slot).base(b"sshd_config", _NODE)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "tree/etc").mkdir(parents=True)
    (tmp_path / "tree/etc/sshd_config").write_bytes(_TEXT)
    path = tmp_path / "slot"
    with path.open("wb") as stream:
        stream.truncate(_SIZE)
    subprocess.run([need("mkfs.ext4"), "-q", "-d", tmp_path / "tree", path], check=True)
    return path


@contextmanager
def medium_unreadable_behind(image: Path, readable: int) -> Iterator[Path]:
    """Yield a real block device that answers with an input/output error behind `readable` bytes."""
    losetup = need("losetup")
    answer = subprocess.run([losetup, "-f", "--show", image], check=True, capture_output=True, text=True)
    device = Path(answer.stdout.strip())
    try:
        with image.open("r+b") as stream:
            stream.truncate(readable)
        yield device
    finally:
        subprocess.run([losetup, "-d", device], check=True)


def test_a_file_of_the_release_is_read_out_of_its_slot(image: Path) -> None:
    assert read(image) == _TEXT


def test_a_medium_that_cannot_be_read_lacks_the_file_and_ends_nothing(image: Path) -> None:
    with medium_unreadable_behind(image, 16 << 10) as slot:
        done = subprocess.run([sys.executable, "-c", _READ, slot], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr
