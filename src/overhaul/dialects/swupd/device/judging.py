"""Comparing a system with its manifests: what is missing, different, left over or unknown. Reads, never writes."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overhaul.dialects.swupd.device.errors import WrongUsageError
from overhaul.dialects.swupd.hash import hash_directory, hash_file, hash_link, hash_path
from overhaul.dialects.swupd.manifest import Entry
from overhaul.progress import Progress

DEFAULT_WHITELIST = "/usr/lib/modules|/usr/lib/kernel|/usr/local|/usr/src"
#: Entries that one thread takes at a time.
_BATCH = 512
#: Files up to this size are read into one buffer, again and again the same: fresh memory for each costs more than
#: reading it. Larger ones are hashed in pieces.
_BUFFER = 512 << 10
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass
class Findings:
    """What is wrong with a system."""

    missing: list[Entry] = field(default_factory=list)
    different: list[Entry] = field(default_factory=list)
    #: Marked as deleted, and still there.
    left_over: list[Entry] = field(default_factory=list)
    #: In no manifest of an installed bundle; the longest path first.
    extra: list[bytes] = field(default_factory=list)
    #: How many objects were looked at.
    checked: int = 0

    def __bool__(self) -> bool:
        return bool(self.missing or self.different or self.left_over or self.extra)


@dataclass(frozen=True)
class Judge:
    """Looks at one root."""

    root: Path
    leaves_alone: Callable[[Entry], bool]
    hashes_paths: bool = False
    with_xattrs: bool = False
    workers: int = 2

    def look(self, entries: Sequence[Entry], *, only_missing: bool, progress: Progress) -> Findings:
        """Compare every entry with what lies at its path."""
        findings = Findings(checked=len(entries))
        batches = [entries[start : start + _BATCH] for start in range(0, len(entries), _BATCH)]
        progress.begin("Checking files", len(entries), "files")

        def work(batch: Sequence[Entry]) -> list[tuple[str, Entry]]:
            return self._look_at(batch, only_missing=only_missing)

        if self.workers < 2 or len(batches) < 2:
            results: Iterable[list[tuple[str, Entry]]] = map(work, batches)
            self._sum_up(results, batches, findings, progress)
        else:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(self.workers) as pool:
                self._sum_up(pool.map(work, batches), batches, findings, progress)
        progress.end()
        return findings

    def _sum_up(
        self,
        results: Iterable[list[tuple[str, Entry]]],
        batches: Sequence[Sequence[Entry]],
        findings: Findings,
        progress: Progress,
    ) -> None:
        lists = {"missing": findings.missing, "different": findings.different, "left over": findings.left_over}
        for result, batch in zip(results, batches, strict=True):
            for verdict, entry in result:
                lists[verdict].append(entry)
            progress.advance(len(batch))

    def _look_at(self, batch: Sequence[Entry], *, only_missing: bool) -> list[tuple[str, Entry]]:
        found: list[tuple[str, Entry]] = []
        root = os.fsencode(self.root).rstrip(b"/")
        leaves_alone = self.leaves_alone
        plain = not self.with_xattrs
        buffer = memoryview(bytearray(_BUFFER))
        for entry in batch:
            path = root + entry.name
            if entry.status not in ".e":
                if not only_missing and not leaves_alone(entry) and os.path.lexists(path):
                    found.append(("left over", entry))
                continue
            if only_missing:
                if not os.path.lexists(path):
                    found.append(("missing", entry))
                continue
            digest = _hash_of_file(path, buffer) if plain and entry.kind == "F" else self._hash_of_other(path, entry)
            if digest == entry.hash:
                continue
            if digest is None:
                found.append(("missing", entry))
            elif not leaves_alone(entry):
                found.append(("different", entry))
        return found

    def _hash_of_other(self, path: bytes, entry: Entry) -> str | None:
        """Return the hash of what is there, "" for what no manifest can list, and None for nothing."""
        name = entry.name if self.hashes_paths else None
        if self.with_xattrs:
            if not os.path.lexists(path):
                return None
            return hash_path(path, path=name, with_xattrs=True)
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if stat.S_ISDIR(status.st_mode):
            return hash_directory(mode=status.st_mode, uid=status.st_uid, gid=status.st_gid, path=name)
        if stat.S_ISLNK(status.st_mode):
            return hash_link(os.readlink(path), uid=status.st_uid, gid=status.st_gid)
        return hash_path(path) if stat.S_ISREG(status.st_mode) else ""

    def unknown(self, entries: Iterable[Entry], *, tree: str, whitelist: str) -> list[bytes]:
        """Return what lies below `tree` and is in none of `entries`, the longest path first.

        Directories that `whitelist`, a regular expression for whole paths, matches are not looked into, and a
        directory that holds one is not extra.

        Raises:
            WrongUsageError: `whitelist` is no regular expression.
        """
        try:
            allowed = re.compile(os.fsencode(whitelist)) if whitelist else None
        except re.error as error:
            raise WrongUsageError(f"{whitelist!r} is no regular expression ({error})") from error
        known = {entry.name for entry in entries if entry.is_present}
        root = os.fsencode(self.root).rstrip(b"/")
        top = b"/" + os.fsencode(tree).strip(b"/")
        found: list[bytes] = []
        keep: set[bytes] = set()
        waiting = [top.rstrip(b"/")]
        while waiting:
            folder = waiting.pop()
            try:
                names = os.listdir(root + folder if folder else root + b"/")
            except (FileNotFoundError, NotADirectoryError):
                continue
            for name in names:
                path = folder + b"/" + name
                if allowed is not None and allowed.fullmatch(path):
                    keep.update(_parents(path))
                    continue
                full = root + path
                if os.path.isdir(full) and not os.path.islink(full):
                    if os.path.ismount(full):
                        keep.update(_parents(path))
                        continue
                    waiting.append(path)
                if path not in known:
                    found.append(path)
        return sorted((path for path in found if path not in keep), key=lambda path: (-len(path), path))


def below(entries: Iterable[Entry], path: str) -> list[Entry]:
    """Return the entries at and below `path`."""
    top = b"/" + os.fsencode(path).strip(b"/")
    return [entry for entry in entries if entry.name == top or entry.name.startswith(top.rstrip(b"/") + b"/")]


def _hash_of_file(path: bytes, buffer: memoryview) -> str | None:
    """Return the hash of the regular file at `path`; one system call less for each of very many."""
    try:
        descriptor = os.open(path, _OPEN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        # A link, a socket, or nothing that can be opened.
        return hash_path(path)
    try:
        status = os.fstat(descriptor)
        mode, size = status.st_mode, status.st_size
        if not stat.S_ISREG(mode) or size >= _BUFFER or os.readv(descriptor, (buffer,)) != size:
            return hash_path(path)
        return hash_file(buffer[:size], mode=mode, uid=status.st_uid, gid=status.st_gid)
    finally:
        os.close(descriptor)


def _parents(path: bytes) -> Iterable[bytes]:
    while path:
        path = path.rpartition(b"/")[0]
        yield path
