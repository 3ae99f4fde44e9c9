"""What an image says about itself: `manifest.json`, the same facts out of os-release, and in a query.

    {"product": "steamos", "release": "holo", "variant": "steamdeck", "branch": "stable", "arch": "amd64",
     "version": "3.7.1", "buildid": "20240115.1", "requires_checkpoint": 1}

Two generations of rules are read. Under the rules of *branches* an image belongs to a branch and checkpoints are
numbered; one without any branch is *legacy*: its variant is split at the first dash, and it is shown as it was
written. Under the *seed* rules there are no branches, and a checkpoint is simply one or not.

Everything is text from somebody else, so every field is checked here, once.
"""

import platform
import re
from collections.abc import Mapping
from typing import Final

import msgspec

from overhaul.dialects.atomupd.versions import BuildId, ImageVersion, parse_build_id, parse_version
from overhaul.errors import InputError

#: The branch of a legacy variant without a dash, and of devices that never chose one.
STABLE_BRANCH: Final = "stable"
#: The one variant that legacy images may have.
LEGACY_VARIANT: Final = "steamdeck"
#: More than any manifest needs; what is longer is refused unread.
MAX_MANIFEST_BYTES: Final = 1 << 20

_MANDATORY = ("product", "release", "variant", "arch", "version", "buildid")
_KNOWN = frozenset(
    {
        *_MANDATORY,
        "checkpoint",
        "estimated_size",
        "skip",
        "introduces_checkpoint",
        "requires_checkpoint",
        "shadow_checkpoint",
        "branch",
        "default_update_branch",
    }
)
_WHOLE_NUMBER = re.compile(r"\s*[+-]?[0-9]{1,18}\s*")
_LARGEST = (1 << 63) - 1


class UnusableManifestError(InputError):
    """An image's description that cannot be used; `reason` names the field."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"The image's manifest cannot be used: {reason}.")


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image, or a device that runs it."""

    product: str
    release: str
    #: Without the branch that a legacy variant holds.
    variant: str
    arch: str
    version: ImageVersion
    build_id: BuildId
    #: Empty under the seed rules.
    branch: str = ""
    #: What a device on this image follows unless told otherwise; empty under the seed rules.
    default_update_branch: str = ""
    #: The variant as a legacy image writes it; empty for all others.
    legacy_variant: str = ""
    #: The seed rules' checkpoint.
    checkpoint: bool = False
    introduces_checkpoint: int = 0
    requires_checkpoint: int = 0
    shadow_checkpoint: bool = False
    skip: bool = False
    #: Bytes to download; 0 means unknown.
    estimated_size: int = 0

    @property
    def level(self) -> int:
        """The checkpoint a device on this image has reached."""
        return max(self.requires_checkpoint, self.introduces_checkpoint)

    @property
    def shown_variant(self) -> str:
        """The variant as the manifest wrote it."""
        return self.legacy_variant or self.variant

    @property
    def name(self) -> str:
        """What people call it in a message."""
        branch = f"/{self.branch}" if self.branch and not self.legacy_variant else ""
        return f"{self.product}/{self.release}/{self.arch}/{self.shown_variant}{branch} {self.version} {self.build_id}"


def parse_manifest(data: bytes, *, branches: bool = True) -> tuple[Image, tuple[str, ...]]:
    """Return the image that the JSON `data` describes, and the names of fields nobody knows.

    Args:
        data: The bytes of a `manifest.json`.
        branches: Whether the rules of branches and numbered checkpoints hold, or the seed rules.

    Raises:
        UnusableManifestError: It describes none.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise UnusableManifestError(f"it has {len(data)} bytes, more than {MAX_MANIFEST_BYTES}")
    try:
        document: object = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise UnusableManifestError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise UnusableManifestError("it is not a JSON object")
    return image_of_fields(document, branches=branches), tuple(sorted(set(document) - _KNOWN))


def image_of_fields(fields: Mapping[str, object], *, branches: bool = True) -> Image:
    """Return the image that `fields` describe; numbers and truth values may be written as text.

    Raises:
        UnusableManifestError: They describe none.
    """
    for name in _MANDATORY:
        if not isinstance(fields.get(name), str) or not fields[name]:
            raise UnusableManifestError(
                f"{name!r} is not a text" if fields.get(name) not in (None, "") else f"{name!r} is missing"
            )
    try:
        version, build_id = parse_version(str(fields["version"])), parse_build_id(str(fields["buildid"]))
    except InputError as error:
        raise UnusableManifestError(str(error).rstrip(".")) from error
    variant, legacy_variant = str(fields["variant"]), ""
    branch = default_branch = ""
    if branches:
        if _truth(fields, "checkpoint"):
            raise UnusableManifestError("'checkpoint' is no longer understood; write 'introduces_checkpoint'")
        branch, default_branch = _optional_text(fields, "branch"), _optional_text(fields, "default_update_branch")
        if not branch and not default_branch:
            legacy_variant = variant
            variant, branch = split_legacy_variant(variant)
        branch, default_branch = branch or default_branch, default_branch or branch
    arch = str(fields["arch"])
    return Image(
        product=str(fields["product"]),
        release=str(fields["release"]),
        variant=variant,
        arch=canonical_arch(arch),
        version=version,
        build_id=build_id,
        branch=branch,
        default_update_branch=default_branch,
        legacy_variant=legacy_variant,
        checkpoint=not branches and _truth(fields, "checkpoint"),
        introduces_checkpoint=_whole_number(fields, "introduces_checkpoint") if branches else 0,
        requires_checkpoint=_whole_number(fields, "requires_checkpoint") if branches else 0,
        shadow_checkpoint=branches and _truth(fields, "shadow_checkpoint"),
        skip=branches and _truth(fields, "skip"),
        estimated_size=max(_whole_number(fields, "estimated_size"), 0),
    )


def split_legacy_variant(variant: str) -> tuple[str, str]:
    """Return the variant and the branch that a legacy variant such as `steamdeck-main` holds.

    Raises:
        UnusableManifestError: Legacy images have no such variant.
    """
    name, _dash, branch = variant.partition("-")
    if name != LEGACY_VARIANT:
        raise UnusableManifestError(f"the variant {variant!r} has no branch; give the image a 'branch'")
    return name, branch or STABLE_BRANCH


def legacy_variant_of(branch: str) -> str:
    """Return the variant under which legacy devices ask for `branch`."""
    return LEGACY_VARIANT if branch == STABLE_BRANCH else f"{LEGACY_VARIANT}-{branch}"


def canonical_arch(arch: str) -> str:
    """Return the architecture under the name this system uses."""
    return "amd64" if arch == "x86_64" else arch


def parse_os_release(text: str) -> dict[str, str]:
    """Return the fields of an os-release file; blanks and quotes around a value go, and empty ones count as absent."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        value = value.strip().strip("\"'")
        if equals and value and not name.startswith("#"):
            fields[name.strip()] = value
    return fields


def fields_of_os_release(os_release: Mapping[str, str], *, arch: str | None = None) -> dict[str, str]:
    """Return the manifest fields that an os-release states; those it lacks are absent.

    `arch` is the kernel's machine name; None takes this machine's.
    """
    product = os_release.get("ID", "")
    found = {
        "product": product,
        "release": os_release.get("VERSION_CODENAME", ""),
        "variant": os_release.get("VARIANT_ID", ""),
        "default_update_branch": os_release.get(f"{product.upper()}_DEFAULT_UPDATE_BRANCH", ""),
        "arch": canonical_arch(arch if arch is not None else platform.machine()),
        "version": os_release.get("VERSION_ID", ""),
        "buildid": os_release.get("BUILD_ID", ""),
    }
    return {name: value for name, value in found.items() if value}


def image_of_os_release(text: str, *, arch: str | None = None, branches: bool = True) -> Image:
    """Return the image that an os-release describes, in place of a manifest.

    Raises:
        UnusableManifestError: A field is missing; the sentence names it as the manifest does.
    """
    return image_of_fields(fields_of_os_release(parse_os_release(text), arch=arch), branches=branches)


def _optional_text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise UnusableManifestError(f"{name!r} is not a text")
    return value


def _truth(fields: Mapping[str, object], name: str) -> bool:
    value = fields.get(name, False)
    if isinstance(value, str):
        return value.strip().lower() in {"1", "true"} if name != "checkpoint" else value.lower() == "true"
    return value is True or value == 1


def _whole_number(fields: Mapping[str, object], name: str) -> int:
    value = fields.get(name, 0)
    if value is None or value == "":
        return 0
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or not -_LARGEST <= value <= _LARGEST:
        raise UnusableManifestError(f"{name!r} is not a whole number")
    return int(value)
