"""The public names of requests, package sets, manifests and images, as both eras' clients expect them. Pure.

They are names and nothing more. The seed era cut them to 12 hexadecimal digits, and today's one is made without
separators, so that two requests can share one: an answer is only ever served after the full recipe behind the name
was compared (CVE-2024-54143 is what happens otherwise).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence


def text_hash(text: str) -> str:
    """Return the SHA-256 of `text` in hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def packages_hash(packages: Iterable[str]) -> str:
    """Return the full digest of a package set; the seed era shows its first 12 digits."""
    return text_hash(" ".join(sorted({name.removeprefix("+") for name in packages})))


def seed_packages_hash(packages: Iterable[str]) -> str:
    """Return the seed era's name of a package set."""
    return text_hash(" ".join(sorted(set(packages))))[:12]


def seed_defaults_hash(defaults: str) -> str:
    """Return the name under which alone an image with first-boot defaults can be found."""
    return text_hash(defaults)[:32]


def seed_request_hash(
    *, distro: str, version: str, target: str, profile: str, defaults_hash: str, packages_hash: str
) -> str:
    """Return the seed era's name of a request; every value as it was sent, absent ones empty."""
    return text_hash(" ".join((distro, version, target, profile, defaults_hash, packages_hash)))[:12]


def seed_manifest_hash(manifest: str) -> str:
    """Return the seed era's name of a manifest: lines `name - version`, each ended."""
    return text_hash(manifest)[:15]


def seed_image_hash(
    *, distro: str, version: str, target: str, profile: str, defaults_hash: str, manifest_hash: str
) -> str:
    """Return the seed era's name of an image."""
    return text_hash(" ".join((distro, version, target, profile, defaults_hash, manifest_hash)))[:15]


def manifest_text(manifest: Mapping[str, str]) -> str:
    """Return a manifest as opkg's image builders print it."""
    return "".join(f"{name} - {version}\n" for name, version in sorted(manifest.items()))


def today_request_hash(
    *,
    distro: str,
    version: str,
    version_code: str,
    target: str,
    profile: str,
    packages: Sequence[str],
    packages_versions: Mapping[str, str],
    diff_packages: bool,
    filesystem: str | None,
    defaults: str | None,
    rootfs_size_mb: int | None,
    repository_keys: Sequence[str],
    repositories: Mapping[str, str],
    repositories_mode: str,
) -> str:
    """Return today's name of a request; `profile` with its commas replaced, before aliases are resolved."""
    names = list(packages_versions) if packages_versions else packages
    return text_hash(
        "".join(
            (
                distro,
                version,
                version_code,
                target,
                profile,
                packages_hash(names),
                text_hash(json.dumps(dict(packages_versions), sort_keys=True)),
                str(diff_packages),
                filesystem or "",
                text_hash(defaults or ""),
                str(rootfs_size_mb),
                repr(list(repository_keys)),
                repr(dict(repositories)),
                repositories_mode,
            )
        )
    )
