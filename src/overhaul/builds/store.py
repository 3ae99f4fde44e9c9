"""Where finished images lie: one directory for each artefact, whole or not there, and a record of it beside.

```
ROOT/
  store/ARTEFACT/FILE        served to clients; regular files only
  records/ARTEFACT.json      what it is, who may forget it when
  incoming/ARTEFACT.TOKEN/   being written, or left by a process that died; never served
```

An artefact takes its final name by one rename after all its files are synced, then its record is written. What has
a directory and no record is removed by the next collection, and so is what lies in `incoming`.
"""

import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from overhaul.builds.recipe import Recipe
from overhaul.builds.results import ArtefactFile
from overhaul.errors import InputError, OperatorError
from overhaul.host.files import replace_bytes, sync_directory

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+,~-]{0,200}", re.ASCII)
_PIECE_BYTES = 1 << 20


class ArtefactRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the store knows of an artefact. Times are seconds since 1970 UTC."""

    artefact: str
    build_id: int
    recipe: Recipe
    builder_digest: str
    files: tuple[ArtefactFile, ...]
    added_at: float
    #: From then on the next collection removes it.
    expires_at: float

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files."""
        return sum(file.size_bytes for file in self.files)


class UnknownArtefactError(InputError):
    """No such artefact, or no such file in it."""

    http_status = 404

    def __init__(self, *, artefact: str, file: str = "") -> None:
        self.artefact = artefact
        self.file = file
        super().__init__(f"There is no {file or 'artefact'} under {artefact[:80]!r}; ask for the image again.")


class UnsafeOutputError(OperatorError):
    """A build left something that is no plain file of a plain name, or too much of it."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"The build left {name[:80]!r}, which is {reason}; nothing of it was kept.")


@dataclass(frozen=True, kw_only=True)
class StoreUsage:
    """How much lies in a store."""

    artefacts: int
    size_bytes: int


class ArtefactStore:
    """The artefacts below one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._store = root / "store"
        self._records = root / "records"
        self._incoming = root / "incoming"
        for directory in (self._store, self._records, self._incoming):
            directory.mkdir(parents=True, exist_ok=True)

    @property
    def served(self) -> Path:
        """The directory that clients see as `/store/`."""
        return self._store

    @contextmanager
    def incoming(self, artefact: str) -> Iterator[Path]:
        """Yield an empty directory to fill for `artefact`; what is left in it when the block ends is removed."""
        directory = self._incoming / f"{_checked(artefact)}.{secrets.token_hex(8)}"
        directory.mkdir()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def add(self, directory: Path, record: ArtefactRecord) -> None:
        """Give the incoming `directory` its final name, in place of an older artefact of that name.

        Raises:
            UnsafeOutputError: It does not hold exactly the files of `record`.
        """
        if list_outputs(directory) != tuple(sorted(record.files, key=lambda file: file.name)):
            raise UnsafeOutputError(name=record.artefact, reason="not what its record says")
        final = self._store / _checked(record.artefact)
        for file in record.files:
            _sync(directory / file.name)
        sync_directory(directory)
        # Without a record the old directory is nobody's, so a crash from here on leaves nothing that is served long.
        self._record_path(record.artefact).unlink(missing_ok=True)
        if final.exists():
            final.rename(self._incoming / f"{record.artefact}.{secrets.token_hex(8)}.old")
        directory.rename(final)
        final.chmod(0o755)
        sync_directory(self._store)
        replace_bytes(self._record_path(record.artefact), msgspec.json.encode(record))

    def record(self, artefact: str) -> ArtefactRecord | None:
        """Return what is known of `artefact`, or None when it is not there."""
        try:
            return msgspec.json.decode(self._record_path(artefact).read_bytes(), type=ArtefactRecord)
        except (FileNotFoundError, InputError, msgspec.MsgspecError, UnicodeError):
            return None

    def path(self, artefact: str, file: str) -> Path:
        """Return the path of a file of `artefact`; raise `UnknownArtefactError` for none."""
        record = self.record(artefact)
        if record is None or all(known.name != file for known in record.files):
            raise UnknownArtefactError(artefact=artefact, file=file)
        return self._store / artefact / file

    def records(self) -> Iterator[ArtefactRecord]:
        """Yield every artefact, in no order."""
        for path in self._records.glob("*.json"):
            record = self.record(path.stem)
            if record is not None:
                yield record

    def usage(self) -> StoreUsage:
        """Return how much is stored."""
        sizes = [record.size_bytes for record in self.records()]
        return StoreUsage(artefacts=len(sizes), size_bytes=sum(sizes))

    def remove(self, artefact: str) -> None:
        """Remove `artefact`, its record first; do nothing when it is not there."""
        self._record_path(artefact).unlink(missing_ok=True)
        sync_directory(self._records)
        shutil.rmtree(self._store / _checked(artefact), ignore_errors=True)

    def remove_leftovers(self, *, now: float, older_than_s: float) -> int:
        """Remove what died on its way in or out, when nobody has touched it for `older_than_s`; return how many."""
        known = {path.stem for path in self._records.glob("*.json")}
        strays = [path for path in self._store.iterdir() if path.name not in known]
        removed = 0
        for path in (*self._incoming.iterdir(), *strays):
            try:
                is_old = path.stat().st_mtime < now - older_than_s
            except FileNotFoundError:
                continue
            if is_old:
                shutil.rmtree(path, ignore_errors=True)
                removed += 1
        return removed

    def _record_path(self, artefact: str) -> Path:
        return self._records / f"{_checked(artefact)}.json"


def list_outputs(directory: Path) -> tuple[ArtefactFile, ...]:
    """Return every file in `directory` with its digest, by name.

    Raises:
        UnsafeOutputError: There is anything else than regular files with plain names.
    """
    found = []
    for name in sorted(path.name for path in directory.iterdir()):
        with _opened(directory, name) as descriptor:
            digest, size = hashlib.sha256(), 0
            while piece := os.read(descriptor, _PIECE_BYTES):
                digest.update(piece)
                size += len(piece)
        found.append(ArtefactFile(name=name, size_bytes=size, sha256=digest.hexdigest()))
    return tuple(found)


def take_outputs(source: Path, target: Path, *, limit_bytes: int) -> None:
    """Copy the files that a build left in `source` into `target`, following no link.

    Raises:
        UnsafeOutputError: There is anything else than regular files with plain names, or more than `limit_bytes`.
    """
    if source.is_symlink() or not source.is_dir():
        raise UnsafeOutputError(name=source.name, reason="not a directory")
    left = limit_bytes
    for name in sorted(path.name for path in source.iterdir()):
        with _opened(source, name) as descriptor, (target / name).open("xb") as stream:
            while piece := os.read(descriptor, _PIECE_BYTES):
                left -= len(piece)
                if left < 0:
                    raise UnsafeOutputError(name=name, reason=f"beyond the limit of {limit_bytes} bytes in all")
                stream.write(piece)


def checksums_text(digests: Mapping[str, str]) -> str:
    """Return the text of a `sha256sums` file."""
    return "".join(f"{digest} *{name}\n" for name, digest in sorted(digests.items()))


@contextmanager
def _opened(directory: Path, name: str) -> Iterator[int]:
    if not _NAME.fullmatch(name):
        raise UnsafeOutputError(name=name, reason="not a plain name")
    try:
        # Without O_NONBLOCK a pipe would hold us here for ever.
        descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UnsafeOutputError(name=name, reason="a link or cannot be read") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeOutputError(name=name, reason="not a regular file")
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, 0o644)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(artefact: str) -> str:
    if not _NAME.fullmatch(artefact):
        raise UnknownArtefactError(artefact=artefact)
    return artefact
