"""Small published files kept on the device, named by their digest.

An index fetched for one update says at the next one what the source slot holds; tables and delta headers let an
interrupted assembly go on without fetching them again. Nothing here needs to be there: what is missing or damaged
is fetched.
"""

import hashlib
import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from overhaul.host.files import replace_bytes

#: What may be kept although it is not needed again here leaves so much free.
KEPT_FREE_BYTES = 32 * 1024 * 1024
#: It is kept while all files here have no more than this.
MAX_KEPT_BYTES = 96 * 1024 * 1024


class ContentCache:
    """Keeps files below a directory, or nothing when there is none."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)

    def __contains__(self, sha256: object) -> bool:
        return self._directory is not None and (self._directory / str(sha256)).is_file()

    def size_of(self, sha256: str) -> int | None:
        """Return the bytes of the file with this digest when it is here."""
        try:
            return None if self._directory is None else (self._directory / sha256).stat().st_size
        except OSError:
            return None

    def get(self, sha256: str) -> bytes | None:
        """Return the file with this digest when it is here and whole."""
        if self._directory is None:
            return None
        path = self._directory / sha256
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != sha256:
            path.unlink(missing_ok=True)
            return None
        return data

    def put(self, sha256: str, data: bytes) -> None:
        """Keep a file whose digest was checked, when there is room for it."""
        if self._directory is not None:
            with suppress(OSError):
                replace_bytes(self._directory / sha256, data)

    def put_if_room(self, sha256: str, data: bytes) -> None:
        """Keep a file whose digest was checked, unless others may need the room more."""
        # Files come and go meanwhile, and the directory itself may be gone.
        with suppress(OSError):
            if self._directory is not None and self._has_room(self._directory, len(data)):
                self.put(sha256, data)

    @staticmethod
    def _has_room(directory: Path, size: int) -> bool:
        held = sum(entry.stat().st_size for entry in os.scandir(directory) if entry.is_file())
        room = os.statvfs(directory)
        return held + size <= MAX_KEPT_BYTES and room.f_bavail * room.f_frsize >= size + KEPT_FREE_BYTES

    def keep_only(self, wanted: Collection[str]) -> None:
        """Forget every other file."""
        if self._directory is not None:
            for path in self._directory.iterdir():
                if path.name not in wanted:
                    path.unlink(missing_ok=True)
