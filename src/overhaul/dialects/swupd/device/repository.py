"""A repository as a device reads it: version files, the signed list of bundles, and the bundles' manifests.

What is read once is kept in the cache, and what comes out of the cache is checked like what comes from the network:
the MoM by its signature, a bundle's manifest by the hash that the MoM has for it.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.device.errors import (
    BundleManifestError,
    ClientError,
    DownloadError,
    MomError,
    NoAnswerError,
    SignatureError,
)
from overhaul.dialects.swupd.device.fetching import SMALL_BYTES, Downloader
from overhaul.dialects.swupd.device.state import Cache
from overhaul.dialects.swupd.device.trust import Trust
from overhaul.dialects.swupd.device.variants import choose
from overhaul.dialects.swupd.hash import hash_file
from overhaul.dialects.swupd.manifest import Entry, MalformedManifestError, Manifest, parse_manifest
from overhaul.dialects.swupd.names import (
    MOM,
    format_path,
    latest_path,
    latest_version_path,
    manifest_delta_path,
    manifest_path,
    manifest_tar_path,
    parse_version,
    signature_path,
)

#: More than the manifests of any published system; a manifest is held in memory.
MANIFEST_BYTES = 256 << 20
_MANIFEST_MODE = 0o100644
_TAR_OVERHEAD_BYTES = 1 << 20
#: A version file and its signature cannot be replaced in one step; who comes between the two asks again.
_POINTER_TRIES = 3
_POINTER_WAIT_S = 0.3


@dataclass(frozen=True)
class BundleRef:
    """One line of a MoM."""

    name: str
    version: int
    hash: str
    is_experimental: bool = False


@dataclass(frozen=True)
class Release:
    """A version as its MoM lists it."""

    version: int
    format: int
    minversion: int
    bundles: Mapping[str, BundleRef]


@dataclass(frozen=True)
class Bundle:
    """A bundle's manifest with one line for each path, the best for this machine."""

    ref: BundleRef
    manifest: Manifest
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Repository:
    """What two base URLs serve."""

    content_url: str
    version_url: str
    cache: Cache
    trust: Trust
    downloader: Downloader
    #: See `variants`.
    machine: int = 0

    def latest(self, format_name: str) -> tuple[int, ...]:
        """Return the newest versions of a format, the newest first; usually there is one.

        Raises:
            NoAnswerError: The repository cannot be reached or has no such format.
            SignatureError: What it answers is not signed as it must be.
        """
        data = self._version_file(latest_path(format_name))
        versions = [parse_version(line) for line in data.splitlines() if line.strip()]
        numbers = [version for version in versions if version is not None]
        if not numbers or len(numbers) != len(versions) or numbers != sorted(set(numbers), reverse=True):
            raise NoAnswerError(url=f"{self.version_url}/{latest_path(format_name)}", reason="it names no version")
        return tuple(numbers)

    def latest_of_all(self) -> int:
        """Return the newest version over all formats."""
        url = f"{self.version_url}/{latest_version_path()}"
        version = parse_version(self._version_file(latest_version_path()))
        if version is None:
            raise NoAnswerError(url=url, reason="it names no version")
        return version

    def format_of(self, version: int) -> int | None:
        """Return the format of a version, where the repository tells."""
        data = self.downloader.small(f"{self.version_url}/{version}/format", limit_bytes=64)
        if data is None:
            data = self.downloader.small(f"{self.content_url}/{format_path(version)}", limit_bytes=64)
        return None if data is None else parse_version(data)

    def _version_file(self, path: str) -> bytes:
        for left in reversed(range(_POINTER_TRIES)):
            try:
                return self._signed_version_file(path)
            except SignatureError:
                if not left:
                    raise
                self.downloader.pause(_POINTER_WAIT_S)
        raise AssertionError("the last try returns or raises")

    def _signed_version_file(self, path: str) -> bytes:
        url = f"{self.version_url}/{path}"
        data = self.downloader.small(url, limit_bytes=64 * 1024)
        if data is None:
            raise NoAnswerError(url=url, reason="there is no such file")
        if self.trust.checks_latest:
            signature = self.downloader.small(f"{self.version_url}/{signature_path(path)}")
            if signature is None:
                raise SignatureError(what=url, reason="it has no signature")
            self.trust.verify(data, signature, name=url, has_expiry=False)
        return data

    def release(self, version: int) -> Release:
        """Return a version.

        Raises:
            MomError: It cannot be had, or is not signed as it must be.
        """
        try:
            manifest = self._mom(version)
        except MomError:
            raise
        except (ClientError, MalformedManifestError) as error:
            if isinstance(error, SignatureError) and error.what in map(str, self.trust.certificates):
                raise
            raise MomError(version=version, reason=str(error)) from error
        bundles = {}
        for entry in manifest.entries:
            name = entry.name.decode("ascii", "replace")
            if entry.is_present:
                bundles[name] = BundleRef(name, entry.version, entry.hash, entry.status == "e")
        return Release(version, manifest.format, manifest.minversion, bundles)

    def _mom(self, version: int) -> Manifest:
        place = self.cache.manifest(version, MOM)
        kept, kept_signature = _read(place), _read(place.with_name(f"{place.name}.sig"))
        if kept is not None and (kept_signature is not None or not self.trust.checks_mom):
            try:
                return self._checked_mom(version, kept, kept_signature)
            except (SignatureError, MomError, MalformedManifestError):
                # A damaged copy; what the repository has now decides.
                pass
        members = self._manifest_members(version, MOM)
        data = members.get(f"Manifest.{MOM}")
        if data is None:
            raise MomError(version=version, reason="the repository does not have it")
        signature = members.get(f"Manifest.{MOM}.sig")
        if self.trust.checks_mom and signature is None:
            signature = self.downloader.small(f"{self.content_url}/{signature_path(manifest_path(version, MOM))}")
        manifest = self._checked_mom(version, data, signature)
        self._keep(place, data)
        if signature is not None and self.trust.checks_mom:
            self._keep(place.with_name(f"{place.name}.sig"), signature)
        return manifest

    def _checked_mom(self, version: int, data: bytes, signature: bytes | None) -> Manifest:
        if self.trust.checks_mom:
            if signature is None:
                raise MomError(version=version, reason="it has no signature")
            self.trust.verify(data, signature, name=f"Manifest.{MOM} of version {version}", has_expiry=True)
        manifest = parse_manifest(data, name=MOM)
        if manifest.version != version:
            raise MomError(version=version, reason=f"the repository sent that of version {manifest.version}")
        return manifest

    def bundle(self, ref: BundleRef, *, old: BundleRef | None = None) -> Bundle:
        """Return a bundle of a version; `old` is an earlier one that a delta may start from.

        Raises:
            BundleManifestError: It cannot be had, or is not what the MoM names.
        """
        place = self.cache.manifest(ref.version, ref.name)
        kept = _read(place)
        if kept is not None and _hash(kept) == ref.hash:
            return self._parsed(ref, kept)
        data = self._by_delta(ref, old)
        if data is None:
            # A copy that came damaged is fetched once more; a proxy may have served half of it.
            data = self._fetched(ref) or self._fetched(ref)
        if data is None:
            raise BundleManifestError(
                bundle=ref.name, version=ref.version, reason="what the repository has is not what the MoM names"
            )
        bundle = self._parsed(ref, data)
        self._keep(place, data)
        return bundle

    def bundles(self, refs: Iterable[BundleRef], *, old: Mapping[str, BundleRef] | None = None) -> list[Bundle]:
        """Return several bundles, fetched side by side, in the order asked for."""
        wanted = list(refs)
        before = old or {}
        absent = [ref for ref in wanted if not self.cache.manifest(ref.version, ref.name).exists()]
        loaded: dict[str, Bundle] = {}
        if len(absent) > 1:
            for ref, bundle in self.downloader.each(absent, lambda ref: self.bundle(ref, old=before.get(ref.name))):
                loaded[ref.name] = bundle
        return [loaded.get(ref.name) or self.bundle(ref, old=before.get(ref.name)) for ref in wanted]

    def _parsed(self, ref: BundleRef, data: bytes) -> Bundle:
        try:
            manifest = parse_manifest(data, name=ref.name)
        except MalformedManifestError as error:
            raise BundleManifestError(bundle=ref.name, version=ref.version, reason=error.reason) from error
        if manifest.version != ref.version:
            raise BundleManifestError(
                bundle=ref.name, version=ref.version, reason=f"it says that it is of version {manifest.version}"
            )
        return Bundle(ref, manifest, choose(manifest.entries, self.machine))

    def _by_delta(self, ref: BundleRef, old: BundleRef | None) -> bytes | None:
        if old is None or old.version >= ref.version:
            return None
        base = _read(self.cache.manifest(old.version, old.name))
        if base is None or _hash(base) != old.hash:
            return None
        from overhaul.dialects.swupd.bsdiff import MalformedDeltaFileError, apply_delta, read_delta_header

        url = f"{self.content_url}/{manifest_delta_path(ref.version, ref.name, old=old.version)}"
        try:
            delta = self.downloader.small(url, limit_bytes=MANIFEST_BYTES)
            if delta is None or read_delta_header(delta).new_size > MANIFEST_BYTES:
                return None
            data = apply_delta(delta, base)
        except (MalformedDeltaFileError, NoAnswerError, DownloadError):
            # Only slower: the whole manifest is fetched.
            return None
        return data if _hash(data) == ref.hash else None

    def _fetched(self, ref: BundleRef) -> bytes | None:
        """Return the manifest, or None when what came is not the one the MoM names."""
        try:
            data = self._manifest_members(ref.version, ref.name).get(f"Manifest.{ref.name}")
        except ClientError as error:
            raise BundleManifestError(bundle=ref.name, version=ref.version, reason=str(error)) from error
        if data is None:
            raise BundleManifestError(bundle=ref.name, version=ref.version, reason="the repository does not have it")
        return data if _hash(data) == ref.hash else None

    def _manifest_members(self, version: int, bundle: str) -> dict[str, bytes]:
        """Return the documents in a manifest's tar, or the plain manifest where no tar is."""
        url = f"{self.content_url}/{manifest_tar_path(version, bundle)}"
        path = self.cache.download / f"{version}-Manifest.{bundle}.tar"
        if not self.downloader.file(url, path, limit_bytes=MANIFEST_BYTES):
            plain = self.downloader.small(
                f"{self.content_url}/{manifest_path(version, bundle)}", limit_bytes=MANIFEST_BYTES
            )
            return {} if plain is None else {f"Manifest.{bundle}": plain}
        from overhaul.dialects.swupd.device.archives import read_archive, reading

        limits = {f"Manifest.{bundle}": MANIFEST_BYTES, f"Manifest.{bundle}.sig": SMALL_BYTES}
        found: dict[str, bytes] = {}
        try:
            with reading(url):
                for member in read_archive(path, name=url, limit_bytes=MANIFEST_BYTES + _TAR_OVERHEAD_BYTES):
                    if member.kind == "F" and member.size <= limits.get(member.name, -1):
                        found[member.name] = b"".join(member.pieces())
        finally:
            path.unlink(missing_ok=True)
        return found

    def _keep(self, place: Path, data: bytes) -> None:
        """Keep a copy; it is checked when it is read, so it need not be durable."""
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        temporary = place.with_name(f".{place.name}.{os.getpid()}")
        temporary.write_bytes(data)
        temporary.replace(place)


def _hash(data: bytes) -> str:
    return hash_file(data, mode=_MANIFEST_MODE, uid=0, gid=0)


def _read(path: Path) -> bytes | None:
    try:
        if path.stat().st_size > MANIFEST_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None
