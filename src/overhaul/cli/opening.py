"""What the publisher's commands share: naming a repository and naming a release."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from overhaul.errors import InputError
from overhaul.release.names import check_name, check_token
from overhaul.release.record import ReleaseId

#: The repository's directory: `--repository`, or the environment, or where one is.
repository_option: Callable[[Any], Any] = click.option(
    "--repository",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="OVERHAUL_REPOSITORY",
    default=".",
    show_default=True,
    help="Directory of the repository (also $OVERHAUL_REPOSITORY).",
)

_RELEASE_FORM = "PRODUCT/VARIANT/ARCH/VERSION/BUILD"


class UnreadableReleaseNameError(InputError):
    """A release that is not named in full."""

    def __init__(self, *, text: str) -> None:
        self.text = text
        super().__init__(f"{text!r} does not name a release; write it as {_RELEASE_FORM}.")


def release_id(*, product: str, variant: str, arch: str, version: str, build_id: str) -> ReleaseId:
    """Return the release that the options name; raise `UnusableNameError` when one cannot be a name."""
    return ReleaseId(
        product=check_name("product", product),
        variant=check_name("variant", variant),
        arch=check_name("arch", arch),
        version=check_token("version", version),
        build_id=check_token("build id", build_id),
    )


def parse_release(text: str) -> ReleaseId:
    """Return the release that `PRODUCT/VARIANT/ARCH/VERSION/BUILD` names."""
    parts = text.split("/")
    if len(parts) != len(_RELEASE_FORM.split("/")):
        raise UnreadableReleaseNameError(text=text)
    product, variant, arch, version, build_id = parts
    return release_id(product=product, variant=variant, arch=arch, version=version, build_id=build_id)


def release_text(release: ReleaseId) -> str:
    """Return the form that `parse_release` reads."""
    return f"{release.product}/{release.variant}/{release.arch}/{release.version}/{release.build_id}"


def parse_percent(text: str) -> float | None:
    """Return a rollout's percentage, or None for `all`."""
    if text == "all":
        return None
    try:
        percent = float(text.removesuffix("%"))
    except ValueError as error:
        raise InputError(f"{text!r} is not a percentage; give a number from 0 to 100, or `all`.") from error
    if not 0 <= percent <= 100:
        raise InputError(f"{text} is not between 0 and 100 percent.")
    return percent


def parse_size(text: str) -> int:
    """Return a size in bytes: digits, or digits and one of K, M, G, T (powers of 1024)."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    number, factor = (text[:-1], units[text[-1:].upper()]) if text[-1:].upper() in units else (text, 1)
    if not number.isascii() or not number.isdigit() or int(number) == 0:
        raise InputError(f"{text!r} is not a size; give bytes, or a number with K, M, G or T, such as 512M.")
    return int(number) * factor
