"""The distributions a server builds for, and their versions: from upstream alone, or from the seed era's files.

```
<directory>/<distribution>/distro_config.yml     names, latest, versions, renamed boards, where its targets are listed
<directory>/<distribution>/<version>.yml         what is different for one version; its package transformations
```

A version may have a parent (`parent_distro`, `parent_version`): it is then built with the parent's image builder,
from its own package repositories, as LibreMesh is. A name in these files never becomes a path without being one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overhaul.dialects.asu.names import is_target, is_token
from overhaul.dialects.asu.packages import Replacement, parse_replacement
from overhaul.errors import OperatorError

#: Boards whose device tree name is not their profile's.
BOARD_RENAMES: Mapping[str, str] = {
    "nanostation-m": "ubnt-nano-m",
    "nanostation-m-xw": "ubnt-nano-m-xw",
    "loco-m": "ubnt-loco-m",
    "loco-m-xw": "ubnt-loco-m-xw",
    "tl-wdr3500": "tl-wdr3500-v1",
    "tl-wdr4300": "tl-wdr4300-v1",
    "tl-wr741": "tl-wr741-v1",
    "raspberrypi,3-model-b": "rpi-3",
    "armada-385-linksys-rango": "linksys-wrt3200acm",
}


class DistributionError(OperatorError):
    """A distribution's file that cannot be used."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be used: {reason}.")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a distribution."""

    name: str
    alias: str = ""
    description: str = ""
    is_snapshot: bool = False
    #: Whose image builder makes it: distribution and version.
    parent: tuple[str, str] | None = None
    #: (name, address) of the package repositories that replace the image builder's own.
    repositories: tuple[tuple[str, str], ...] = ()
    #: What becomes of packages for whoever crosses to this version.
    replacements: Mapping[str, Replacement] = field(default_factory=dict)
    #: Only these; empty: all.
    active_targets: frozenset[str] = frozenset()
    ignored_targets: frozenset[str] = frozenset()
    #: As the file says it; shown to clients.
    document: Mapping[str, Any] = field(default_factory=dict)

    def offers(self, target: str) -> bool:
        """Tell whether images of `target` are made."""
        return target not in self.ignored_targets and (not self.active_targets or target in self.active_targets)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One distribution."""

    name: str
    alias: str
    description: str = ""
    latest: str = ""
    #: In the order in which devices go through them.
    versions: tuple[Version, ...] = ()
    board_renames: Mapping[str, str] = field(default_factory=lambda: dict(BOARD_RENAMES))
    #: Where its releases are; empty: the server's upstream.
    upstream_url: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)

    def version(self, name: str) -> Version | None:
        """Return a version by its lower-case name."""
        return next((version for version in self.versions if version.name.lower() == name), None)

    def crossed(self, *, installed: str, destination: str) -> list[Mapping[str, Replacement]]:
        """Return the rules of every version above `installed` up to `destination`, both in lower case."""
        names = [version.name.lower() for version in self.versions]
        if installed not in names or destination not in names:
            return []
        passed = self.versions[names.index(installed) + 1 : names.index(destination) + 1]
        return [version.replacements for version in passed]


def load_distributions(directory: Path) -> dict[str, Distribution]:
    """Return the distributions whose files are below `directory`.

    Raises:
        DistributionError: A file cannot be used.
    """
    return {
        path.parent.name: _distribution(path)
        for path in sorted(directory.glob("*/distro_config.yml"))
        if is_token(path.parent.name)
    }


def _distribution(path: Path) -> Distribution:
    document = read_yaml(path)
    name = path.parent.name
    versions = []
    for version in _names(document, "versions", path):
        file = path.parent / f"{version}.yml"
        versions.append(_version(version, document, read_yaml(file) if file.exists() else {}, file))
    renames = document.get("board_rename") or {}
    if not isinstance(renames, dict):
        raise DistributionError(path=path, reason="board_rename is no table of boards and profiles")
    return Distribution(
        name=name,
        alias=_text(document, "distro_alias", path) or name,
        description=_text(document, "distro_description", path),
        latest=_text(document, "latest", path) or (versions[-1].name if versions else ""),
        versions=tuple(versions),
        board_renames={**BOARD_RENAMES, **{str(board): str(profile) for board, profile in renames.items()}},
        upstream_url=_text(document, "upstream_url", path).rstrip("/"),
        document=document,
    )


def _version(name: str, common: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> Version:
    both = {**common, **own}
    parent = _text(both, "parent_version", path)
    transformations = own.get("transformations") or {}
    repositories = own.get("repos") or {}
    for key, value in (("transformations", transformations), ("repos", repositories)):
        if not isinstance(value, dict):
            raise DistributionError(path=path, reason=f"{key} is no table")
    return Version(
        name=name,
        alias=_text(both, "version_alias", path),
        description=_text(both, "version_description", path),
        is_snapshot=bool(both.get("snapshots", False)),
        parent=(_text(both, "parent_distro", path) or "openwrt", parent) if parent else None,
        repositories=tuple((str(title), str(url)) for title, url in repositories.items()),
        replacements={str(package): parse_replacement(str(package), to) for package, to in transformations.items()},
        active_targets=frozenset(_names(both, "active_targets", path, allowed=is_target)),
        ignored_targets=frozenset(_names(both, "ignore_targets", path, allowed=is_target)),
        document=own,
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the table in a YAML file; nothing in it can make objects.

    Raises:
        DistributionError: It is none.
    """
    import yaml

    try:
        read = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise DistributionError(path=path, reason=error.strerror or str(error)) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DistributionError(path=path, reason=" ".join(str(error).split())) from error
    if not isinstance(read, dict):
        raise DistributionError(path=path, reason="it is no table of keys and values")
    return read


def _text(document: Mapping[str, Any], key: str, path: Path) -> str:
    value = document.get(key, "")
    if value is None or isinstance(value, (str, int, float)):
        return "" if value is None else str(value)
    raise DistributionError(path=path, reason=f"{key} is no text")


def _names(document: Mapping[str, Any], key: str, path: Path, *, allowed: Any = is_token) -> list[str]:
    value = document.get(key) or []
    if not isinstance(value, list):
        raise DistributionError(path=path, reason=f"{key} is no list")
    names = [str(name) for name in value]
    for name in names:
        if not allowed(name):
            raise DistributionError(path=path, reason=f"{key} holds {name!r}, which is no name")
    return names
