"""What a product's `[products.NAME.ostree]` table may say."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import msgspec

from overhaul.dialects.ostree.errors import BadRefNameError
from overhaul.dialects.ostree.layout import check_ref
from overhaul.dialects.ostree.prepare import LAYOUTS
from overhaul.dialects.ostree.signatures import Ed25519Signer, GpgSigner, Signer
from overhaul.errors import OperatorError


class BadOstreeSettingError(OperatorError):
    """A setting that cannot be followed."""

    def __init__(self, *, setting: str, reason: str) -> None:
        self.setting = setting
        self.reason = reason
        super().__init__(f"The setting {setting} of the ostree dialect cannot be used: {reason}.")


class OstreeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a product is published in OSTree's dialect."""

    #: The branch of a channel; `{product}`, `{arch}`, `{variant}` and `{channel}` are filled in.
    branch: str = "{product}/{arch}/{variant}/{channel}"
    #: Channels whose branches a commit is bound to, so that it cannot be passed off as another channel's. Empty: it
    #: is bound to none, and may be promoted to any. Without `{channel}` in `branch` it is always bound.
    bound_channels: tuple[str, ...] = ()
    #: `refkit` or `generic`: how the tree becomes one that can be deployed; `none` commits it as it is.
    layout: str = "refkit"
    #: Whether a tree without a kernel is refused.
    needs_kernel: bool = True
    #: Whether extended attributes are part of a commit.
    xattrs: bool = True
    #: GnuPG home and key (fingerprint or user id) that sign; relative to the configuration's directory.
    gpg_home: str = ""
    gpg_key: str = ""
    gpg_passphrase_file: str = ""
    #: File with the base64 secret key that `ostree` takes for ed25519.
    ed25519_key_file: str = ""
    #: Whether a release may be published without any signature.
    unsigned: bool = False
    #: Earlier commits of the variant that a delta is made from.
    delta_sources: Annotated[int, msgspec.Meta(ge=0, le=32)] = 1
    #: Whether a delta from nothing is made, for new devices.
    delta_from_nothing: bool = False
    #: Of the DEFLATE streams of files.
    compression_level: Annotated[int, msgspec.Meta(ge=1, le=9)] = 6
    #: A second repository, rebuilt for each release with its commit alone, to make images of; with the fields of
    #: `branch` but the channel. Empty: none.
    image_repository: str = ""

    def branch_of(self, *, product: str, arch: str, variant: str, channel: str) -> str:
        """Return the branch of a channel.

        Raises:
            BadOstreeSettingError: What `branch` says makes no branch name.
        """
        name = _filled("branch", self.branch, product=product, arch=arch, variant=variant, channel=channel)
        try:
            return check_ref(name)
        except BadRefNameError as error:
            raise BadOstreeSettingError(setting="branch", reason=f"{name!r} is no branch name") from error

    @property
    def branch_has_channel(self) -> bool:
        """Whether each channel has a branch of its own."""
        return "{channel}" in self.branch

    def image_repository_of(self, base: Path, *, product: str, arch: str, variant: str) -> Path | None:
        """Return where the repository with one image's commit alone lies, or None."""
        if not self.image_repository:
            return None
        filled = _filled("image_repository", self.image_repository, product=product, arch=arch, variant=variant)
        return base / filled

    def checked(self) -> "OstreeSettings":
        """Return these settings when they make sense.

        Raises:
            BadOstreeSettingError: They do not.
        """
        if self.layout not in (*LAYOUTS, "none"):
            raise BadOstreeSettingError(setting="layout", reason=f"{self.layout!r} is neither refkit, generic nor none")
        if bool(self.gpg_home) != bool(self.gpg_key):
            raise BadOstreeSettingError(setting="gpg_key", reason="gpg_home and gpg_key need one another")
        if not self.unsigned and not self.gpg_key and not self.ed25519_key_file:
            raise BadOstreeSettingError(
                setting="gpg_key", reason="nothing would be signed; name a key, or say `unsigned = true`"
            )
        self.branch_of(product="p", arch="a", variant="v", channel="c")
        return self

    def signers(self, base: Path) -> tuple[Signer, ...]:
        """Return who signs; paths are relative to `base`.

        Raises:
            SigningFailedError, BadOstreeSettingError: A key cannot be used.
        """
        found: list[Signer] = []
        if self.gpg_key:
            passphrase = base / self.gpg_passphrase_file if self.gpg_passphrase_file else None
            found.append(GpgSigner(home=base / self.gpg_home, key=self.gpg_key, passphrase_file=passphrase))
        if self.ed25519_key_file:
            path = base / self.ed25519_key_file
            try:
                found.append(Ed25519Signer(path.read_text(encoding="ascii")))
            except (OSError, UnicodeError) as error:
                raise BadOstreeSettingError(setting="ed25519_key_file", reason=f"{path} cannot be read") from error
        return tuple(found)


def _filled(setting: str, template: str, **fields: str) -> str:
    fill: Callable[..., str] = template.format
    try:
        return fill(**fields)
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        raise BadOstreeSettingError(setting=setting, reason=f"{template!r} has an unknown field") from error
