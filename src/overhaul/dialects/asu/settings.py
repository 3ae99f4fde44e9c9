"""What an operator may say about images on demand for OpenWrt's clients: the table `[asu]` of `overhaul.toml`."""

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import msgspec

_Text = Annotated[str, msgspec.Meta(max_length=2000)]
_Address = Annotated[str, msgspec.Meta(pattern=r"^https?://[!-~]+\Z", max_length=1000)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class PackageChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What becomes of a package for whoever upgrades across a revision; published for clients."""

    source: str | None = None
    target: str | None = None
    revision: int
    #: A removal without which the new system cannot be built.
    mandatory: bool = False


class Branch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A line of releases, or the snapshots."""

    #: Where its files are below the upstream address; `{version}` stands for the version.
    path: str
    enabled: bool = True
    snapshot: bool = False
    #: Revision at which it left the main line; None for the main line itself.
    branch_off_rev: int | None = None


class _Defaults(msgspec.Struct, frozen=True):
    branches: dict[str, Branch]
    package_changes: tuple[PackageChange, ...]


@cache
def _defaults() -> _Defaults:
    return msgspec.json.decode((Path(__file__).parent / "data" / "branches.json").read_bytes(), type=_Defaults)


def default_branches() -> dict[str, Branch]:
    """Return the branches this Overhaul knows of."""
    return dict(_defaults().branches)


def package_changes(branch: Branch) -> tuple[PackageChange, ...]:
    """Return the changes that whoever comes to `branch` may have crossed."""
    changes = _defaults().package_changes
    if branch.branch_off_rev is None:
        return changes
    return tuple(change for change in changes if change.revision <= branch.branch_off_rev)


class DebianProduct(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A product whose devices may ask for Debian images with their own packages."""

    suites: tuple[str, ...]
    architectures: tuple[str, ...]


class AsuSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole table."""

    enabled: bool = False
    #: What lies below it is drawn in `docs/reference/asu-api.md`; without a slash at the end.
    upstream_url: _Address = "https://downloads.openwrt.org"
    #: Plain http to upstream is refused unless this is set.
    allow_http: bool = False
    #: Files with usign public keys. When there are any, what upstream lists in its signed `sha256sums` is only
    #: taken when a key signed it; without one, it is as trustworthy as https makes it.
    usign_keys: tuple[str, ...] = ()
    #: What is asked of upstream between two looks.
    update_every_minutes: Annotated[float, msgspec.Meta(gt=0, le=100_000)] = 15
    branches: dict[str, Branch] = msgspec.field(default_factory=default_branches)
    #: How many of the newest versions of a branch are fetched; clients are offered no others.
    versions_per_branch: _Positive = 4
    #: Directory of the seed era's distribution files; empty: OpenWrt alone, as upstream lists it.
    distributions: _Text = ""
    #: Which of them count; none means all.
    active_distributions: tuple[str, ...] = ()
    #: Shown to clients.
    contact: _Text = ""
    #: Whether first-boot scripts are put into images.
    allow_defaults: bool = False
    #: Characters of today's `defaults`.
    max_defaults_length: _Positive = 20480
    #: Bytes of the seed era's `defaults`.
    max_defaults_size: _Positive = 10240
    max_custom_rootfs_size_mb: _Positive = 1024
    #: Addresses below which packages may be fetched from; none means none.
    repository_allow_list: tuple[_Address, ...] = ()
    #: Products that Debian images are built for; asked for as distribution `debian`, target `debian/ARCHITECTURE`,
    #: profile PRODUCT.
    debian: dict[str, DebianProduct] = {}
    #: Answer unknown distributions, versions and targets with 412 as servers of 2019 did, and not 400 as documented.
    seed_legacy_status: bool = False
    #: What `/api/versions` is: the array of 2019, or the object with `branches` of 2020.
    versions_shape: Literal["array", "branches"] = "array"
    #: What is kept of each client's address to share the queue fairly: all of it, or nothing behind one proxy.
    trust_forwarded_for: bool = False
