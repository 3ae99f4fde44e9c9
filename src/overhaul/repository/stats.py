"""How big a repository is, and what of."""

from collections import Counter
from dataclasses import dataclass

from overhaul.release.record import Release
from overhaul.repository.layout import PUBLIC, files_of, kind_of
from overhaul.repository.signed import Published
from overhaul.repository.storage import Storage


@dataclass(frozen=True, kw_only=True)
class KindStats:
    """Files of one kind: a folder of the public tree."""

    kind: str
    files: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class ProductStats:
    """The releases of one product."""

    product: str
    releases: int
    channels: tuple[str, ...]
    #: Bytes of all images as they are installed.
    image_bytes: int
    #: Bytes of the different files that hold them.
    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class RepositoryStats:
    """The whole repository."""

    kinds: tuple[KindStats, ...]
    products: tuple[ProductStats, ...]
    files: int
    bytes: int


def measure(storage: Storage, published: Published) -> RepositoryStats:
    """Return the sizes of what is in `storage`."""
    files: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for one in storage.list_objects(PUBLIC):
        kind = kind_of(one.key.removeprefix(PUBLIC))
        files[kind] += 1
        sizes[kind] += one.size
    by_product: dict[str, list[Release]] = {}
    for release in published.releases.values():
        by_product.setdefault(release.id.product, []).append(release)
    names = sorted({*by_product, *(policy.product for policy in published.policies.values())})
    return RepositoryStats(
        kinds=tuple(KindStats(kind=kind, files=files[kind], bytes=sizes[kind]) for kind in sorted(files)),
        products=tuple(_product(name, by_product.get(name, []), published) for name in names),
        files=files.total(),
        bytes=sizes.total(),
    )


def _product(name: str, releases: list[Release], published: Published) -> ProductStats:
    stored = {ref.path: ref.size for release in releases for ref in files_of(release)}
    return ProductStats(
        product=name,
        releases=len(releases),
        channels=tuple(sorted(policy.channel for policy in published.policies.values() if policy.product == name)),
        image_bytes=sum(release.image.size for release in releases),
        stored_bytes=sum(stored.values()),
    )
