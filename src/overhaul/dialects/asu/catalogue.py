"""What can be asked for: distributions, versions, targets, devices and packages, as upstream last told them.

A `Catalogue` is one consistent state and never changes; `CurrentCatalogue` swaps it as a whole when an update is
done. What is big is read from disk and parsed on first use and then kept, within a limit. Nothing here talks to
upstream.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, TypeVar

from overhaul.dialects.asu import upstream_documents as documents
from overhaul.dialects.asu.catalogue_store import CatalogueStore, Generation
from overhaul.dialects.asu.distributions import Distribution, Version, load_distributions
from overhaul.dialects.asu.names import SNAPSHOT, branch_of, newest_first, version_path
from overhaul.dialects.asu.settings import AsuSettings
from overhaul.dialects.asu.upstream_documents import PackageIndex, Profiles, UpstreamDocumentError
from overhaul.errors import OverhaulError

#: Parsed files kept in memory; the largest is an index of some ten thousand packages.
_KEPT_PARSED = 256
#: What opens the versions of a branch that carry its own name.
OPENWRT = "openwrt"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class System:
    """One version of a distribution, and where upstream keeps it."""

    distribution: str
    version: str
    #: Below the upstream address, such as `releases/23.05.5`.
    path: str
    url: str
    is_snapshot: bool

    def file(self, path: str) -> str:
        """Return the address of a file of this version."""
        return f"{self.url}/{self.path}/{path}"


class Kept(Generic[T]):
    """The values used last, up to a number of them; safe for several threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def peek(self, key: str) -> T | None:
        """Return a value that is here already."""
        return self._values.get(key)

    def get(self, key: str, make: Callable[[], T]) -> T:
        """Return the value of `key`, made when it is not here."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        with self._lock:
            self._values[key] = made
            while len(self._values) > self._limit:
                self._values.popitem(last=False)
        return made


class Catalogue:
    """One state of what is known."""

    def __init__(
        self, store: CatalogueStore, generation: Generation, settings: AsuSettings, seeds: Mapping[str, Distribution]
    ) -> None:
        self.settings = settings
        self.generation = generation
        self._store = store
        self._seeds = seeds
        self._parsed: Kept[object] = Kept(_KEPT_PARSED)

    @cached_property
    def systems(self) -> tuple[System, ...]:
        """Every version that something is known of, the newest first; OpenWrt's before those of files."""
        return tuple(
            system for system in known_systems(self._listed, self.settings, self._seeds) if self.targets(system)
        )

    @cached_property
    def distributions(self) -> dict[str, Distribution]:
        """The distributions, by name; OpenWrt is as upstream lists it where no file says otherwise."""
        return {OPENWRT: self._openwrt, **self._seeds}

    @cached_property
    def latest(self) -> tuple[str, ...]:
        """The versions a new device should take: upcoming, stable, old stable."""
        listed = self._listed
        offered = (listed.upcoming_version, listed.stable_version, listed.oldstable_version)
        known = {system.version for system in self.systems}
        return tuple(dict.fromkeys(version for version in offered if version in known))

    def branch_systems(self) -> dict[str, list[System]]:
        """Return the versions of each enabled branch, the newest first; a branch without any is left out."""
        names = self.settings.branches
        found: dict[str, list[System]] = {name: [] for name, branch in names.items() if branch.enabled}
        for system in self.systems:
            branch = branch_of(system.version, names) if system.distribution == OPENWRT else None
            if branch in found:
                found[branch].append(system)
        return {name: systems for name, systems in found.items() if systems}

    def system(self, distribution: str, version: str) -> System | None:
        """Return a version by its name, as upstream writes it."""
        return self._by_name.get((distribution, version))

    def system_at(self, path: str) -> System | None:
        """Return the OpenWrt version whose files are below `path`."""
        return self._by_path.get(path)

    def targets(self, system: System) -> Mapping[str, str]:
        """Return target -> architecture of a version; empty when nothing is known."""
        found = self._read(system.file(".targets.json"), documents.parse_targets)
        return found if found is not None else {}

    def profiles(self, system: System, target: str) -> Profiles | None:
        """Return the devices of a target, or None when they are not known."""

        def parse(data: bytes, *, name: str) -> Profiles:
            return documents.parse_profiles(data, name=name, target=target)

        return self._read(system.file(f"targets/{target}/profiles.json"), parse)

    def aliases(self, system: System, target: str) -> Mapping[str, str]:
        """Return every name a device of a target can be asked for by."""
        profiles = self.profiles(system, target)
        if profiles is None:
            return {}
        key = f"aliases {system.distribution} {system.version} {target}"
        found = self._parsed.get(key, lambda: documents.aliases(profiles.profiles))
        assert isinstance(found, dict)  # noqa: S101 - this key is used here only
        return found

    def profiles_bytes(self, system: System, target: str) -> bytes | None:
        """Return `profiles.json` as upstream wrote it."""
        return self._bytes(system.file(f"targets/{target}/profiles.json"))

    def target_index(self, system: System, target: str) -> PackageIndex | None:
        """Return the packages that exist for a target alone, kernel modules included."""
        base = f"targets/{target}"
        indexes = [self._index(system.file(f"{base}/packages"))]
        profiles = self.profiles(system, target)
        kmods = None if profiles is None else documents.kmods_path(profiles)
        if kmods is not None:
            indexes.append(self._index(system.file(f"{base}/kmods/{kmods}")))
        return _merged([index for index in indexes if index is not None])

    def arch_index(self, system: System, arch: str) -> PackageIndex | None:
        """Return the packages of all feeds of an architecture."""
        base = f"packages/{arch}"
        feeds = self._read(system.file(f"{base}/feeds.conf"), documents.parse_feeds) or ()
        indexes = [self._index(system.file(f"{base}/{feed}")) for feed in feeds]
        return _merged([index for index in indexes if index is not None])

    def packages(self, system: System, target: str) -> PackageIndex | None:
        """Return everything that can be installed on a target, or None when not all of it is known."""
        arch = self.targets(system).get(target, "")
        profiles = self.profiles(system, target)
        arch = arch or ("" if profiles is None else profiles.arch_packages)
        own, shared = self.target_index(system, target), self.arch_index(system, arch)
        return None if own is None or shared is None else _merged([shared, own])

    def offered_targets(self, system: System) -> Mapping[str, str]:
        """Return the targets of a version that its distribution's file does not exclude."""
        version = self.version(system.distribution, system.version)
        targets = self.targets(system)
        if version is None:
            return targets
        return {target: arch for target, arch in targets.items() if version.offers(target)}

    def version(self, distribution: str, name: str) -> Version | None:
        """Return what a distribution's file says of a version."""
        found = self.distributions.get(distribution)
        return None if found is None else found.version(name.lower())

    @cached_property
    def _listed(self) -> documents.Versions:
        url = f"{self.settings.upstream_url}/.versions.json"
        return self._read(url, documents.parse_versions) or documents.Versions()

    @cached_property
    def _openwrt(self) -> Distribution:
        systems = [system for system in self.systems if system.distribution == OPENWRT]
        return Distribution(
            name=OPENWRT,
            alias="OpenWrt",
            description="OpenWrt",
            latest=self._listed.stable_version or next((one.version for one in systems if not one.is_snapshot), ""),
            versions=tuple(Version(name=one.version, is_snapshot=one.is_snapshot) for one in reversed(systems)),
        )

    @cached_property
    def _by_name(self) -> dict[tuple[str, str], System]:
        return {(system.distribution, system.version): system for system in self.systems}

    @cached_property
    def _by_path(self) -> dict[str, System]:
        return {system.path: system for system in self.systems if system.distribution == OPENWRT}

    def _index(self, url: str) -> PackageIndex | None:
        opkg = self._read(f"{url}/Packages", documents.parse_opkg_packages)
        return opkg if opkg is not None else self._read(f"{url}/index.json", documents.parse_index)

    def _read(self, url: str, parse: "Callable[..., T]") -> T | None:
        """Return a parsed file, or None when it is not here or cannot be used."""

        def make() -> object:
            data = self._bytes(url)
            try:
                return None if data is None else parse(data, name=url)
            except UpstreamDocumentError:
                return None

        return self._parsed.get(url, make)  # type: ignore[return-value]

    def _bytes(self, url: str) -> bytes | None:
        fetched = self.generation.files.get(url)
        if fetched is None:
            return None
        try:
            return self._store.body(fetched.sha256)
        except OverhaulError:
            return None


def known_systems(
    listed: documents.Versions, settings: AsuSettings, seeds: Mapping[str, Distribution]
) -> tuple[System, ...]:
    """Return the versions to know of: the newest few of each branch and its snapshot, and those of files."""
    found: list[System] = []
    if OPENWRT not in seeds:
        names = [listed.upcoming_version, *listed.versions_list, listed.stable_version, listed.oldstable_version]
        versions = newest_first([*filter(None, names), SNAPSHOT, *(f"{name}-{SNAPSHOT}" for name in settings.branches)])
        count = dict.fromkeys(settings.branches, 0)
        for version in versions:
            branch = branch_of(version, settings.branches)
            if branch is None or not settings.branches[branch].enabled:
                continue
            is_snapshot = version.endswith(SNAPSHOT)
            count[branch] += not is_snapshot
            if is_snapshot or count[branch] <= settings.versions_per_branch:
                path = version_path(version, path=settings.branches[branch].path)
                found.append(
                    System(
                        distribution=OPENWRT,
                        version=version,
                        path=path,
                        url=settings.upstream_url,
                        is_snapshot=is_snapshot,
                    )
                )
    for distribution in seeds.values():
        for version_ in reversed(distribution.versions):
            name = version_.name if version_.parent is None else version_.parent[1]
            parent = seeds.get(version_.parent[0]) if version_.parent else distribution
            path = "snapshots" if name.lower() == "snapshot" else f"releases/{name}"
            url = (parent.upstream_url if parent else "") or settings.upstream_url
            found.append(
                System(
                    distribution=distribution.name,
                    version=version_.name,
                    path=path,
                    url=url,
                    is_snapshot=version_.is_snapshot,
                )
            )
    return tuple(found)


class CurrentCatalogue:
    """The state that counts now; every process sees a new one within moments of the switch."""

    def __init__(self, directory: Path, settings: AsuSettings) -> None:
        self.store = CatalogueStore(directory)
        self._settings = settings
        active = settings.active_distributions
        loaded = load_distributions(Path(settings.distributions)) if settings.distributions else {}
        self._seeds = {name: one for name, one in loaded.items() if not active or name in active}
        self._stamp = self.store.stamp()
        self._catalogue = self._open()

    @property
    def seeds(self) -> Mapping[str, Distribution]:
        """The distributions of files."""
        return self._seeds

    def now(self) -> Catalogue:
        """Return the state last seen; it costs nothing."""
        return self._catalogue

    def look(self) -> bool:
        """Take up a newer state when there is one; called now and then, never by a request."""
        stamp = self.store.stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self._catalogue = self._open()
        return True

    def _open(self) -> Catalogue:
        catalogue = Catalogue(self.store, self.store.read(), self._settings, self._seeds)
        # Made now, so that no request waits for it.
        _ = (catalogue.systems, catalogue.distributions, catalogue.latest)
        return catalogue


def _merged(indexes: list[PackageIndex]) -> PackageIndex | None:
    if not indexes:
        return None
    versions: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for index in indexes:
        versions.update(index.versions)
        sizes.update(index.sizes)
    return PackageIndex(
        architecture=next((index.architecture for index in indexes if index.architecture), ""),
        versions=versions,
        sizes=sizes,
        provided=frozenset().union(*(index.provided for index in indexes)),
    )
