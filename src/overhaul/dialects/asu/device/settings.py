"""What the owner of a device says about images on demand: `/etc/overhaul/sysupgrade.toml`, or OpenWrt's own files."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from overhaul.errors import InputError

DEFAULT_PATH = Path("/etc/overhaul/sysupgrade.toml")

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]


class SysupgradeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    #: Address of the server, without a slash at the end.
    server: str
    #: `today` is spoken by servers since 2021, `seed` by those of 2018 and 2019.
    interface: Literal["today", "seed"] = "today"
    #: Files with usign public keys. When there are any, an image is only installed when one of them signed it
    #: together with what was asked for; without one it is as trustworthy as https makes the server.
    usign_keys: tuple[str, ...] = ()
    allow_http: bool = False
    ca_file: str = ""
    poll_every_s: _Seconds = 2.0
    #: A build that is not done by then is given up; it can be asked for again and is then nearer.
    wait_at_most_s: _Seconds = 3600.0
    #: Where the image is kept until it is installed.
    directory: str = "/tmp/overhaul-sysupgrade"  # noqa: S108 - on OpenWrt only memory has room for an image
    #: The agent's configuration on a device with two slots; empty: the image is handed to `sysupgrade`.
    device_config: str = ""
    #: Below it the system's own files are read.
    root: str = "/"


class SysupgradeSettingsError(InputError):
    """The configuration cannot be used."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"The configuration {path} cannot be used: {reason}. Correct it, or name a --server.")


def load_sysupgrade_settings(path: Path, *, server: str = "", **changes: object) -> SysupgradeSettings:
    """Return the settings in `path`, with `server` and other `changes` in place of what stands there.

    Without a file a `server` is enough.

    Raises:
        SysupgradeSettingsError: They cannot be used.
    """
    document: dict[str, object] = {}
    if path.exists() or not server:
        try:
            document = tomllib.loads(path.read_bytes().decode())
        except OSError as error:
            raise SysupgradeSettingsError(path=path, reason=error.strerror or str(error)) from error
        except (ValueError, RecursionError) as error:
            raise SysupgradeSettingsError(path=path, reason=str(error)) from error
    given = {key: value for key, value in changes.items() if value}
    try:
        settings = msgspec.convert({**document, **({"server": server} if server else {}), **given}, SysupgradeSettings)
    except msgspec.ValidationError as error:
        raise SysupgradeSettingsError(path=path, reason=str(error)) from error
    if not settings.server.startswith(("https://", "http://")):
        raise SysupgradeSettingsError(path=path, reason=f"the server {settings.server!r} is no http address")
    return msgspec.structs.replace(settings, server=settings.server.rstrip("/"))
