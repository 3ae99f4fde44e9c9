"""Overhaul's own releases as an image pool of this dialect.

```
public/atomupd/PRODUCT/images/PRODUCT/VARIANT/ARCH/VERSION/BUILD/image.raucb           ImagesUrl = .../images/
                                                                 image.castr           -> the product's chunk store
                                                                 image.caibx           its chunks; sizes are told by it
                                                                 image.manifest.json   while it is offered or skipped
public/atomupd/PRODUCT/images/checkpoints.json      numbers of checkpoints; only ever grows
public/atomupd/PRODUCT/meta/...                     MetaUrl: the static tree
```

A release is an image in every branch whose channel opens it. One that was recalled is skipped, so that devices on it
are led away, also to an older image. One that is published and not opened to everybody is known and offered to nobody.

Policies know checkpoints as such and this system numbers them, so the numbers are given once, in the order in which
checkpoints are opened, and kept: devices remember them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import msgspec

from overhaul.content.index import MalformedIndexError
from overhaul.dialects.atomupd.catalogue import Catalogue, Entry, assemble
from overhaul.dialects.atomupd.manifest import Image, canonical_arch
from overhaul.dialects.atomupd.pool import BUNDLE_SUFFIX, STORE_SUFFIX
from overhaul.dialects.atomupd.server_configuration import Support
from overhaul.dialects.atomupd.settings import AtomupdSettings
from overhaul.dialects.atomupd.sizes import chunk_sizes, missing_bytes
from overhaul.dialects.atomupd.versions import parse_build_id, parse_version
from overhaul.errors import OperatorError
from overhaul.host.files import replace_bytes
from overhaul.release.record import ReleaseId
from overhaul.release.versions import release_order_key

INDEX_SUFFIX = ".caibx"
_STEM = "image"
#: Indexes kept in memory; one of a 5 GiB image is about 10 MB there.
_REMEMBERED = 32
CHECKPOINTS_NAME = "checkpoints.json"
#: (version, build id) of a variant's checkpoints by `VARIANT/ARCH`; the number of one is its place, from 1.
Checkpoints = dict[str, list[tuple[str, str]]]


class DamagedCheckpointsError(OperatorError):
    """The file of checkpoint numbers cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} cannot be read; restore it: devices remember the numbers in it.")


def stem_of(release: ReleaseId) -> str:
    """Return where a release lies below `images/`, without suffix."""
    identity = release
    return f"{identity.product}/{identity.variant}/{identity.arch}/{identity.version}/{identity.build_id}/{_STEM}"


def bundle_path(images: Path, release: ReleaseId) -> Path:
    """Return the path of a release's bundle."""
    return images / (stem_of(release) + BUNDLE_SUFFIX)


def index_path(images: Path, release: ReleaseId) -> Path:
    """Return the path of the chunk index of a release."""
    return images / (stem_of(release) + INDEX_SUFFIX)


class SizesOfReleases:
    """Tells what devices download from one release to another, for a static tree; each index is read once."""

    def __init__(self, images: Path, *, whole: bool) -> None:
        """Tell it from the indexes below `images`; with `whole` bundles hold images, and nothing is spared."""
        self._images = images
        self._whole = whole
        self._chunks = lru_cache(maxsize=_REMEMBERED)(self._read)

    def __call__(self, old: Entry, new: Entry) -> int:
        """Return the bytes to download, or 0 when they cannot be told."""
        try:
            if self._whole:
                return (self._images / new.update_path).stat().st_size
            return missing_bytes(self._chunks(new.stem), self._chunks(old.stem))
        except (OSError, MalformedIndexError):
            return 0

    def _read(self, stem: str) -> dict[bytes, int]:
        return chunk_sizes((self._images / (stem + INDEX_SUFFIX)).read_bytes())


def link_store(images: Path, release: ReleaseId, store: Path) -> None:
    """Let clients find the product's chunk store where they look for that of the bundle."""
    link = images / (stem_of(release) + STORE_SUFFIX)
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(store, link.parent)
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def published_releases(images: Path, product: str) -> Iterator[ReleaseId]:
    """Yield every release whose bundle is there."""
    for path in sorted(images.glob(f"{product}/*/*/*/*/{_STEM}{BUNDLE_SUFFIX}")):
        variant, arch, version, build_id = path.parent.parts[-4:]
        yield ReleaseId(product=product, variant=variant, arch=arch, version=version, build_id=build_id)


def read_checkpoints(path: Path) -> Checkpoints:
    """Return the numbers of checkpoints; none when none were given yet."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Checkpoints)
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise DamagedCheckpointsError(path) from error


def number_checkpoints(path: Path, found: Iterable[ReleaseId]) -> Checkpoints:
    """Give a number to each checkpoint in `found` that has none, durably, and return all numbers."""
    before, known = read_checkpoints(path), numbered_checkpoints(path, found)
    if known != before:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_bytes(path, msgspec.json.encode(known, order="sorted"))
    return known


def numbered_checkpoints(path: Path, found: Iterable[ReleaseId]) -> Checkpoints:
    """Return the numbers that `number_checkpoints` would return, and give none."""
    known = read_checkpoints(path)
    for release in sorted(found, key=lambda one: release_order_key(one.version, one.build_id)):
        numbered = known.setdefault(f"{release.variant}/{release.arch}", [])
        name = (release.version, release.build_id)
        if name not in numbered:
            numbered.append(name)
    return known


def image_of_release(
    release: ReleaseId, settings: AtomupdSettings, checkpoints: Checkpoints, *, branch: str, skip: bool = False
) -> Image:
    """Return the image that a release is in `branch`.

    Raises:
        UnusableVersionError, UnusableBuildIdError: Its names mean nothing in this dialect.
    """
    numbered = checkpoints.get(f"{release.variant}/{release.arch}", [])
    order = release_order_key(release.version, release.build_id)
    passed = sum(1 for name in numbered if release_order_key(*name) < order)
    name = (release.version, release.build_id)
    return Image(
        product=release.product,
        release=settings.release,
        variant=release.variant,
        arch=canonical_arch(release.arch),
        version=parse_version(release.version),
        build_id=parse_build_id(release.build_id),
        branch=branch,
        default_update_branch=branch,
        introduces_checkpoint=numbered.index(name) + 1 if name in numbered else 0,
        requires_checkpoint=passed,
        skip=skip,
    )


def catalogue_of(
    settings: AtomupdSettings,
    checkpoints: Checkpoints,
    *,
    branches: tuple[str, ...],
    opened: Mapping[str, Iterable[ReleaseId]],
    recalled: Iterable[ReleaseId],
    published: Iterable[ReleaseId],
) -> Catalogue:
    """Return the catalogue: all that is published is known, and what is opened is offered.

    `opened` names the releases of each branch; `published` are all whose bundles are there, and nothing else counts.
    """
    there = list(published)
    known = set(there)
    offered = [
        _entry(image_of_release(release, settings, checkpoints, branch=branch), release)
        for branch in branches
        for release in opened.get(branch, ())
        if release in known
    ]
    in_a_branch = {release for releases in opened.values() for release in releases}
    withdrawn = set(recalled) - in_a_branch
    rest = [
        _entry(image_of_release(release, settings, checkpoints, branch=branches[0], skip=release in withdrawn), release)
        for release in there
        if release not in in_a_branch
    ]
    support = Support(
        products=(),
        releases=(settings.release,),
        variants=(),
        archs=(),
        branches=branches,
        unstable=True,
        replacements=settings.ended_variants,
        considered=settings.consider,
        strict_pool=False,
    )
    lists = assemble(offered, support).lists
    return Catalogue(support=support, recorded=(*offered, *rest), lists=lists)


def _entry(image: Image, release: ReleaseId) -> Entry:
    stem = stem_of(release)
    return Entry(image, stem + BUNDLE_SUFFIX, stem)
