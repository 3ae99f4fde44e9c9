"""The seed era's look-ups: distributions, versions, models, packages of a device, images."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qs

import anyio.to_thread

from overhaul.builds.records import BuildState
from overhaul.dialects.asu.catalogue import Catalogue, System
from overhaul.dialects.asu.catalogue_documents import branches
from overhaul.dialects.asu.parts import Parts
from overhaul.dialects.asu.prepared import Ask, Prepared, json_answer
from overhaul.dialects.asu.resolving import default_packages
from overhaul.dialects.asu.seed_images import SeedImage, sources_of
from overhaul.dialects.asu.statistics import failure_text

_KEPT = 512
_LATEST = 50
_MAX_QUERY = 500

Query = Mapping[str, str]
Make = Callable[[Catalogue, Query], object]


class MissingQueryError(Exception):
    """A look-up without what it looks for."""


class SeedCatalogue:
    """Makes the look-ups' answers and keeps them as long as the catalogue's state."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._made: OrderedDict[tuple[str, bytes], Prepared] = OrderedDict()
        self._of: Catalogue | None = None

    def documents(self) -> dict[str, Make]:
        """Return the look-ups by path."""
        return {
            "/api/distros": _distros,
            "/api/versions": self._versions,
            "/api/models": _models,
            "/api/packages_image": _packages_image,
            "/api/distributions": _distributions,
            "/api/v1/supported": _supported,
        }

    async def answer(self, make: Make, ask: Ask) -> Prepared:
        """Answer one look-up."""
        catalogue = self._parts.catalogue.now()
        if self._of is not catalogue:
            self._made, self._of = OrderedDict(), catalogue
        query = ask.scope["query_string"]
        key = (ask.scope["path"], query)
        ready = self._made.get(key)
        if ready is None:
            ready = await anyio.to_thread.run_sync(_make, make, catalogue, query)
            if ready.status == 200:
                self._made[key] = ready
                if len(self._made) > _KEPT:
                    self._made.popitem(last=False)
        return ready

    def image(self, image: SeedImage) -> dict[str, object]:
        """Return what is told of an image."""
        build, catalogue = image.build, self._parts.catalogue.now()
        recipe, result = build.recipe, build.result
        distribution = catalogue.distributions.get(image.distro)
        version = catalogue.version(image.distro, image.version)
        system = catalogue.system(image.distro, version.name if version else image.version)
        profiles = None if system is None else catalogue.profiles(system, recipe.target)
        profile = None if profiles is None else profiles.profiles.get(recipe.profile)
        return {
            "image_id": build.build_id,
            "image_hash": image.image_hash,
            "distro": image.distro,
            "distro_alias": distribution.alias if distribution else image.distro,
            "version": image.version,
            "version_alias": version.alias if version else "",
            "target": recipe.target,
            "profile": recipe.profile,
            "model": profile.title if profile else recipe.profile,
            "manifest_hash": image.manifest_hash,
            "defaults_hash": image.defaults_hash or None,
            "worker": build.worker,
            "build_date": datetime.fromtimestamp(result.built_at if result else 0, tz=UTC).isoformat(),
            "sysupgrade": image.sysupgrade or "",
            "image_status": "untested",
            "vanilla": not recipe.packages,
            "build_seconds": round(result.build_seconds) if result else 0,
            "snapshots": version.is_snapshot if version else False,
            "cache_hits": build.requests - 1,
            "files": image.directory,
        }

    def latest_images(self) -> list[dict[str, object]]:
        """Return the newest images without first-boot defaults: those are for who asked for them."""
        catalogue = self._parts.catalogue.now()
        found: list[dict[str, object]] = []
        for build in self._parts.queue.recent(limit=_LATEST * 4, states=(BuildState.FINISHED,)):
            if not build.recipe.defaults and build.recipe.builder == "openwrt":
                distro, version = sources_of(build, catalogue)[0]
                found.append(self.image(SeedImage(build=build, distro=distro, version=version)))
        return found[:_LATEST]

    def latest_failures(self) -> list[dict[str, object]]:
        """Return the newest failures of requests without first-boot defaults."""
        failed: list[dict[str, object]] = [
            {
                "request_date": datetime.fromtimestamp(build.enqueued_at, tz=UTC).isoformat(),
                "version": build.recipe.version,
                "target": build.recipe.target,
                "profile": build.recipe.profile,
                "request_status": failure_text(build),
            }
            for build in self._parts.queue.recent(limit=_LATEST * 4, states=(BuildState.FAILED,))
            if not build.recipe.defaults
        ]
        return failed[:_LATEST]

    def package_count(self) -> int:
        """Return the number of known package names of the newest release."""
        catalogue = self._parts.catalogue.now()
        for system in catalogue.systems:
            if not system.is_snapshot:
                names: set[str] = set()
                for target, arch in catalogue.targets(system).items():
                    for index in (catalogue.target_index(system, target), catalogue.arch_index(system, arch)):
                        names.update(index.versions if index else ())
                return len(names)
        return 0

    def _versions(self, catalogue: Catalogue, query: Query) -> object:
        if self._parts.settings.versions_shape == "branches":
            found = branches(catalogue)
            return {"branches": [{**one, "latest": one["versions"][0]} for one in found]}  # type: ignore[index]
        return [
            {
                "distro": distribution.name,
                "distro_alias": distribution.alias,
                "version": version.name,
                "version_alias": version.alias,
                "version_description": version.description,
                "snapshots": version.is_snapshot,
            }
            for distribution in catalogue.distributions.values()
            if query.get("distro", distribution.name).lower() == distribution.name
            for version in distribution.versions
        ]


def _make(make: Make, catalogue: Catalogue, query: bytes) -> Prepared:
    try:
        read = parse_qs(query.decode("latin-1"), max_num_fields=20, errors="replace", keep_blank_values=True)
        return json_answer(200, make(catalogue, {key: values[0][:_MAX_QUERY] for key, values in read.items()}))
    except (MissingQueryError, ValueError):
        return Prepared(400, b"[]")


def _distros(catalogue: Catalogue, _query: Query) -> object:
    return [
        {
            "distro": one.name,
            "distro_alias": one.alias,
            "distro_description": one.description,
            "latest": one.latest,
        }
        for one in catalogue.distributions.values()
    ]


def _distributions(catalogue: Catalogue, _query: Query) -> object:
    return {
        one.name: {
            "distro_alias": one.alias,
            "distro_description": one.description,
            "latest": one.latest,
            "versions": {
                version.name: {
                    "version_alias": version.alias,
                    "version_description": version.description or version.name,
                    "snapshots": version.is_snapshot,
                }
                for version in one.versions
            },
        }
        for one in catalogue.distributions.values()
    }


def _models(catalogue: Catalogue, query: Query) -> object:
    system = _system(catalogue, query)
    search = _needed(query, "model_search").lower()
    return [row for row in _rows(catalogue, system) if search in str(row["model"]).lower()]


def _packages_image(catalogue: Catalogue, query: Query) -> object:
    system = _system(catalogue, query)
    return list(default_packages(catalogue, system, _needed(query, "target"), _needed(query, "profile")))


def _supported(catalogue: Catalogue, _query: Query) -> object:
    return [
        {"distro": system.distribution, "version": system.version, "target": target, "supported": True}
        for system in catalogue.systems
        for target in catalogue.offered_targets(system)
    ]


def _rows(catalogue: Catalogue, system: System) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for target in catalogue.offered_targets(system):
        profiles = catalogue.profiles(system, target)
        seen = catalogue.generation.files.get(system.file(f"targets/{target}/profiles.json"))
        if profiles is None or seen is None:
            continue
        synced = datetime.fromtimestamp(seen.checked_at, tz=UTC).isoformat()
        found += [
            {
                "distro": system.distribution,
                "version": system.version,
                "target": target,
                "profile": name,
                "model": profile.title or name,
                "supported": True,
                "revision": profiles.version_code,
                "last_sync": synced,
            }
            for name, profile in profiles.profiles.items()
        ]
    return found


def _system(catalogue: Catalogue, query: Query) -> System:
    distribution = catalogue.distributions.get(_needed(query, "distro").lower())
    version = None if distribution is None else distribution.version(_needed(query, "version").lower())
    found = None if distribution is None or version is None else catalogue.system(distribution.name, version.name)
    if found is None:
        raise MissingQueryError
    return found


def _needed(query: Query, key: str) -> str:
    if key not in query:
        raise MissingQueryError
    return query[key]
