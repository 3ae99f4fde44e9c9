"""Where everything lies in the published tree, relative to its root.

version/format<N>/latest[.sig]              the newest version of a format: what devices poll
version/format<N>/first                     its first one
version/latest_version[.sig]                the newest version of all formats
<version>/format                            the format of a version
<version>/Manifest.MoM[.sig|.tar]           what a version consists of; signed
<version>/Manifest.<bundle>[.tar]           a bundle that changed in the version
<version>/Manifest.full[.tar]               everything; for builders and people
<version>/Manifest-<bundle>-delta-from-<old version>
<version>/files/<hash>.tar                  one object that changed last in the version
<version>/delta/<delta name>                file deltas, as they also lie in packs
<version>/pack-<bundle>-from-<old version>.tar
"""

import re

from overhaul.dialects.swupd.eras import NEWEST_VERSION
from overhaul.errors import InputError

#: The bundle every system has.
CORE_BUNDLE = "os-core"
#: The manifest of manifests, and the union of all bundles; neither is a bundle.
MOM = "MoM"
FULL = "full"

_BUNDLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+.-]{0,199}", re.ASCII)
_RESERVED = frozenset({MOM, FULL})
_DELTA = re.compile(r"(?:(\d{1,10})-(\d{1,10})-)?(?:([0-9a-f]{64})-)?([0-9a-f]{64})", re.ASCII)
_VERSION = re.compile(rb"[1-9][0-9]{0,9}")


class BundleNameError(InputError):
    """A name that no bundle can have."""

    def __init__(self, *, name: str) -> None:
        self.name = name
        super().__init__(
            f"{name!r} is no name for a bundle; use letters, digits and - _ + . only, begin with a letter, digit or _, "
            f"and do not call it {MOM} or {FULL}."
        )


def checked_bundle(name: str) -> str:
    """Return `name` when a bundle can be called so; raise `BundleNameError` otherwise."""
    if not is_bundle_name(name):
        raise BundleNameError(name=name)
    return name


def is_bundle_name(name: str) -> bool:
    """Tell whether a bundle can be called `name`; such a name is also safe as part of a path."""
    return _BUNDLE.fullmatch(name) is not None and name not in _RESERVED


def parse_version(data: bytes) -> int | None:
    """Return the version in a pointer file: its first line, a positive decimal number; None when it holds none."""
    lines = data[:64].splitlines()
    if not lines or not _VERSION.fullmatch(lines[0].strip()):
        return None
    version = int(lines[0])
    return version if version <= NEWEST_VERSION else None


def latest_path(format_name: int | str) -> str:
    """Return the path of the pointer of a format, or of `staging`."""
    return f"version/format{format_name}/latest"


def first_path(format_number: int) -> str:
    """Return the path of what names the first version of a format."""
    return f"version/format{format_number}/first"


def latest_version_path() -> str:
    """Return the path of the newest version of all formats."""
    return "version/latest_version"


def format_path(version: int) -> str:
    """Return the path of what names the format of a version."""
    return f"{version}/format"


def signature_path(path: str) -> str:
    """Return the path of the detached signature of `path`."""
    return f"{path}.sig"


def manifest_path(version: int, bundle: str) -> str:
    """Return the path of a plain manifest."""
    return f"{version}/Manifest.{bundle}"


def manifest_tar_path(version: int, bundle: str) -> str:
    """Return the path of the tar that holds a manifest."""
    return f"{version}/Manifest.{bundle}.tar"


def manifest_delta_path(version: int, bundle: str, *, old: int) -> str:
    """Return the path of the delta that makes the manifest of `version` of that of `old`."""
    return f"{version}/Manifest-{bundle}-delta-from-{old}"


def fullfile_path(version: int, object_hash: str) -> str:
    """Return the path of the object that changed last in `version`."""
    return f"{version}/files/{object_hash}.tar"


def pack_path(version: int, bundle: str, *, old: int) -> str:
    """Return the path of a pack; `version` and `old` are the bundle's, and an old one of 0 means nothing is there."""
    return f"{version}/pack-{bundle}-from-{old}.tar"


def delta_name(*, old_version: int, version: int, old_hash: str, new_hash: str, both_hashes: bool = True) -> str:
    """Return the name of the delta between two contents of a file; the versions are those of their last change."""
    hashes = f"{old_hash}-{new_hash}" if both_hashes else new_hash
    return f"{old_version}-{version}-{hashes}"


def parse_delta_name(name: str) -> tuple[str | None, str] | None:
    """Return the old (format 3: None) and new hash of a delta's name, or None when it is none."""
    found = _DELTA.fullmatch(name)
    return (found[3], found[4]) if found else None
