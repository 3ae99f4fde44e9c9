"""The device's configuration, `device.toml`: read once, checked wholly, then a frozen record.

An unknown key is refused by name, since a misspelt one would silently be a default. Nothing here reads the
environment; relative paths are taken from the configuration file's directory.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from overhaul.errors import InputError
from overhaul.install.configuration.settings import ConfigurationSettings
from overhaul.install.countdown import MAX_ATTEMPTS, SlotName
from overhaul.install.sharing import ShareSettings, check_sharing
from overhaul.install.window import Window, parse_window
from overhaul.release.names import Name, Size, Text, Token
from overhaul.transfer.wire import is_address

DEFAULT_PATH = Path("/etc/overhaul/device.toml")

#: A week: the system cannot wait much longer in one go.
_MAX_SECONDS = 7 * 24 * 3600
Seconds = Annotated[float, msgspec.Meta(gt=0, le=_MAX_SECONDS)]
SecondsOrNone = Annotated[float, msgspec.Meta(ge=0, le=_MAX_SECONDS)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class RepositorySettings(_Section, frozen=True, kw_only=True):
    """Where releases come from; the first URL is preferred, the others are its mirrors."""

    urls: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
    allow_http: bool = False
    proxy: Text = ""
    #: 0 means as fast as it comes.
    max_bytes_per_s: Size = 0
    ca_file: Text = ""
    #: Whether updates wait for a connection that is not metered; urgent ones never do.
    metered: Literal["allow", "defer"] = "allow"
    #: What an update that need not wait may fetch over a metered connection.
    metered_max_bytes: Size = 0
    #: Whether releases built on demand, signed by the builds key, are taken.
    accept_builds: bool = False


class BootSettings(_Section, frozen=True, kw_only=True):
    """How the boot loader is told."""

    backend: Literal["grub", "systemd-boot", "uboot", "file"] = "grub"
    #: The grubenv, the fw_env.config or the JSON file; for systemd-boot the directory where its partition is mounted.
    file: Text = "/boot/grub/grubenv"
    attempts: Annotated[int, msgspec.Meta(ge=1, le=MAX_ATTEMPTS)] = 3
    #: For systemd-boot, which reads no slot: what is copied out of one, as seen inside it, and the command line.
    kernel: Text = "/vmlinuz"
    initrd: Text = "/initrd.img"
    options: Text = "root=PARTLABEL=root-{slot} ro panic=10"


class HealthSettings(_Section, frozen=True, kw_only=True):
    """What must be true before an update is confirmed."""

    #: A string is run by /bin/sh, a list is run as it is.
    commands: tuple[Text | Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)], ...] = ()
    units: tuple[Text, ...] = ()
    budget_s: Seconds = 300.0
    #: How long to wait before a failed check is tried again, within the budget; 0: a check is run once.
    retry_s: SecondsOrNone = 0.0
    #: Put before each command, to check inside a container; {slot} is the running slot's name, {path} its path.
    enter: tuple[Text, ...] = ()


class RebootSettings(_Section, frozen=True, kw_only=True):
    """Whether the agent restarts the device itself."""

    policy: Literal["never", "logind"] = "never"
    #: Local time, `HH:MM-HH:MM`; empty: any time.
    window: str = ""
    #: How long to wait for programs that inhibit the shutdown.
    inhibitor_wait_s: SecondsOrNone = 300.0


class LimitSettings(_Section, frozen=True, kw_only=True):
    """What an update may use."""

    #: 0: what the device has free when the update begins.
    memory_bytes: Size = 0


class ReportSettings(_Section, frozen=True, kw_only=True):
    """Reports to the server; nothing is sent while `url` is empty. They carry no identifier of the device."""

    url: Text = ""


class DeviceSettings(_Section, frozen=True, kw_only=True):
    """The whole file."""

    product: Name
    variant: Name
    arch: Name
    #: Left out: `OVERHAUL_CHANNEL` of os-release.
    channel: Name | None = None
    #: What runs now, for a device whose os-release does not say it.
    version: Token | None = None
    build_id: Token | None = None
    #: The first root metadata: the trust anchor.
    root_metadata: Text = "root.json"
    #: Outside the slots.
    state_directory: Text = "/var/lib/overhaul"
    #: Below it os-release, DMI and device tree are looked up.
    facts_root: Text = "/"
    repository: RepositorySettings
    slots: Annotated[dict[SlotName, Text], msgspec.Meta(min_length=2)]
    boot: BootSettings = BootSettings()
    health: HealthSettings = HealthSettings()
    reboot: RebootSettings = RebootSettings()
    limits: LimitSettings = LimitSettings()
    reports: ReportSettings = ReportSettings()
    configuration: ConfigurationSettings = ConfigurationSettings()
    share: ShareSettings = ShareSettings()

    @property
    def window(self) -> Window | None:
        """The reboot window, or None for any time."""
        return parse_window(self.reboot.window) if self.reboot.window else None

    @property
    def slot_paths(self) -> dict[str, Path]:
        """Slot name to path."""
        return {name: Path(path) for name, path in self.slots.items()}


class SettingsError(InputError):
    """The configuration cannot be used."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The configuration {path} cannot be used: {reason}. Correct it and try again.")


class SettingsMissingError(InputError):
    """There is no configuration."""

    def __init__(self, *, path: Path) -> None:
        self.path = path
        super().__init__(f"There is no configuration at {path}; write one with `overhaul device init --config {path}`.")


def load_settings(path: Path) -> DeviceSettings:
    """Return the configuration in the file `path`, with relative paths made absolute."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise SettingsMissingError(path=path) from error
    except OSError as error:
        raise SettingsError(path=path, reason=error.strerror or str(error)) from error
    return parse_settings(data, path)


def parse_settings(data: bytes, path: Path) -> DeviceSettings:
    """Return the configuration in `data`; `path` names it in errors and is where relative paths begin."""
    try:
        document: Mapping[str, Any] = tomllib.loads(data.decode())
        settings = msgspec.convert(document, DeviceSettings)
    except (ValueError, RecursionError) as error:
        raise SettingsError(path=path, reason=str(error)) from error
    if settings.reboot.window:
        try:
            parse_window(settings.reboot.window)
        except InputError as error:
            raise SettingsError(path=path, reason=str(error)) from error
    try:
        check_sharing(settings.share, accepts_builds=settings.repository.accept_builds)
    except ValueError as error:
        raise SettingsError(path=path, reason=str(error)) from error
    for url in settings.repository.urls:
        if not is_address(url):
            raise SettingsError(path=path, reason=f"the repository address {url!r} is neither https nor http")
    if settings.reports.url and not is_address(settings.reports.url):
        raise SettingsError(
            path=path, reason=f"the address for reports {settings.reports.url!r} is neither https nor http"
        )
    anchored = _anchored(settings, path.absolute().parent)
    _refuse_one_place_twice(anchored.slots, path)
    return anchored


def _refuse_one_place_twice(slots: Mapping[str, str], path: Path) -> None:
    """Refuse slots of which an update of one would overwrite the other."""
    named: dict[str, str] = {}
    for name, place in slots.items():
        earlier = named.setdefault(os.path.realpath(place), name)
        if earlier != name:
            raise SettingsError(path=path, reason=f"slots {earlier} and {name} are both {place}")


def _anchored(settings: DeviceSettings, directory: Path) -> DeviceSettings:
    def absolute(text: str) -> str:
        return str(directory / text)

    repository = settings.repository
    return msgspec.structs.replace(
        settings,
        root_metadata=absolute(settings.root_metadata),
        state_directory=absolute(settings.state_directory),
        facts_root=absolute(settings.facts_root),
        slots={name: absolute(text) for name, text in settings.slots.items()},
        boot=msgspec.structs.replace(settings.boot, file=absolute(settings.boot.file)),
        configuration=msgspec.structs.replace(
            settings.configuration,
            etc=absolute(settings.configuration.etc),
            layers=absolute(settings.configuration.layers) if settings.configuration.layers else "",
        ),
        repository=msgspec.structs.replace(
            repository,
            ca_file=absolute(repository.ca_file) if repository.ca_file else "",
            urls=tuple(url.rstrip("/") for url in repository.urls),
        ),
    )
