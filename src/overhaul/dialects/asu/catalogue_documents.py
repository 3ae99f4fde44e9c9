"""The catalogue as JSON documents of today's interface, made once for each state of it.

```
latest.json  branches.json  overview.json
<path>/targets/<target>/<profile>.json     one device; `{}` when there is none
<path>/targets/<target>/index.json         the target's own packages
<path>/packages/<arch>-index.json          packages of all feeds of an architecture
```
"""

import hashlib
import threading
from collections import OrderedDict

import msgspec

import overhaul
from overhaul.dialects.asu.catalogue import Catalogue, System
from overhaul.dialects.asu.names import is_target, is_token, underscored
from overhaul.dialects.asu.prepared import Prepared
from overhaul.dialects.asu.settings import package_changes
from overhaul.dialects.asu.today_answers import build_time

#: Made documents kept in memory.
_KEPT_BYTES = 192 * 1024 * 1024
_LIFETIME = "public, max-age=60"


class CatalogueDocuments:
    """The documents of whatever state counts; a new state empties it."""

    def __init__(self) -> None:
        self._made: OrderedDict[str, Prepared] = OrderedDict()
        self._bytes = 0
        self._of: Catalogue | None = None
        self._lock = threading.Lock()

    def ready(self, catalogue: Catalogue, path: str) -> Prepared | None:
        """Return a document that was made before; costs nothing."""
        return self._made.get(path) if self._of is catalogue else None

    def make(self, catalogue: Catalogue, path: str) -> Prepared | None:
        """Return a document, or None when there is none of that name; may read files."""
        with self._lock:
            return self._make(catalogue, path)

    def _make(self, catalogue: Catalogue, path: str) -> Prepared | None:
        if self._of is not catalogue:
            self._made, self._bytes, self._of = OrderedDict(), 0, catalogue
        value = _document(catalogue, path)
        if value is None:
            return None
        body = msgspec.json.encode(value)
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        made = Prepared(200, body, etag=etag, cache_control=_LIFETIME)
        self._made[path] = made
        self._bytes += len(body)
        while self._bytes > _KEPT_BYTES and self._made:
            self._bytes -= len(self._made.popitem(last=False)[1].body)
        return made


def overview(catalogue: Catalogue) -> dict[str, object]:
    """Return everything a client needs to choose a version."""
    settings = catalogue.settings
    return {
        "latest": catalogue.latest,
        "branches": {str(branch["name"]): branch for branch in branches(catalogue)},
        "upstream_url": settings.upstream_url,
        "server": {
            "version": overhaul.__version__,
            "contact": settings.contact,
            "allow_defaults": settings.allow_defaults,
            "repository_allow_list": list(settings.repository_allow_list),
            "max_custom_rootfs_size_mb": settings.max_custom_rootfs_size_mb,
            "max_defaults_length": settings.max_defaults_length,
        },
    }


def branches(catalogue: Catalogue) -> list[dict[str, object]]:
    """Return the enabled branches; one without versions or targets would crash clients and is not among them."""
    found = []
    for name, systems in catalogue.branch_systems().items():
        branch = catalogue.settings.branches[name]
        # The targets of the newest version; where it has none yet, those of the next.
        targets = next((dict(catalogue.offered_targets(one)) for one in systems if catalogue.offered_targets(one)), {})
        if not targets:
            continue
        document: dict[str, object] = {
            "name": name,
            "path": branch.path,
            "enabled": branch.enabled,
            "snapshot": branch.snapshot,
            "path_packages": "DEPRECATED",  # a client leaves branches out that lack it
            "package_changes": package_changes(branch),
            "versions": [system.version for system in systems],
            "targets": targets,
        }
        if branch.branch_off_rev is not None:
            document["branch_off_rev"] = branch.branch_off_rev
        found.append(document)
    return found


def _document(catalogue: Catalogue, path: str) -> object | None:
    match path:
        case "latest.json":
            return {"latest": catalogue.latest}
        case "branches.json":
            return branches(catalogue)
        case "overview.json":
            return overview(catalogue)
    for marker in ("/targets/", "/packages/"):
        before, found, behind = path.partition(marker)
        system = catalogue.system_at(before) if found else None
        if system is not None and behind.endswith(".json"):
            name = behind.removesuffix(".json")
            return (
                _target_document(catalogue, system, name)
                if marker == "/targets/"
                else _arch_document(catalogue, system, name)
            )
    return None


def _target_document(catalogue: Catalogue, system: System, name: str) -> object | None:
    target, _slash, profile = name.rpartition("/")
    if not is_target(target) or target not in catalogue.targets(system) or not is_token(profile):
        return None
    if profile == "index":
        index = catalogue.target_index(system, target)
        if index is None:
            return None
        architecture = index.architecture or catalogue.targets(system)[target]
        return {"architecture": architecture, "packages": index.versions}
    whole = catalogue.profiles_bytes(system, target)
    profiles = catalogue.profiles(system, target)
    if whole is None or profiles is None:
        return None
    if profile not in profiles.profiles:
        profile = catalogue.aliases(system, target).get(underscored(profile), "")
    top = msgspec.json.decode(whole, type=dict[str, msgspec.Raw])
    own = msgspec.json.decode(top.pop("profiles"), type=dict[str, msgspec.Raw]).get(profile)
    if own is None:
        return {}
    return {
        **top,
        **msgspec.json.decode(own, type=dict[str, msgspec.Raw]),
        "id": profile,
        "build_at": build_time(profiles.source_date_epoch),
    }


def _arch_document(catalogue: Catalogue, system: System, name: str) -> object | None:
    arch = name.removesuffix("-index")
    if arch == name or not is_token(arch):
        return None
    index = catalogue.arch_index(system, arch)
    return None if index is None else index.versions
