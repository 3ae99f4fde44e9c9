"""What a device has in /etc is read, or it is said what cannot be."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.tools import need

from overhaul.content.tree import UnreadableTreeError
from overhaul.install.configuration.scanning import scan

#: Runs in a process of its own: a mapping of what cannot be read kills whoever looks into it.
_SCAN = """
import sys
from pathlib import Path
from overhaul.content.tree import UnreadableTreeError
from overhaul.install.configuration.scanning import scan

try:
    scan(Path(sys.argv[1]))
except UnreadableTreeError as error:
    print(error.path.decode())
"""
_SIZE = 12 << 20


@contextmanager
def _on_a_medium_with_a_bad_end(directory: Path, tree: Path) -> Iterator[Path]:
    """Yield `tree` on a mounted medium whose last blocks, those of its big file, answer with an error."""
    image, mounted = directory / "image", directory / "mounted"
    with image.open("wb") as stream:
        stream.truncate(32 << 20)
    subprocess.run([need("mkfs.ext4"), "-q", "-O", "^has_journal", "-d", tree, image], check=True)
    mounted.mkdir()
    subprocess.run([need("mount"), "-o", "loop,ro", image, mounted], check=True)
    try:
        # Where the file begins is known by its content; what is not read yet is not in the page cache.
        begin = image.read_bytes().index(b"big file" * 100)
        with image.open("r+b") as stream:
            stream.truncate(begin + (1 << 20))
        yield mounted
    finally:
        subprocess.run([need("umount"), mounted], check=True)


def test_files_are_told_by_their_digest(tmp_path: Path) -> None:
    (tmp_path / "etc/ssh").mkdir(parents=True)
    (tmp_path / "etc/ssh/sshd_config").write_bytes(b"Port 22\n")
    (tmp_path / "etc/hwdb.bin").write_bytes(bytes(_SIZE))

    nodes = scan(tmp_path / "etc").nodes

    assert nodes[b"ssh/sshd_config"].sha256 == hashlib.sha256(b"Port 22\n").digest()
    assert nodes[b"hwdb.bin"].sha256 == hashlib.sha256(bytes(_SIZE)).digest()
    assert nodes[b"ssh"].sha256 is None


def test_a_file_on_a_bad_sector_is_named_and_kills_nobody(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/hwdb.bin").write_bytes(b"big file" * (_SIZE // 8))
    with _on_a_medium_with_a_bad_end(tmp_path, tmp_path / "tree") as mounted:
        done = subprocess.run([sys.executable, "-c", _SCAN, mounted], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout.strip()) == (0, "hwdb.bin"), done.stderr


def test_a_directory_that_is_not_there_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UnreadableTreeError):
        scan(tmp_path / "etc")
