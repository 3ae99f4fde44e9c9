"""Where everything of a repository lies in its storage: the only place that knows keys.

```
public/metadata/...  public/targets/...      signed files, laid out by `trust.layout`
public/content/indexes/AA/SHA256.caibx       AA: the first two digits of the digest
public/content/packs/AA/SHA256.pack
public/content/frames/AA/SHA256.frames
public/content/mends/AA/SHA256.mends
public/content/deltas/AA/SHA256.delta
public/content/configurations/AA/SHA256.configuration
public/castr/PRODUCT/...                     casync chunk stores and indexes, for products that ask for them
public/{atomupd,ostree,swupd}/PRODUCT/...    trees of the dialects, which keep, check and prune them themselves
private/journal/DIGEST.json                  one for each publish that has not ended
private/deltas/SHA256.json                   how each file travels in a delta, for the operator
private/lock                                 who writes at the moment
private/unreferenced.json                    since when prune has seen files that nothing names
private/work/                                files of the running publish, in a local storage
```

A web server's document root is `public/`. Paths in records are relative to it; keys are relative to the storage.
"""

import hashlib
from collections.abc import Iterable
from enum import StrEnum

import msgspec

from overhaul.release.record import FileRef, Release
from overhaul.repository.storage import StoredObject

PUBLIC = "public/"
LOCK_KEY = "private/lock"
JOURNAL_PREFIX = "private/journal/"
UNREFERENCED_KEY = "private/unreferenced.json"
WORK_FOLDER = "private/work"
CONTENT_PREFIX = "content/"
METADATA_PREFIX = "metadata/"
TARGETS_PREFIX = "targets/"
CASTR_PREFIX = "castr/"
#: Trees whose files no record of ours names.
_DIALECT_PREFIXES = ("atomupd/", "ostree/", "swupd/")


class ContentKind(StrEnum):
    """Kinds of content files; the value is the folder."""

    INDEX = "indexes"
    PACK = "packs"
    FRAMES = "frames"
    MENDS = "mends"
    DELTA = "deltas"
    CONFIGURATION = "configurations"


_SUFFIXES = {
    ContentKind.INDEX: "caibx",
    ContentKind.PACK: "pack",
    ContentKind.FRAMES: "frames",
    ContentKind.MENDS: "mends",
    ContentKind.DELTA: "delta",
    ContentKind.CONFIGURATION: "configuration",
}


def own_files(stored: Iterable[StoredObject]) -> dict[str, StoredObject]:
    """Return by public path what of the `stored` public objects is ours to judge; a dialect's tree is not."""
    paths = ((one.key.removeprefix(PUBLIC), one) for one in stored)
    return {path: one for path, one in paths if not path.startswith(_DIALECT_PREFIXES)}


def public_key(path: str) -> str:
    """Return the storage key of the public `path`."""
    return PUBLIC + path


def content_ref(kind: ContentKind, *, sha256: str, size: int) -> FileRef:
    """Return the reference of a content file; its path follows from its digest."""
    path = f"{CONTENT_PREFIX}{kind}/{sha256[:2]}/{sha256}.{_SUFFIXES[kind]}"
    return FileRef(path=path, size=size, sha256=sha256)


def content_ref_of(kind: ContentKind, data: bytes) -> FileRef:
    """Return the reference under which `data` is published."""
    return content_ref(kind, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def journal_key(journal_id: str) -> str:
    """Return the key of a journal document."""
    return f"{JOURNAL_PREFIX}{journal_id}.json"


def delta_report_key(sha256: str) -> str:
    """Return the key of what the operator may know of a delta."""
    return f"private/deltas/{sha256}.json"


def kind_of(path: str) -> str:
    """Return the folder that tells what a public file is: `metadata`, `targets`, `castr`, `content/packs`, ..."""
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "content" else parts[0]


def castr_store_path(product: str) -> str:
    """Return the public path of the casync chunk store of `product`."""
    return f"{CASTR_PREFIX}{product}/default.castr"


def castr_index_path(release: Release) -> str:
    """Return the public path of a release's index beside its product's chunk store."""
    identity = release.id
    name = f"{identity.version}-{identity.build_id}.caibx"
    return f"{CASTR_PREFIX}{identity.product}/{identity.variant}/{identity.arch}/{name}"


def files_of(release: Release) -> tuple[FileRef, ...]:
    """Return every content file that the record of `release` names."""
    image = release.image
    packs = (ref for pack in image.packs for ref in pack.files)
    configuration = () if release.configuration is msgspec.UNSET else (release.configuration.file,)
    return (image.index, *packs, *(delta.file for delta in image.deltas), *configuration)
