"""What a system tells about itself: its version, format, addresses, certificate and bundles.

Everything is read below the root that is worked on; what a fresh root does not have yet is asked of the host.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from overhaul.dialects.swupd.device.errors import NoAddressError, UnknownVersionError
from overhaul.dialects.swupd.names import CORE_BUNDLE, is_bundle_name
from overhaul.host.files import replace_bytes

CERTIFICATE = Path("usr/share/clear/update-ca/Swupd_Root.pem")
VERSION_STAMP = Path("usr/share/clear/versionstamp")
_BUNDLES = Path("usr/share/clear/bundles")
_DEFAULTS = Path("usr/share/defaults/swupd")
_OVERRIDES = Path("etc/swupd")
_OS_RELEASES = (Path("usr/lib/os-release"), Path("etc/os-release"))
_ALIASES = (Path("etc/swupd/alias.d"), Path("usr/share/defaults/swupd/alias.d"))
_VERSION = re.compile(r"[0-9]{1,10}", re.ASCII)
_MAX_BYTES = 64 * 1024


@dataclass(frozen=True)
class System:
    """A root file system."""

    root: Path

    def version(self) -> int:
        """Return the installed version; 0 means that nothing is.

        Raises:
            UnknownVersionError: os-release does not tell.
        """
        value = self._release_value("VERSION_ID")
        if value is None:
            raise UnknownVersionError(root=self.root, reason="its os-release has no VERSION_ID")
        if not _VERSION.fullmatch(value) or int(value) >= 1 << 31:
            raise UnknownVersionError(root=self.root, reason=f"VERSION_ID is {value[:40]!r}")
        return int(value)

    def pretty_name(self) -> str:
        """Return the name of the system for people."""
        return self._release_value("PRETTY_NAME") or "unknown"

    def format(self, given: str | None) -> str:
        """Return the format to follow: a number, or `staging`.

        Raises:
            UnknownVersionError: Nothing tells.
        """
        text = given or self._first_text("format", _DEFAULTS)
        if text is None or (text != "staging" and (not _VERSION.fullmatch(text) or not int(text))):
            raise UnknownVersionError(root=self.root, reason=f"its format is {text!r}; name one with --format")
        return text

    def default(self, name: str) -> str | None:
        """Return a setting that the system's own content brings, such as its format; the host is not asked."""
        return _text(self.root / _DEFAULTS / name)

    def content_url(self) -> str:
        """Return the configured content URL; raise `NoAddressError` without one."""
        return self._url("content")

    def version_url(self) -> str:
        """Return the configured version URL; raise `NoAddressError` without one."""
        return self._url("version")

    def _url(self, which: str) -> str:
        found = _text(self.root / _OVERRIDES / f"mirror_{which}url") or self._first_text(f"{which}url", _DEFAULTS)
        if not found:
            raise NoAddressError(which=which)
        return found.rstrip("/")

    def shipped_url(self, which: str) -> str | None:
        """Return the URL that the system came with, whatever mirror is set."""
        found = self._first_text(f"{which}url", _DEFAULTS)
        return found.rstrip("/") if found else None

    def mirror(self) -> tuple[str | None, str | None]:
        """Return the content and version URLs that were set over those the system came with."""
        place = self.root / _OVERRIDES
        return _text(place / "mirror_contenturl"), _text(place / "mirror_versionurl")

    def set_mirror(self, content_url: str, version_url: str) -> None:
        """Use other addresses from now on."""
        place = self.root / _OVERRIDES
        place.mkdir(parents=True, exist_ok=True)
        replace_bytes(place / "mirror_contenturl", content_url.encode() + b"\n")
        replace_bytes(place / "mirror_versionurl", version_url.encode() + b"\n")

    def unset_mirror(self) -> None:
        """Go back to the addresses the system came with."""
        for which in ("content", "version"):
            (self.root / _OVERRIDES / f"mirror_{which}url").unlink(missing_ok=True)

    def installed(self) -> frozenset[str]:
        """Return the names of the installed bundles; os-core always is."""
        try:
            names = os.listdir(self.root / _BUNDLES)
        except (FileNotFoundError, NotADirectoryError):
            names = []
        return frozenset(name for name in names if is_bundle_name(name)) | {CORE_BUNDLE}

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Return the bundles each alias stands for; an administrator's file hides the vendor's of that name."""
        seen: set[str] = set()
        found: dict[str, tuple[str, ...]] = {}
        for place in _ALIASES:
            directory = self.root / place
            try:
                names = sorted(os.listdir(directory))
            except (FileNotFoundError, NotADirectoryError):
                continue
            for name in names:
                if name in seen:
                    continue
                seen.add(name)
                for line in (_text(directory / name) or "").splitlines():
                    alias, *bundles = line.split("\t")
                    if alias and bundles and not alias.startswith("#"):
                        found.setdefault(alias, tuple(filter(None, (part.strip() for part in bundles))))
        return found

    def certificate(self, given: Path | None) -> Path:
        """Return the certificate that versions must be signed with: the one given, else that of the host."""
        return given or Path("/") / CERTIFICATE

    def build_time(self) -> int | None:
        """Return when the system, else the host, was built, in seconds since 1970; None when nothing tells."""
        text = _text(self.root / VERSION_STAMP) or _text(Path("/") / VERSION_STAMP)
        return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 12 else None

    def _release_value(self, key: str) -> str | None:
        for place in _OS_RELEASES:
            text = _text(self.root / place)
            if text is None:
                continue
            for line in text.splitlines():
                name, equals, value = line.strip().partition("=")
                if equals and name == key:
                    return value.strip().strip("\"'")
            return None
        return None

    def _first_text(self, name: str, place: Path) -> str | None:
        return _text(self.root / place / name) or _text(Path("/") / place / name)


def _text(path: Path) -> str | None:
    """Return the text of a small file without blanks around it, or None where there is none."""
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_BYTES).decode("utf-8", "replace").strip() or None
    except OSError:
        return None
