"""The files of a package and image server, read into records: what is wrong is refused, what is unknown ignored.

```
/.versions.json                               which releases there are
/<path>/.targets.json                         target -> architecture
/<path>/targets/<target>/sha256sums[.sig]     digests of that directory, signed
/<path>/targets/<target>/profiles.json        devices, default packages, revision
/<path>/targets/<target>/packages/index.json  packages of the target; or Packages, as opkg reads it
/<path>/packages/<arch>/feeds.conf            names of the feeds
/<path>/packages/<arch>/<feed>/index.json     packages of a feed; or Packages
```

Pure. Every name that could become part of a path, an address or a command is checked here, once.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from overhaul.dialects.asu.names import is_package, is_target, is_token, underscored
from overhaul.errors import TrustError

_DIGEST_LENGTH = 64


class UpstreamDocumentError(TrustError):
    """A file of upstream that is not what its name says; the last good one stays in use."""

    def __init__(self, *, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{name} cannot be used: {reason}; what was known before stays in use.")


class Versions(msgspec.Struct, frozen=True, kw_only=True):
    """`.versions.json`."""

    stable_version: str = ""
    oldstable_version: str = ""
    upcoming_version: str = ""
    versions_list: tuple[str, ...] = ()


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One device of `profiles.json`."""

    titles: tuple[dict[str, str], ...] = ()
    device_packages: tuple[str, ...] = ()
    supported_devices: tuple[str, ...] = ()
    image_prefix: str = ""
    images: tuple[dict[str, Any], ...] = ()

    @property
    def title(self) -> str:
        """The device as people call it."""
        for title in self.titles:
            words = title.get("title") or " ".join(title.get(key, "") for key in ("vendor", "model", "variant"))
            if words.strip():
                return " ".join(words.split())
        return ""


class Profiles(msgspec.Struct, frozen=True, kw_only=True):
    """`profiles.json`; what is not named here is passed on unread."""

    target: str
    version_number: str = ""
    version_code: str = ""
    arch_packages: str = ""
    source_date_epoch: int | str = 0
    default_packages: tuple[str, ...] = ()
    linux_kernel: dict[str, Any] | None = None
    profiles: dict[str, Profile]


@dataclass(frozen=True, kw_only=True)
class PackageIndex:
    """Packages that can be installed: their versions and, where the index tells it, their sizes in bytes."""

    architecture: str
    versions: Mapping[str, str]
    sizes: Mapping[str, int]
    #: Names that some package stands for.
    provided: frozenset[str] = frozenset()


class _JsonIndex(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str = ""
    packages: dict[str, str]


def parse_versions(data: bytes, *, name: str) -> Versions:
    """Return `.versions.json`; versions that are no names are left out."""
    read = _decoded(data, Versions, name)
    return Versions(
        stable_version=_named(read.stable_version),
        oldstable_version=_named(read.oldstable_version),
        upcoming_version=_named(read.upcoming_version),
        versions_list=tuple(version for version in read.versions_list if is_token(version)),
    )


def parse_targets(data: bytes, *, name: str) -> dict[str, str]:
    """Return target -> architecture; a mere list of targets has empty ones.

    Raises:
        UpstreamDocumentError: There is none. An empty map would make clients believe the branch is gone.
    """
    read = _decoded(data, dict[str, str] | list[str], name)
    pairs = read.items() if isinstance(read, dict) else ((target, "") for target in read)
    targets = {target: arch for target, arch in pairs if is_target(target) and (not arch or is_token(arch))}
    if not targets:
        raise UpstreamDocumentError(name=name, reason="it lists no target")
    return targets


def parse_profiles(data: bytes, *, name: str, target: str) -> Profiles:
    """Return `profiles.json` of `target`."""
    read: Profiles = _decoded(data, Profiles, name)
    if read.target != target:
        raise UpstreamDocumentError(name=name, reason=f"it is of target {read.target!r} and not of {target}")
    if read.arch_packages and not is_token(read.arch_packages):
        raise UpstreamDocumentError(name=name, reason="its architecture is no name")
    profiles = {profile: facts for profile, facts in read.profiles.items() if is_token(profile)}
    if not profiles:
        raise UpstreamDocumentError(name=name, reason="it lists no device")
    return msgspec.structs.replace(read, profiles=profiles)


def aliases(profiles: Mapping[str, Profile]) -> dict[str, str]:
    """Return every name a device can be asked for by, with underscores, and its profile."""
    found: dict[str, str] = {}
    for profile, facts in profiles.items():
        for device in facts.supported_devices:
            found.setdefault(underscored(device), profile)
    found.update({underscored(profile): profile for profile in profiles})
    return found


def parse_index(data: bytes, *, name: str) -> PackageIndex:
    """Return an `index.json` of either version."""
    read = _decoded(data, _JsonIndex, name)
    packages = {package: version for package, version in read.packages.items() if is_package(package)}
    return PackageIndex(architecture=_named(read.architecture), versions=packages, sizes={})


def parse_opkg_packages(data: bytes, *, name: str) -> PackageIndex:
    """Return a `Packages` file: paragraphs as Debian writes them.

    Names lose the ABI version that their library carries, because that is how they are asked for.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UpstreamDocumentError(name=name, reason="it is no UTF-8 text") from error
    versions: dict[str, str] = {}
    sizes: dict[str, int] = {}
    provided: set[str] = set()
    architecture = ""
    for paragraph in _paragraphs(text):
        full = paragraph.get("package", "")
        package = full.removesuffix(paragraph.get("abiversion", "")) or full
        if not is_package(package) or "version" not in paragraph:
            continue
        versions[package] = paragraph["version"]
        size = paragraph.get("size", "")
        if size.isascii() and size.isdecimal() and len(size) < 16:
            sizes[package] = int(size)
        provided.update(word.strip() for word in paragraph.get("provides", "").split(",") if word.strip())
        if package != full:
            provided.add(full)
        if not architecture and paragraph.get("architecture", "all") != "all":
            architecture = _named(paragraph["architecture"])
    if not versions:
        raise UpstreamDocumentError(name=name, reason="it lists no package")
    return PackageIndex(architecture=architecture, versions=versions, sizes=sizes, provided=frozenset(provided))


def parse_feeds(data: bytes, *, name: str) -> tuple[str, ...]:
    """Return the feeds that `feeds.conf` names: the second word of each line."""
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise UpstreamDocumentError(name=name, reason="it is no UTF-8 text") from error
    words = [line.split() for line in lines if not line.lstrip().startswith("#")]
    return tuple(dict.fromkeys(word[1] for word in words if len(word) > 1 and is_token(word[1])))


def parse_sums(data: bytes, *, name: str) -> dict[str, str]:
    """Return file -> SHA-256 of a `sha256sums`."""
    sums: dict[str, str] = {}
    for line in data.decode(errors="replace").splitlines():
        digest, _space, file = line.partition(" ")
        if len(digest) != _DIGEST_LENGTH or not file:
            raise UpstreamDocumentError(name=name, reason=f"the line {line[:80]!r} holds no digest and file")
        sums[file.lstrip(" *")] = digest.lower()
    return sums


def kmods_path(profiles: Profiles) -> str | None:
    """Return where kernel modules are published apart from the target's packages, when `profiles.json` tells."""
    kernel = profiles.linux_kernel or {}
    parts = [str(kernel.get(key, "")) for key in ("version", "release", "vermagic")]
    joined = "-".join(parts)
    return joined if all(parts) and is_token(joined) else None


def _paragraphs(text: str) -> Iterator[dict[str, str]]:
    current: dict[str, str] = {}
    for line in text.splitlines():
        if not line.strip():
            if current:
                yield current
            current = {}
        elif line[0] not in " \t":
            key, _colon, value = line.partition(":")
            current[key.strip().lower()] = value.strip()
    if current:
        yield current


def _named(text: str) -> str:
    return text if is_token(text) else ""


_DECODERS: dict[Any, Callable[[bytes], Any]] = {}


def _decoded(data: bytes, kind: Any, name: str) -> Any:
    decoder = _DECODERS.setdefault(kind, msgspec.json.Decoder(kind).decode)
    try:
        return decoder(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamDocumentError(name=name, reason=str(error)) from error
