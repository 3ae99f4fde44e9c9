"""A file system that is soon full."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.tools import need


@contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Have a file system of `size` (such as 64k) at `directory`, which is made when it is not there."""
    directory.mkdir(exist_ok=True)
    subprocess.run([need("mount"), "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run([need("umount"), directory], check=True)


def fill(directory: Path) -> None:
    """Leave no byte free on the file system of `directory`."""
    with (directory / "filling").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
