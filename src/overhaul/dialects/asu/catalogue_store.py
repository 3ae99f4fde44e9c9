"""What was fetched from upstream, on disk: bodies by digest, and one small file that says which of them count.

```
<directory>/bodies/<aa>/<sha256>     a fetched file, verified as far as it can be
<directory>/current.json             address -> digest, validators and time of each; replaced as a whole
<directory>/updating.lock            held by the one process that updates
```

A reader takes `current.json` once and from then on sees one consistent state, because bodies never change. What
no longer counts is removed after a day, when no reader can still be following an older state.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from overhaul.errors import OperatorError
from overhaul.host.files import replace_bytes

_KEPT_S = 86400.0
_HEX = frozenset("0123456789abcdef")


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """A file of upstream as it was last seen."""

    sha256: str
    etag: str = ""
    #: Seconds since 1970 UTC.
    changed_at: float
    checked_at: float


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One state of the catalogue."""

    #: Path below an upstream address, behind the address itself -> what it held.
    files: dict[str, Fetched] = {}
    updated_at: float = 0.0


class LostBodyError(OperatorError):
    """A file of the catalogue is damaged or gone."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} is damaged or gone; remove its directory, the next update fetches it again.")


class CatalogueStore:
    """The catalogue's directory."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._clock = clock
        self._current = directory / "current.json"

    @property
    def lock_path(self) -> Path:
        """Held while updating."""
        self.directory.mkdir(parents=True, exist_ok=True)
        return self.directory / "updating.lock"

    def stamp(self) -> tuple[int, int]:
        """Return what changes with every switch; cheap."""
        try:
            told = self._current.stat()
        except FileNotFoundError:
            return (0, 0)
        return (told.st_mtime_ns, told.st_ino)

    def read(self) -> Generation:
        """Return the current state; a damaged file counts as none, since everything in it can be fetched again."""
        try:
            return msgspec.json.decode(self._current.read_bytes(), type=Generation)
        except (FileNotFoundError, msgspec.MsgspecError):
            return Generation()

    def put(self, body: bytes) -> str:
        """Keep `body` and return its digest."""
        digest = hashlib.sha256(body).hexdigest()
        path = self._path(digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not synced: what a power cut leaves of it does not have its digest and is fetched again.
            temporary = path.with_name(f".{digest}.{secrets.token_hex(8)}.tmp")
            try:
                temporary.write_bytes(body)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return digest

    def body(self, sha256: str) -> bytes:
        """Return a body, checked.

        Raises:
            LostBodyError: It is damaged or gone.
        """
        path = self._path(sha256)
        try:
            body = path.read_bytes()
        except OSError as error:
            raise LostBodyError(path=path) from error
        if hashlib.sha256(body).hexdigest() != sha256:
            path.unlink(missing_ok=True)
            raise LostBodyError(path=path)
        return body

    def switch(self, generation: Generation) -> None:
        """Make `generation` the current one, all at once."""
        self.directory.mkdir(parents=True, exist_ok=True)
        replace_bytes(self._current, msgspec.json.encode(generation))

    def sweep(self, generation: Generation) -> int:
        """Remove bodies that have not counted for a day; return how many."""
        counting = {fetched.sha256 for fetched in generation.files.values()}
        before = self._clock() - _KEPT_S
        removed = 0
        for path in (self.directory / "bodies").glob("*/*"):
            if path.name not in counting and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def touch(self, sha256: str) -> None:
        """Note that a body counted until now, so that it outlives its last reader."""
        path = self._path(sha256)
        if path.exists():
            os.utime(path)

    def _path(self, sha256: str) -> Path:
        if len(sha256) != 64 or not _HEX.issuperset(sha256):
            raise LostBodyError(path=self.directory / "current.json")
        return self.directory / "bodies" / sha256[:2] / sha256
