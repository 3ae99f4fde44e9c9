"""The swupd table of a product in `overhaul.toml`: plain values, read before anything is built."""

from typing import Annotated, Literal

import msgspec

from overhaul.dialects.swupd.eras import DEFAULT_FORMAT, OLDEST_FORMAT

_Count = Annotated[int, msgspec.Meta(ge=0, le=32)]
_Level = Annotated[int, msgspec.Meta(ge=0, le=9)]


class SwupdSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename=None):
    """How releases of a product become swupd versions."""

    format: Annotated[int, msgspec.Meta(ge=OLDEST_FORMAT, lt=1 << 31)] = DEFAULT_FORMAT
    #: PEM files; relative paths begin at the directory of `overhaul.toml`. Both or none.
    key: str = ""
    certificate: str = ""
    #: Sign nothing, for a fleet whose clients do not check.
    unsigned: bool = False
    #: Definitions of bundles (`*.toml`, or the old `groups.ini`); empty: everything is os-core.
    bundles: str = ""
    #: The channel whose releases devices see at the top of the tree; each channel also has a tree of its own.
    channel: str = "stable"
    packs_from: _Count = 4
    zero_packs: bool = True
    compression: Literal["smallest", "xz", "gzip", "zstd", "none"] = "smallest"
    fullfile_level: _Level = 3
    pack_level: _Level = 2
    xattrs: bool = False
    stateless: bool = False
    debug: bool = True
    ghosts: bool = True
    renames: bool = False
    #: Addresses that clients find in os-core, unless the tree names others.
    content_url: str = ""
    version_url: str = ""
