"""The atomupd table of a product in `overhaul.toml`: plain values, read before anything is built."""

from typing import Annotated, Literal

import msgspec

_Text = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f=]*\Z")]


class AtomupdSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How releases of a product become images with bundles."""

    #: The codename that stands in manifests and paths, such as `holo`.
    release: _Text
    #: What RAUC on the devices calls itself compatible with.
    compatible: _Text
    #: PEM files that sign bundles; relative paths begin at the directory of `overhaul.toml`.
    key: str
    certificate: str
    #: PEM file the signature is checked against after a bundle was made; empty: the certificate itself.
    keyring: str = ""
    #: RAUC's slot class.
    slot: _Text = "rootfs"
    #: `casync`: an index; devices fetch chunks from the store beside it. `plain`: the whole image.
    bundle: Literal["casync", "plain"] = "casync"
    #: What branches the channels are called by devices; a channel that is absent has its own name.
    branches: dict[str, _Text] = {}
    #: More stable branches whose images are offered too to those who ask for a branch.
    consider: dict[str, tuple[_Text, ...]] = {}
    #: What stands in for variants that have reached their end.
    ended_variants: dict[str, _Text] = {}
    #: Write `remote-info.conf`, by which devices learn what can be chosen.
    remote_info: bool = True
