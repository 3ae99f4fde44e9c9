"""Files on a boot partition (VFAT), changed so that a power cut at any moment leaves something the loader can use.

VFAT has no journal. A rename is two changes of a directory that may reach the medium one without the other, and then
two names share one chain of clusters; removing one of them later frees the data of both. A chain that was allocated
for a file whose directory entry did not reach the medium is lost until the next fsck. Therefore:

* Nothing is renamed. What decides is one byte inside a file (see `loaderentry`), written alone and in place: a medium
  writes a sector wholly or not at all.
* Existing files are written over where they lie, and grow in pieces that are synced one by one, so that a power cut
  loses no more than a piece.
* What is written is read back from the medium before it counts.
"""

import hashlib
import os
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from overhaul.host.files import sync_directory
from overhaul.install.boot import BootControlError
from overhaul.install.loaderentry import INERT, inert

_PIECE_BYTES = 1 << 20


def make_inert(path: Path) -> None:
    """Make an entry one that does not count, durably, and remove it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        # An empty file is inert already; writing would allocate a cluster for it.
        if os.fstat(descriptor).st_size and os.pread(descriptor, 1, 0) != INERT:
            os.pwrite(descriptor, INERT, 0)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()
    sync_directory(path.parent)


def write_live(path: Path, text: bytes) -> None:
    """Give `path`, which is inert or not there, a live entry's text: it counts when all the rest is durable."""
    write_over(path, BytesIO(inert(text)))
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, text[:1], 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_over(path: Path, source: BinaryIO) -> None:
    """Give `path` the bytes of `source`, where it lies already as far as it does, and read them back."""
    digest = hashlib.sha256()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        sync_directory(path.parent)
        position = 0
        while piece := source.read(_PIECE_BYTES):
            digest.update(piece)
            while piece:
                written = os.pwrite(descriptor, piece, position)
                piece = piece[written:]
                position += written
            os.fsync(descriptor)
        if os.fstat(descriptor).st_size > position:
            os.ftruncate(descriptor, position)
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if digest_on_medium(path) != digest.digest():
        raise BootControlError(place=str(path), reason="what was written is not what the medium gives back")


def digest_on_medium(path: Path) -> bytes | None:
    """Return the SHA-256 of what the medium gives for `path`, or None when it is not there.

    What was written by a program that was killed before it synced is brought to the medium first.
    """
    try:
        stream = path.open("rb", buffering=0)
    except FileNotFoundError:
        return None
    with stream:
        os.fsync(stream.fileno())
        # Clean pages are given up, so the bytes come from below the page cache.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(stream, "sha256").digest()


def make_durable(path: Path) -> None:
    """Make a file durable as it is read now, with its name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(path.parent)
