"""What the name of a published file says about its type, its lifetime and its validator. Pure.

    metadata/timestamp.json           the only name whose bytes change: always asked for again
    metadata/N.role.json              immutable
    targets/.../<sha256>.name         immutable, the digest is the validator
    content/<kind>/<aa>/<sha256>.*    immutable, the digest is the validator
    castr/.../<chunk id>.cacnk        immutable, the id is the validator
    atomupd/PRODUCT/...               bundles, indexes and chunks are immutable
    ostree/PRODUCT/...                an OSTree repository, by the rules of `dialects.ostree.layout`
    swupd/PRODUCT/VARIANT/ARCH/...    what lies in a version's directory is immutable, but for signatures

In the last three all else is asked for again, and the file's own version is the validator.

A path that is not made of plain names is no published file at all: that covers `..`, absolute paths, empty
parts and the dot names under which half-written files live.
"""

import re
from dataclasses import dataclass

from overhaul.dialects.ostree.layout import CacheRule, cache_rule

#: Directories below the public root that are served; nothing else of a repository is.
SERVED_ROOTS = ("metadata", "targets", "content", "castr", "atomupd", "ostree", "swupd")
#: The path of the one file that changes under its name.
POINTER_PATH = "metadata/timestamp.json"

IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"

_PATH = re.compile(rf"(?:{'|'.join(SERVED_ROOTS)})(?:/[A-Za-z0-9_+~=@:,-][A-Za-z0-9._+~=@:,-]*)+", re.ASCII)
_ATOMUPD_IMMUTABLE = re.compile(r".*\.(?:raucb|cacnk|caibx)")
#: A version's directory appears whole, by one rename. Signatures can be made anew when a certificate ends.
_SWUPD_IMMUTABLE = re.compile(
    r"swupd/[^/]+/[^/]+/[^/]+/[1-9][0-9]*/(?:Manifest[.-][^/]+(?<!\.sig)|pack-[^/]+\.tar|files/[0-9a-f]{64}\.tar|delta/[^/]+)"
)
_FOREIGN_ROOTS = frozenset({"atomupd", "ostree", "swupd"})
_DIGEST = re.compile(r"(?:^|[./-])([0-9a-f]{64})(?=\.|$)")
_VERSIONED_METADATA = re.compile(r"metadata/[1-9][0-9]*\.[^/]+\.json")
_MEDIA_TYPES = {".json": "application/json", ".html": "text/html; charset=utf-8"}


@dataclass(frozen=True, kw_only=True)
class Naming:
    """What is known of a published file from its name alone."""

    path: str
    media_type: str
    cache_control: str
    #: The entity tag when the name holds a digest, else None: it is then made from the bytes.
    etag: str | None
    #: Whether the tag is made of the file's size and times instead, as other web servers do: too big to be hashed.
    is_foreign: bool = False


def naming_of(path: str) -> Naming | None:
    """Return what the public path `path` says, or None when no published file can have it."""
    if len(path) > 1024 or _PATH.fullmatch(path) is None:
        return None
    root = path.partition("/")[0]
    if root in _FOREIGN_ROOTS:
        return _foreign_naming_of(path, root)
    name = path.rpartition("/")[2]
    digest = None if path.startswith("metadata/") else _DIGEST.search(name)
    suffix = name[name.rfind(".") :] if "." in name else ""
    immutable = digest is not None or _VERSIONED_METADATA.fullmatch(path) is not None
    return Naming(
        path=path,
        media_type=_MEDIA_TYPES.get(suffix, "application/octet-stream"),
        cache_control=IMMUTABLE if immutable else REVALIDATE,
        etag=None if digest is None else f'"{digest[1]}"',
    )


def _foreign_naming_of(path: str, root: str) -> Naming | None:
    if root == "ostree":
        rule = cache_rule(path.split("/", 2)[2] if path.count("/") > 1 else "")
        if rule is CacheRule.HIDDEN:
            return None
        cache_control = rule.value
    else:
        immutable = _ATOMUPD_IMMUTABLE if root == "atomupd" else _SWUPD_IMMUTABLE
        cache_control = IMMUTABLE if immutable.fullmatch(path) else REVALIDATE
    return Naming(
        path=path,
        media_type="application/json" if path.endswith(".json") else "application/octet-stream",
        cache_control=cache_control,
        etag=None,
        is_foreign=True,
    )


def etag_matches(header: str | None, etag: str) -> bool:
    """Tell whether an `If-None-Match` header names `etag`, by weak comparison as the RFC demands."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return any(candidate.strip().removeprefix("W/") == etag for candidate in header.split(","))
