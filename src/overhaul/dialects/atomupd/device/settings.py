"""The client's configuration, `client.conf`: the options these clients always had, and ours in sections of their own.

    [Server]   MetaUrl, QueryUrl, ImagesUrl; Variants, Branches, BranchesDev; Username, Password
    [Host]     Manifest, RuntimeDir, WantUnstable
    [Client]   ours: AllowHttp, ExitCodes, Hardware, Attended, Rollout, Root, TrustDirectory
    [Install]  ours: Method, RaucConfiguration, RaucFallbackConfiguration, DeviceConfiguration, Keyring, Compatible

Which generation of clients this one stands in for follows from the addresses: `MetaUrl` means the newest, `QueryUrl`
alone the early one. Unknown options of the old sections are ignored as they always were; a misspelt one of ours is
refused.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from overhaul.dialects.atomupd.configuration import IniFile
from overhaul.transfer.wire import is_address

DEFAULT_CONFIGURATION = Path("/etc/steamos-atomupd/client.conf")
DEFAULT_MANIFEST = Path("/etc/steamos-atomupd/manifest.json")
EARLY_MANIFEST = Path("/usr/manifest.json")
DEFAULT_TRUST_DIRECTORY = Path("/var/lib/steamos-atomupd/trust")
DEFAULT_RUNTIME_DIRECTORY = Path("/run/steamos-atomupd")
#: Facts of the hardware that may be told, in the names of `install.facts`.
HARDWARE_FACTS = ("vendor", "model", "board", "compatible", "memory_mb")

#: Where a repository of ours keeps the static tree of a product.
_OWN_META_URL = re.compile(r"(?P<repository>.+)/atomupd/(?P<product>[^/]+)/meta")

_Choice = TypeVar("_Choice", bound=StrEnum)


class Era(StrEnum):
    """Which generation of clients is stood in for."""

    EARLY = "early"
    NEWEST = "newest"


class Method(StrEnum):
    """Who installs."""

    RAUC = "rauc"
    RAUC_COMMAND = "rauc-command"
    SLOTS = "slots"


@dataclass(frozen=True, kw_only=True)
class TrustSettings:
    """Whose signatures answers need."""

    #: The first root metadata that is trusted.
    root: Path
    #: Where what is trusted since then is kept.
    directory: Path
    #: Without a slash at its end.
    repository_url: str
    product: str


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """The whole file, checked."""

    path: Path
    era: Era
    #: Whether an update that was done is told by exit code 1, and every error by 255.
    early_exit_codes: bool
    #: Without a slash at their ends; empty where not configured.
    meta_url: str
    query_url: str
    images_url: str
    variants: tuple[str, ...]
    branches: tuple[str, ...]
    dev_branches: tuple[str, ...]
    username: str
    password: str
    manifest: Path
    runtime_directory: Path
    want_unstable: bool
    allow_http: bool
    #: The facts of the hardware that the queries tell; none unless the owner names them.
    hardware: tuple[str, ...]
    #: Whether a person waits for the update; None: the queries do not say it.
    attended: bool | None
    #: Where the device's place in rollouts is kept; None: the queries do not say it.
    rollout_file: Path | None
    #: None: answers are taken on trust, as they always were.
    trust: TrustSettings | None
    method: Method
    rauc_configuration: Path
    rauc_fallback_configuration: Path
    device_configuration: Path
    keyring: Path
    #: What a bundle must call itself compatible with; empty takes any that is signed. RAUC has a setting of its own.
    compatible: str


def load_settings(path: Path) -> ClientSettings:
    """Return the configuration at `path`.

    Raises:
        UnusableConfigurationError: It cannot be read, lacks an address, or has one that is none.
    """
    file = IniFile.read(path)
    file.check_known("Client", ("AllowHttp", "ExitCodes", "Hardware", "Attended", "Rollout", "Root", "TrustDirectory"))
    file.check_known(
        "Install",
        ("Method", "RaucConfiguration", "RaucFallbackConfiguration", "DeviceConfiguration", "Keyring", "Compatible"),
    )
    allow_http = file.truth("Client", "AllowHttp", default=False)
    meta_url, query_url, images_url = (
        _address(file, option, allow_http=allow_http) for option in ("MetaUrl", "QueryUrl", "ImagesUrl")
    )
    if not meta_url and not query_url:
        raise file.refusal("[Server] MetaUrl is missing")
    file.needed("Server", "ImagesUrl")
    era = Era.NEWEST if meta_url else Era.EARLY
    default_manifest = DEFAULT_MANIFEST if era is Era.NEWEST else EARLY_MANIFEST
    return ClientSettings(
        path=path,
        era=era,
        early_exit_codes=_choice(file, "Client", "ExitCodes", tuple(Era), default=era) is Era.EARLY,
        meta_url=meta_url,
        query_url=query_url,
        images_url=images_url,
        variants=file.parts("Server", "Variants"),
        branches=file.parts("Server", "Branches"),
        dev_branches=file.parts("Server", "BranchesDev"),
        username=file.text("Server", "Username"),
        password=file.text("Server", "Password"),
        manifest=Path(file.text("Host", "Manifest") or default_manifest),
        runtime_directory=Path(file.text("Host", "RuntimeDir") or DEFAULT_RUNTIME_DIRECTORY),
        want_unstable=file.truth("Host", "WantUnstable", default=False),
        allow_http=allow_http,
        hardware=_hardware(file),
        attended=file.truth("Client", "Attended", default=False) if file.has("Client", "Attended") else None,
        rollout_file=Path(rollout) if (rollout := file.text("Client", "Rollout")) else None,
        trust=_trust(file, meta_url=meta_url, query_url=query_url),
        method=_choice(file, "Install", "Method", tuple(Method), default=Method.RAUC),
        rauc_configuration=_path(file, "RaucConfiguration", "/etc/rauc/system.conf"),
        rauc_fallback_configuration=_path(file, "RaucFallbackConfiguration", "/etc/rauc/fallback-system.conf"),
        device_configuration=_path(file, "DeviceConfiguration", "/etc/overhaul/device.toml"),
        keyring=_path(file, "Keyring", "/etc/rauc/keyring.pem"),
        compatible=file.text("Install", "Compatible"),
    )


def _address(file: IniFile, option: str, *, allow_http: bool) -> str:
    url = file.text("Server", option)
    if url and not is_address(url):
        raise file.refusal(f"[Server] {option} is {url!r}, which is neither an https nor an http address")
    if url.lower().startswith("http:") and not allow_http:
        raise file.refusal(f"[Server] {option} is {url!r}; use https, or set AllowHttp = yes under [Client]")
    return url.rstrip("/")


def _trust(file: IniFile, *, meta_url: str, query_url: str) -> TrustSettings | None:
    root = file.text("Client", "Root")
    if not root:
        return None
    if query_url:
        raise file.refusal("[Server] QueryUrl gives answers that nobody signed; take it out, or [Client] Root")
    own = _OWN_META_URL.fullmatch(meta_url)
    if own is None:
        raise file.refusal(
            f"[Server] MetaUrl is {meta_url!r}; with [Client] Root it must be REPOSITORY/atomupd/PRODUCT/meta"
        )
    return TrustSettings(
        root=Path(root),
        directory=Path(file.text("Client", "TrustDirectory") or DEFAULT_TRUST_DIRECTORY),
        repository_url=own["repository"],
        product=own["product"],
    )


def _path(file: IniFile, option: str, default: str) -> Path:
    return Path(file.text("Install", option) or default)


def _hardware(file: IniFile) -> tuple[str, ...]:
    facts = file.parts("Client", "Hardware")
    strange = [fact for fact in facts if fact not in HARDWARE_FACTS]
    if strange:
        raise file.refusal(f"[Client] Hardware names {strange[0]!r}; it may name {', '.join(HARDWARE_FACTS)}")
    return facts


def _choice(file: IniFile, section: str, option: str, choices: tuple[_Choice, ...], *, default: _Choice) -> _Choice:
    value = file.text(section, option) or default
    for choice in choices:
        if value == choice:
            return choice
    raise file.refusal(f"[{section}] {option} is {value!r}; it may be {', '.join(choices)}")
