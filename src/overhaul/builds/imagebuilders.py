"""ImageBuilders of upstream: found by signed checksums, downloaded once, unpacked where nothing can leave.

```
DIRECTORY/
  SHA256/           one unpacked ImageBuilder, read-only from then on, named by the digest of its archive
  SHA256.tmp/       being unpacked
  SHA256.archive    being downloaded
  lock              held by the one process that downloads
```

`sha256sums` counts when at least one signature lies beside it and every signature there is verifies against a pinned
key: `.asc` by OpenPGP, `.sig` by usign. A release that upstream builds again, as snapshots are every day, has another
digest and so another directory; those that nobody used for a while are removed by `forget`.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from overhaul.builds.builder import Watcher
from overhaul.builds.results import BuildFailedError, BuildFailure, FailureKind
from overhaul.builds.sandbox import Limits, Sandbox, remove_tree
from overhaul.errors import TrustError
from overhaul.host.files import replacing
from overhaul.host.locks import LockedError, locked
from overhaul.host.processes import ProgramFailedError, run
from overhaul.transfer.fetcher import Fetcher, RefusedStatusError
from overhaul.transfer.fetching import fetch_bytes, fetch_file
from overhaul.trust.usign import UsignPublicKey, UsignSignatureError, UsignTextError, verify_usign

_MAX_SUMS_BYTES = 4 << 20
_MAX_SIGNATURE_BYTES = 64 << 10
_MAX_ARCHIVE_BYTES = 4 << 30
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([A-Za-z0-9_][A-Za-z0-9_.+~-]*imagebuilder[A-Za-z0-9_.+~-]*)")
_WAIT_S = 1.0


class UnsignedChecksumsError(TrustError):
    """Upstream's checksums have no signature, or one that no pinned key made."""

    def __init__(self, *, url: str, reason: str) -> None:
        self.url = url
        self.reason = reason
        super().__init__(f"{url} is not signed by a key pinned here: {reason}; nothing of it was used.")


@dataclass(frozen=True, kw_only=True)
class UpstreamKeys:
    """Whose signatures count."""

    usign: tuple[UsignPublicKey, ...] = ()
    #: Files with OpenPGP public keys (not armoured), as gpgv reads them.
    keyrings: tuple[Path, ...] = ()
    #: Fingerprints of the primary keys in them that count; 40 hexadecimal digits.
    fingerprints: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ImageBuilder:
    """An unpacked ImageBuilder."""

    directory: Path
    #: SHA-256 of its archive.
    digest: str


class ImageBuilders:
    """The ImageBuilders of one upstream."""

    def __init__(
        self,
        directory: Path,
        *,
        upstream_url: str,
        keys: UpstreamKeys,
        open_fetcher: Callable[[], Fetcher],
        limits: Limits | None = None,
    ) -> None:
        self._directory = directory
        self._upstream_url = upstream_url.rstrip("/")
        self._keys = keys
        self._open_fetcher = open_fetcher
        self._limits = limits or Limits()
        directory.mkdir(parents=True, exist_ok=True)

    def digest(self, version: str, target: str) -> str:
        """Return the digest that upstream signs now for a version's ImageBuilder; the signer asks this too.

        Raises:
            UnsignedChecksumsError: It signs none.
            BuildFailedError: It has none.
        """
        return self._listed(version, target)[0]

    def open(self, version: str, target: str, watcher: Watcher) -> ImageBuilder:
        """Return the ImageBuilder of `version` for `target`, downloading it when that is new."""
        digest, url = self._listed(version, target)
        directory = self._directory / digest
        while not directory.exists():
            watcher.check()
            try:
                with locked(self._directory / "lock", purpose="a download of an ImageBuilder"):
                    if not directory.exists():
                        self._install(url, digest, watcher)
            except LockedError:
                time.sleep(_WAIT_S)
        os.utime(directory)
        return ImageBuilder(directory=directory, digest=digest)

    def forget(self, *, unused_since: float) -> int:
        """Remove ImageBuilders that no build has used since; return how many."""
        with locked(self._directory / "lock", purpose="a download of an ImageBuilder"):
            old = [
                path
                for path in self._directory.iterdir()
                if len(path.name) == 64 and path.stat().st_mtime < unused_since
            ]
            for path in old:
                remove_tree(path)
        return len(old)

    def _listed(self, version: str, target: str) -> tuple[str, str]:
        base = f"{self._upstream_url}/{version_path(version)}/targets/{target}"
        fetcher = self._open_fetcher()
        try:
            sums = fetch_bytes(fetcher, f"{base}/sha256sums", limit_bytes=_MAX_SUMS_BYTES)
        except RefusedStatusError as error:
            raise _missing(version, target) from error
        self._check_signatures(fetcher, f"{base}/sha256sums", sums)
        for line in sums.decode(errors="replace").splitlines():
            if found := _LINE.fullmatch(line):
                return found[1], f"{base}/{found[2]}"
        raise _missing(version, target)

    def _check_signatures(self, fetcher: Fetcher, url: str, sums: bytes) -> None:
        signatures = {suffix: _fetch_if_there(fetcher, f"{url}.{suffix}") for suffix in ("asc", "sig")}
        if not any(signatures.values()):
            raise UnsignedChecksumsError(url=url, reason="there is neither .asc nor .sig beside it")
        if signatures["sig"] is not None:
            try:
                verify_usign(sums, signatures["sig"].decode(errors="replace"), self._keys.usign, name=url)
            except (UsignTextError, UsignSignatureError) as error:
                raise UnsignedChecksumsError(url=url, reason=f"the usign signature does not count ({error})") from error
        if signatures["asc"] is not None:
            self._check_openpgp(url, sums, signatures["asc"])

    def _check_openpgp(self, url: str, sums: bytes, signature: bytes) -> None:
        data, detached = self._directory / f".sums.{os.getpid()}", self._directory / f".sums.{os.getpid()}.asc"
        keyrings = [option for path in self._keys.keyrings for option in ("--keyring", str(path.absolute()))]
        try:
            data.write_bytes(sums)
            detached.write_bytes(signature)
            if not keyrings:
                raise UnsignedChecksumsError(url=url, reason="no OpenPGP key is pinned")
            status = run(["gpgv", "--status-fd", "1", *keyrings, detached, data]).stdout.decode(errors="replace")
        except ProgramFailedError as error:
            raise UnsignedChecksumsError(url=url, reason="the OpenPGP signature does not verify") from error
        finally:
            data.unlink(missing_ok=True)
            detached.unlink(missing_ok=True)
        # The last field of VALIDSIG is the primary key, whichever subkey signed.
        signers = {line.split()[-1] for line in status.splitlines() if line.startswith("[GNUPG:] VALIDSIG ")}
        if not signers & {fingerprint.upper() for fingerprint in self._keys.fingerprints}:
            raise UnsignedChecksumsError(url=url, reason="the OpenPGP key that signed is not pinned")

    def _install(self, url: str, digest: str, watcher: Watcher) -> None:
        archive, temporary = self._directory / f"{digest}.archive", self._directory / f"{digest}.tmp"
        if temporary.exists():
            remove_tree(temporary)
        try:
            watcher.log(f"Downloading {url}\n")
            with replacing(archive) as stream:
                fetch_file(self._open_fetcher(), url, stream, limit_bytes=_MAX_ARCHIVE_BYTES, sha256=digest)
            # The sandbox of a worker that is root reads it as somebody else, whatever root's umask.
            archive.chmod(0o644)
            temporary.mkdir()
            self._unpack(archive, temporary, watcher)
            temporary.rename(self._directory / digest)
        finally:
            archive.unlink(missing_ok=True)
            if temporary.exists():
                remove_tree(temporary)

    def _unpack(self, archive: Path, target: Path, watcher: Watcher) -> None:
        place = Sandbox(read_only={"/archive": archive}, writable={"/unpacked": target}, limits=self._limits)
        command = ["tar", "--extract", "--file=/archive", "--strip-components=1", "--no-same-owner"]
        ended = place.run(command, directory="/unpacked", follower=watcher)
        if ended.status != 0:
            raise BuildFailedError(
                BuildFailure(
                    kind=FailureKind.SETUP_FAILED,
                    detail=f"Could not set up ImageBuilder (returncode={ended.status})",
                    stderr=ended.stderr.decode(errors="replace"),
                )
            )


def version_path(version: str) -> str:
    """Return where upstream keeps `version`."""
    return "snapshots" if version.upper() == "SNAPSHOT" else f"releases/{version}"


def _fetch_if_there(fetcher: Fetcher, url: str) -> bytes | None:
    try:
        return fetch_bytes(fetcher, url, limit_bytes=_MAX_SIGNATURE_BYTES)
    except RefusedStatusError as error:
        if error.status == 404:
            return None
        raise


def _missing(version: str, target: str) -> BuildFailedError:
    image = f"{target.replace('/', '-')}-{version}"
    return BuildFailedError(
        BuildFailure(
            kind=FailureKind.BUILDER_MISSING,
            detail=(
                f"Image not found: {image}. If this version was just released, please try again in a few hours as it "
                "may take some time to become fully available."
            ),
        )
    )
