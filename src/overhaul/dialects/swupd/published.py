"""A published tree, read as its builder left it: versions, their MoMs and manifests."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.hash import hash_file
from overhaul.dialects.swupd.manifest import MalformedManifestError, Manifest, parse_manifest
from overhaul.dialects.swupd.names import MOM, latest_path, manifest_path, parse_version
from overhaul.errors import OperatorError

_VERSION_DIRECTORY = re.compile(r"[1-9][0-9]{0,9}")
_FORMAT_DIRECTORY = re.compile(r"format([1-9][0-9]{0,9})")
_MANIFEST_MODE = 0o100644


class DamagedTreeError(OperatorError):
    """A published version that lacks what its MoM names, or has something else there."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The published file {path} is damaged: {reason}. Restore it before you build on it.")


def manifest_hash(data: bytes) -> str:
    """Return the hash by which a MoM knows a bundle's manifest."""
    return hash_file(data, mode=_MANIFEST_MODE, uid=0, gid=0)


@dataclass(frozen=True)
class PublishedTree:
    """The directory `web` that devices see as the root of their URLs."""

    web: Path

    def versions(self) -> list[int]:
        """Return the versions that are there whole, the lowest first; each directory appears by one rename."""
        if not self.web.is_dir():
            return []
        found = (int(name) for name in os.listdir(self.web) if _VERSION_DIRECTORY.fullmatch(name))
        return sorted(version for version in found if self.path(manifest_path(version, MOM)).is_file())

    def path(self, relative: str) -> Path:
        """Return where a file of the tree lies."""
        return self.web / relative

    def latest(self) -> dict[int, int]:
        """Return what each format's pointer names."""
        directory = self.web / "version"
        pointers: dict[int, int] = {}
        for name in os.listdir(directory) if directory.is_dir() else ():
            found = _FORMAT_DIRECTORY.fullmatch(name)
            pointer = self.path(latest_path(int(found[1]))) if found else None
            if found and pointer is not None and pointer.is_file():
                version = parse_version(pointer.read_bytes())
                if version is None:
                    raise DamagedTreeError(path=pointer, reason="it names no version")
                pointers[int(found[1])] = version
        return pointers

    def mom(self, version: int) -> Manifest:
        """Return the MoM of a version."""
        return self._parse(version, MOM, self._read(version, MOM))

    def bundle(self, version: int, name: str, *, expected: str) -> Manifest:
        """Return a bundle's manifest, which must have the hash that a MoM states."""
        data = self._read(version, name)
        if manifest_hash(data) != expected:
            reason = "its hash is not the one its MoM states"
            raise DamagedTreeError(path=self.path(manifest_path(version, name)), reason=reason)
        return self._parse(version, name, data)

    def bundles(self, mom: Manifest) -> dict[str, Manifest]:
        """Return the manifests of all bundles of a MoM, by name."""
        return {
            entry.name.decode(): self.bundle(entry.version, entry.name.decode(), expected=entry.hash)
            for entry in mom.entries
        }

    def manifest_bytes(self, version: int, name: str) -> bytes:
        """Return a plain manifest as it lies there."""
        return self._read(version, name)

    def _read(self, version: int, name: str) -> bytes:
        path = self.path(manifest_path(version, name))
        try:
            return path.read_bytes()
        except OSError as error:
            raise DamagedTreeError(path=path, reason=str(error.strerror)) from error

    def _parse(self, version: int, name: str, data: bytes) -> Manifest:
        path = self.path(manifest_path(version, name))
        try:
            manifest = parse_manifest(data, name=name)
        except MalformedManifestError as error:
            raise DamagedTreeError(path=path, reason=error.reason) from error
        if manifest.version != version:
            raise DamagedTreeError(path=path, reason=f"it says that it is of version {manifest.version}")
        return manifest
