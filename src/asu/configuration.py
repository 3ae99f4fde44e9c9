"""The old `config.yml`: what its keys mean here.

| key | meaning now |
|---|---|
| `updater_dir` | the catalogue lies below it |
| `download_folder` | images, ImageBuilders and the embedded database lie below it |
| `distro_folder`, `active_distros` | distribution files, and which of them count |
| `max_defaults_size` | bytes of a first-boot script; scripts are taken, as they always were |
| `worker`, `updater_threads` | accepted; every worker is a process now, and the updater needs no number |
| `trust_forwarded_for` | new: a web server in front says in `X-Forwarded-For` who asks |
| `database`, `upstream_url`, `builds` | new: database address, upstream, and a `builds.toml` with everything else |
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from overhaul.builds.opening import Works
from overhaul.builds.settings import BuildSettings, OpenWrtTable, QueueTable
from overhaul.builds.settings import load_settings as load_build_settings
from overhaul.dialects.asu.distributions import DistributionError, read_yaml
from overhaul.dialects.asu.settings import AsuSettings

_SYSTEM = Path("/etc/asu/config.yml")
_LOCAL = Path("config.yml")


class _File(msgspec.Struct, frozen=True, kw_only=True):
    updater_dir: str = "updater"
    updater_threads: int = 4
    worker: tuple[str, ...] = ()
    active_distros: tuple[str, ...] = ("openwrt",)
    distro_folder: str = ""
    download_folder: str = "download"
    max_defaults_size: int = 10240
    database: str = ""
    upstream_url: str = "https://downloads.openwrt.org"
    allow_http: bool = False
    seed_legacy_status: bool = False
    trust_forwarded_for: bool = False
    builds: str = ""


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What the file says, as the rooms take it."""

    path: Path
    asu: AsuSettings
    works: Works
    catalogue: Path


def configuration_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the file that counts: `ASU_CONFIG`, else the system's, else the one here."""
    if "ASU_CONFIG" in environment:
        return Path(environment["ASU_CONFIG"])
    return _SYSTEM if _SYSTEM.exists() else _LOCAL


def load_configuration(path: Path) -> Configuration:
    """Return the configuration in `path`; relative paths begin at its directory.

    Raises:
        DistributionError: It cannot be used.
    """
    try:
        read = msgspec.convert(read_yaml(path), _File)
    except msgspec.ValidationError as error:
        raise DistributionError(path=path, reason=str(error)) from error
    base = path.absolute().parent
    builds = (
        load_build_settings(base / read.builds)
        if read.builds
        else BuildSettings(
            directory=read.download_folder,
            queue=QueueTable(database=read.database),
            openwrt=OpenWrtTable(enabled=True, upstream_url=read.upstream_url, allow_http=read.allow_http),
        )
    )
    return Configuration(
        path=path,
        asu=AsuSettings(
            enabled=True,
            upstream_url=read.upstream_url.rstrip("/"),
            allow_http=read.allow_http,
            distributions=str(base / read.distro_folder) if read.distro_folder else "",
            active_distributions=read.active_distros,
            allow_defaults=True,
            max_defaults_size=read.max_defaults_size,
            seed_legacy_status=read.seed_legacy_status,
            trust_forwarded_for=read.trust_forwarded_for,
        ),
        works=Works(settings=builds, base=base),
        catalogue=base / read.updater_dir / "catalogue",
    )
