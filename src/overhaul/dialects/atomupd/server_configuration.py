"""The servers' INI file: `[Server]`, `[Images]` with its sub-sections, and `[Overhaul]` for what is new.

The options tell which rules a pool follows. With `Branches` the rules of branches and numbered checkpoints hold.
Without, the seed rules do: then `Unstable`, where it is written, says whether unstable images are offered, and where
it is not, each client says so itself.

Everything in `[Overhaul]` may be absent. `StrictCompatibility = yes` brings back, all together, what we would rather
do otherwise; `docs/reference/atomupd-server.md` lists it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from overhaul.dialects.atomupd.configuration import IniFile

if TYPE_CHECKING:
    from overhaul.dialects.atomupd.requirements import Requirement

_REMOTE_INFO = "Images.ProvideRemoteInfoConfig"
_RULE = "Overhaul.Rule."
_OWN_OPTIONS = (
    "StrictCompatibility",
    "Prefixes",
    "List",
    "RolloutByAddress",
    "LookEverySeconds",
    "EstimateSizes",
    "RaucConfig",
    "RemoveStale",
    "Certificate",
    "CertificateKey",
    "AllowHttp",
)


@dataclass(frozen=True, kw_only=True)
class RemoteInfo:
    """What `remote-info.conf` offers on one architecture."""

    variants: tuple[str, ...]
    branches: tuple[str, ...]
    dev_branches: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Support:
    """Which images of a pool count, and how they lead to one another."""

    products: tuple[str, ...]
    #: Under the seed rules in their order: a device moves to the next.
    releases: tuple[str, ...]
    variants: tuple[str, ...]
    archs: tuple[str, ...]
    #: Empty under the seed rules.
    branches: tuple[str, ...] = ()
    #: Seed rules: the pool is of snapshots, or of versions.
    snapshots: bool = False
    #: Keep images that are not stable; None leaves it to each client (seed rules only).
    unstable: bool | None = False
    #: What stands in for variants that have reached their end.
    replacements: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: More stable branches whose images may be offered to those who ask for a branch.
    considered: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    #: A branch without any usable image is an error.
    strict_pool: bool = True
    #: Behave in everything as the servers before.
    strict_compatibility: bool = False

    @property
    def has_branches(self) -> bool:
        """Whether the rules of branches hold, and not the seed rules."""
        return bool(self.branches)


@dataclass(frozen=True, kw_only=True)
class ServerConfiguration:
    """Everything in one server's file."""

    path: Path
    pool: Path
    support: Support
    host: str = "localhost"
    port: int = 5000
    remote_info: Mapping[str, RemoteInfo] = field(default_factory=lambda: MappingProxyType({}))
    #: Paths at which queries are answered.
    prefixes: tuple[str, ...] = ("/", "/updates")
    #: Answer `list` requests.
    lists: bool = False
    #: Judge a partial rollout by the client's network where it names no place itself.
    rollout_by_address: bool = False
    look_every_s: float = 0.5
    #: Estimate download sizes; None: where RAUC is set up.
    estimate_sizes: bool | None = None
    rauc_config: Path = Path("/etc/rauc/system.conf")
    #: Remove answers for images that are gone.
    remove_stale: bool = False
    #: PEM files: the server speaks https itself, instead of a proxy before it.
    certificate: Path | None = None
    certificate_key: Path | None = None
    #: Answer devices that ask over plain http.
    allow_http: bool = False
    requirements: "tuple[Requirement, ...]" = ()


def read_server_configuration(path: Path) -> ServerConfiguration:
    """Return what the file at `path` says; relative paths in it are taken from the working directory.

    Raises:
        UnusableConfigurationError: It cannot be used; the sentence names the option.
    """
    ini = IniFile.read(path)
    pool = Path(ini.needed("Images", "PoolDir"))
    if not pool.is_dir():
        raise ini.refusal(f"[Images] PoolDir is {str(pool)!r}, which is no directory")
    support = _support(ini)
    ini.check_known("Overhaul", _OWN_OPTIONS)
    prefixes = ini.words("Overhaul", "Prefixes") or ServerConfiguration.prefixes
    for prefix in prefixes:
        if not prefix.startswith("/"):
            raise ini.refusal(f"[Overhaul] Prefixes has {prefix!r}, which does not begin with a slash")
    return ServerConfiguration(
        path=path,
        pool=pool,
        support=support,
        host=ini.text("Server", "Host") or ServerConfiguration.host,
        port=ini.number("Server", "Port", default=ServerConfiguration.port, lowest=0, highest=65535),
        remote_info=_remote_info(ini, support),
        prefixes=tuple(dict.fromkeys(prefixes)),
        lists=ini.truth("Overhaul", "List", default=False),
        rollout_by_address=ini.truth("Overhaul", "RolloutByAddress", default=False),
        look_every_s=_seconds(ini),
        estimate_sizes=ini.truth("Overhaul", "EstimateSizes", default=True)
        if ini.has("Overhaul", "EstimateSizes")
        else None,
        rauc_config=Path(ini.text("Overhaul", "RaucConfig") or ServerConfiguration.rauc_config),
        remove_stale=ini.truth("Overhaul", "RemoveStale", default=False),
        certificate=_file(ini, "Certificate"),
        certificate_key=_file(ini, "CertificateKey"),
        allow_http=ini.truth("Overhaul", "AllowHttp", default=False),
        requirements=_requirements(ini),
    )


def _requirements(ini: IniFile) -> "tuple[Requirement, ...]":
    sections = [section for section in ini.sections if section.startswith(_RULE)]
    if not sections:
        return ()
    # Most files have none, and each run of the static server would pay for the machinery.
    from overhaul.dialects.atomupd.requirements import parse_requirement

    return tuple(parse_requirement(ini, section, section.removeprefix(_RULE)) for section in sections)


def _support(ini: IniFile) -> Support:
    lists: dict[str, tuple[str, ...]] = {}
    for option in ("Products", "Releases", "Variants", "Archs"):
        ini.needed("Images", option)
        lists[option] = ini.words("Images", option)
    has_branches = ini.has("Images", "Branches")
    if has_branches:
        ini.needed("Images", "Branches")
    elif list(lists["Releases"]) != sorted(lists["Releases"]):
        raise ini.refusal("[Images] Releases are not in the order of their names, which is the order of upgrades")
    snapshots = ini.truth("Images", "Snapshots", default=False)
    # Without branches, a file from the time before `Unstable` leaves the choice to the clients.
    client_decides = not has_branches and not ini.has("Images", "Unstable")
    unstable = snapshots or ini.truth("Images", "Unstable", default=False)
    return Support(
        products=lists["Products"],
        releases=lists["Releases"],
        variants=lists["Variants"],
        archs=lists["Archs"],
        branches=ini.words("Images", "Branches"),
        snapshots=snapshots,
        unstable=None if client_decides and not snapshots else unstable,
        replacements=_replacements(ini),
        considered={
            branch: tuple(others.split()) for branch, others in ini.options("Images.BranchesToConsider").items()
        },
        strict_pool=ini.truth("Images", "StrictPoolValidation", default=True),
        strict_compatibility=ini.truth("Overhaul", "StrictCompatibility", default=False),
    )


def _replacements(ini: IniFile) -> dict[str, str]:
    replacements: dict[str, str] = {}
    for pair in ini.words("Images", "VariantsEOL"):
        old, colon, new = pair.partition(":")
        if not colon or not old or not new or ":" in new:
            raise ini.refusal(f"[Images] VariantsEOL has {pair!r}, which is not OLD:REPLACEMENT")
        replacements[old] = new
    return replacements


def _remote_info(ini: IniFile, support: Support) -> dict[str, RemoteInfo]:
    found: dict[str, RemoteInfo] = {}
    for section in ini.sections:
        if section == _REMOTE_INFO:
            raise ini.refusal(f"[{section}] does not say for which architecture; write [{section}.ARCH]")
        if not section.startswith(_REMOTE_INFO + "."):
            continue
        arch = section.removeprefix(_REMOTE_INFO + ".")
        if arch not in support.archs:
            raise ini.refusal(f"[{section}] is for an architecture that is not in Archs")
        ini.needed(section, "Variants")
        ini.needed(section, "Branches")
        found[arch] = RemoteInfo(
            variants=ini.words(section, "Variants"),
            branches=ini.words(section, "Branches"),
            dev_branches=ini.words(section, "BranchesDev"),
        )
    return found


def _file(ini: IniFile, option: str) -> Path | None:
    text = ini.text("Overhaul", option)
    if text and not Path(text).is_file():
        raise ini.refusal(f"[Overhaul] {option} is {text!r}, which is no file")
    return Path(text) if text else None


def _seconds(ini: IniFile) -> float:
    text = ini.text("Overhaul", "LookEverySeconds") or str(ServerConfiguration.look_every_s)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 3600:
        raise ini.refusal(f"[Overhaul] LookEverySeconds is {text!r}, not a number from 0.05 to 3600")
    return seconds
