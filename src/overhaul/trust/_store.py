"""The device's own copy of what it trusts: durable, and changed only as a whole.

```
STATE/
  metadata/root_history/N.root.json   every root since the one the device was given
  metadata/ROLE.json                  the last complete chain: timestamp, snapshot, targets, delegated roles
  targets/QUOTED-PATH                 the last few targets read; used only when they match signed metadata
  floor.json                          the time floor with its witnesses
  poll.json                           the entity tag under which timestamp.json came
  working/                            a copy in which one refresh works; left behind only by a crash
```

A refresh works on a copy and its result is taken over only when the whole chain verified, each file replaced
atomically. New roots are kept even when the rest was refused, since a verified root may revoke the very keys
that signed the rest.

The directory belongs to root, as the slots do; it is not protected against its owner.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, unquote

import msgspec

from overhaul.host.files import make_directory, replace_bytes
from overhaul.trust import roles
from overhaul.trust.timefloor import TimeFloor

_Kind = TypeVar("_Kind")

_KEPT_TARGETS = 16
_EXPIRES_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


class _Listed(msgspec.Struct, frozen=True):
    version: int


class _Signed(msgspec.Struct, frozen=True):
    version: int
    expires: str
    meta: dict[str, _Listed] = {}


class _Envelope(msgspec.Struct, frozen=True):
    """The little of a metadata file that tells whether the stored chain is whole, and until when it lasts."""

    signed: _Signed


class _Poll(msgspec.Struct, frozen=True, kw_only=True):
    etag: str
    #: Digest of the timestamp the tag belongs to.
    timestamp_sha256: str


class TrustStore:
    """The trusted files of one device and repository."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._metadata = directory / "metadata"
        self._roots = self._metadata / "root_history"
        self._targets = directory / "targets"
        self._working = directory / "working"

    def chain(self) -> Mapping[str, datetime] | None:
        """Return when each role of the stored chain expires, or None when the chain is not whole.

        Files in the store were verified when they were taken over.
        """
        timestamp, snapshot = self._signed(roles.TIMESTAMP), self._signed(roles.SNAPSHOT)
        root = self._newest_root()
        if timestamp is None or snapshot is None or root is None:
            return None
        if timestamp.meta.get(_listed_name(roles.SNAPSHOT)) != _Listed(snapshot.version):
            return None
        found = {roles.ROOT: root, roles.TIMESTAMP: timestamp, roles.SNAPSHOT: snapshot}
        for name, listed in snapshot.meta.items():
            role = name.removesuffix(".json")
            signed = self._signed(role)
            if signed is not None and signed.version == listed.version:
                found[role] = signed
        if roles.TARGETS not in found:
            return None
        try:
            return {role: _moment(signed.expires) for role, signed in found.items()}
        except ValueError:
            # A file that was damaged since; the next refresh replaces it.
            return None

    def timestamp(self) -> bytes | None:
        """Return the trusted timestamp as it came."""
        return _bytes_of(self._path(roles.TIMESTAMP))

    def floor(self) -> TimeFloor:
        """Return the stored time floor."""
        return _decoded(self.directory / "floor.json", TimeFloor) or TimeFloor()

    def keep_floor(self, floor: TimeFloor) -> None:
        """Store the time floor."""
        _replace(self.directory / "floor.json", msgspec.json.encode(floor, order="sorted"))

    def etag(self) -> str | None:
        """Return the entity tag of the stored timestamp, if it came with one."""
        poll, timestamp = _decoded(self.directory / "poll.json", _Poll), self.timestamp()
        if poll is None or timestamp is None or poll.timestamp_sha256 != hashlib.sha256(timestamp).hexdigest():
            return None
        return poll.etag

    def keep_etag(self, etag: str | None) -> None:
        """Store the entity tag under which the stored timestamp came."""
        timestamp = self.timestamp()
        if etag is None or timestamp is None:
            (self.directory / "poll.json").unlink(missing_ok=True)
            return
        poll = _Poll(etag=etag, timestamp_sha256=hashlib.sha256(timestamp).hexdigest())
        _replace(self.directory / "poll.json", msgspec.json.encode(poll))

    @contextmanager
    def working_copy(self) -> Iterator[Path]:
        """Yield a directory with a copy of the trusted metadata, which is dropped afterwards."""
        shutil.rmtree(self._working, ignore_errors=True)
        (self._working / "root_history").mkdir(parents=True)
        for path in self._files(self._metadata):
            # What the medium cannot give back is fetched again, as what it gives back wrong is.
            data = _bytes_of(path)
            if data is not None:
                (self._working / path.relative_to(self._metadata)).write_bytes(data)
        try:
            yield self._working
        finally:
            shutil.rmtree(self._working, ignore_errors=True)

    def take_roots(self) -> None:
        """Take over the roots of the working copy."""
        self._take([path for path in self._files(self._working) if path.parent != self._working])

    def take_all(self) -> None:
        """Take over everything in the working copy.

        The order does not matter: a chain taken over by halves is known by its version numbers, counts as none,
        and still keeps older versions out.
        """
        self._take(sorted(self._files(self._working)))

    def target(self, path: str) -> bytes | None:
        """Return the stored bytes of the target `path`, to be checked by the caller."""
        return _bytes_of(self._targets / quote(path, ""))

    def keep_target(self, path: str, data: bytes) -> None:
        """Store the verified bytes of a target and forget those read longest ago."""
        make_directory(self._targets)
        _replace(self._targets / quote(path, ""), data)
        by_age = sorted(self._files(self._targets), key=lambda item: item.stat().st_mtime_ns, reverse=True)
        for old in by_age[_KEPT_TARGETS:]:
            old.unlink(missing_ok=True)

    def _take(self, paths: list[Path]) -> None:
        make_directory(self._roots)
        for path in paths:
            _replace(self._metadata / path.relative_to(self._working), path.read_bytes())

    def _path(self, role: str) -> Path:
        return self._metadata / f"{quote(role, '')}.json"

    def _signed(self, role: str) -> _Signed | None:
        envelope = _decoded(self._path(role), _Envelope)
        return None if envelope is None else envelope.signed

    def _newest_root(self) -> _Signed | None:
        envelopes = (_decoded(path, _Envelope) for path in self._files(self._roots))
        return max((item.signed for item in envelopes if item), key=lambda signed: signed.version, default=None)

    @staticmethod
    def _files(directory: Path) -> list[Path]:
        found = []
        for parent, _directories, names in os.walk(directory):
            # Names with a leading dot are what a write left behind that a power cut ended.
            found += [Path(parent, name) for name in names if not name.startswith(".")]
        return [path for path in found if not path.is_symlink()]


def role_of_file(name: str) -> str:
    """Return the role whose metadata is published as the file `name`: `N.ROLE.json` or `timestamp.json`."""
    stem = name.removesuffix(".json")
    version, dot, role = stem.partition(".")
    return unquote(role) if dot and version.isdigit() else unquote(stem)


def _listed_name(role: str) -> str:
    return f"{role}.json"


def _moment(expires: str) -> datetime:
    return datetime.strptime(expires, _EXPIRES_FORMAT).replace(tzinfo=UTC)


def _bytes_of(path: Path) -> bytes | None:
    """Return what a file holds; one on a bad sector is as good as none, and writing it anew takes it off there."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _decoded(path: Path, kind: type[_Kind]) -> _Kind | None:
    """Return the record in `path`; a file that is absent or damaged is as good as none."""
    data = _bytes_of(path)
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


def _replace(path: Path, data: bytes) -> None:
    """Write `path` unless it already holds `data`, which saves a flash medium a write at each poll."""
    if _bytes_of(path) != data:
        replace_bytes(path, data)
