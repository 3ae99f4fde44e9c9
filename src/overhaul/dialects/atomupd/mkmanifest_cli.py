"""`steamos-atomupd-mkmanifest`: print the manifest of an image, of its os-release and of options.

Run inside the image it prints what the device reads; for the server's pool `--server-manifest` adds the branch the
image is published in. Where no branch is known at all, or `--checkpoint` is asked for, the manifest is one of the first
generation, which had neither branches nor numbered checkpoints.

Exit codes: 0 printed, 1 something is missing or wrong, 2 wrong usage.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from overhaul.dialects.atomupd.manifest import canonical_arch, fields_of_os_release, image_of_fields, parse_os_release
from overhaul.errors import InputError, OverhaulError

_OS_RELEASE = (Path("/etc/os-release"), Path("/usr/lib/os-release"))
#: Manifest field, and where os-release has it.
_FIELDS = {
    "product": "ID",
    "release": "VERSION_CODENAME",
    "variant": "VARIANT_ID",
    "arch": "the kernel",
    "version": "VERSION_ID",
    "buildid": "BUILD_ID",
}


class OsReleaseError(InputError):
    """The os-release cannot be read."""

    def __init__(self, *, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path} cannot be read: {reason}.")


class MissingFieldError(InputError):
    """Nothing says what a field of the manifest is."""

    def __init__(self, *, field: str, source: str) -> None:
        self.field = field
        super().__init__(f"The {field} is not known; set {source} in os-release, or give --{field}.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the manifest and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        document = manifest_document(_os_release(options.os_release_path), options)
    except OverhaulError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    return 0


def manifest_document(os_release: str, options: argparse.Namespace) -> dict[str, str | int | bool]:
    """Return the manifest as its JSON object, in the order that it is printed.

    Raises:
        MissingFieldError: Neither os-release nor an option says a field.
        UnusableManifestError: A value cannot be used.
    """
    found = fields_of_os_release(parse_os_release(os_release))
    fields: dict[str, object] = dict(found)
    for name, source in _FIELDS.items():
        value = getattr(options, name) or fields.get(name)
        if not value:
            raise MissingFieldError(field=name, source=source)
        fields[name] = value
    default_branch = str(fields.pop("default_update_branch", "") or options.branch)
    numbered = options.introduces_checkpoint or options.requires_checkpoint
    is_early = options.checkpoint or not default_branch
    if is_early:
        if numbered or options.server_manifest:
            raise MissingFieldError(field="branch", source=f"{fields['product']}_DEFAULT_UPDATE_BRANCH".upper())
        image = image_of_fields({**fields, "checkpoint": options.checkpoint}, branches=False)
    else:
        image = image_of_fields({**fields, "default_update_branch": default_branch})
    document: dict[str, str | int | bool] = {
        "product": image.product,
        "release": image.release,
        "variant": image.variant,
    }
    if not is_early:
        if options.server_manifest:
            document["branch"] = options.branch or default_branch
        document["default_update_branch"] = default_branch
    document |= {"arch": image.arch, "version": image.version.text, "buildid": str(image.build_id)}
    if is_early:
        document["checkpoint"] = options.checkpoint
    if options.introduces_checkpoint:
        document["introduces_checkpoint"] = options.introduces_checkpoint
    if numbered:
        document["requires_checkpoint"] = options.requires_checkpoint
    return document


def _os_release(path: Path | None) -> str:
    chosen = path or next((known for known in _OS_RELEASE if known.exists()), _OS_RELEASE[0])
    try:
        return chosen.read_text()
    except OSError as error:
        raise OsReleaseError(path=chosen, reason=error.strerror or str(error)) from error
    except UnicodeError as error:
        raise OsReleaseError(path=chosen, reason="it is no text") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steamos-atomupd-mkmanifest", description="Print the manifest.json of an image, of its os-release."
    )
    parser.add_argument("--os-release-path", type=Path, metavar="FILE", help="read this instead of /etc/os-release")
    for name, source in _FIELDS.items():
        parser.add_argument(
            f"--{name}", default="", type=canonical_arch if name == "arch" else str, help=f"else {source}"
        )
    parser.add_argument("--branch", default="", help="the branch the image is published in")
    parser.add_argument("--server-manifest", action="store_true", help="write the branch too, as servers need it")
    parser.add_argument("--introduces-checkpoint", type=_number, default=0, metavar="N")
    parser.add_argument("--requires-checkpoint", type=_number, default=0, metavar="N")
    parser.add_argument("--checkpoint", action="store_true", help="first generation: the image cannot be jumped over")
    return parser


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
