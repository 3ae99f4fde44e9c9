"""What `device.toml` says about the device's own configuration."""

from typing import Annotated, Literal

import msgspec

from overhaul.release.names import Text

_Pattern = Annotated[str, msgspec.Meta(pattern=r"^/etc/[^\0]+\Z")]


class ConfigurationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of /etc in an update."""

    #: `merged`: carried over and merged, in a layer over the new slot's /etc; `nothing`: the new slot has its own.
    carry: Literal["nothing", "merged"] = "nothing"
    #: The configuration in use.
    etc: Text = "/etc"
    #: Where the layers lie; empty: `etc` in the state directory.
    layers: Text = ""
    #: Patterns of paths of which the device's own always stays.
    keep: tuple[_Pattern, ...] = (
        "/etc/machine-id",
        "/etc/hostname",
        "/etc/ssh/ssh_host_*",
    )
    #: Patterns of paths of which the release's is always taken: what programs make of the system they find.
    follow: tuple[_Pattern, ...] = ("/etc/ld.so.cache", "/etc/udev/hwdb.bin")
