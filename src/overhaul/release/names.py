"""The small words everything else is named by, checked once where they enter.

A name appears in paths, URLs, TUF role names and boot entries, so its alphabet is the safe common part of all
of these: lower-case letters, digits, and `.`, `_`, `+`, `~`, `-` inside; it never begins with a dot or a dash.
"""

import re
from typing import Annotated

import msgspec

from overhaul.errors import InputError

_NAME_PATTERN = r"^[a-z0-9][a-z0-9._+~-]{0,63}\Z"
_TOKEN_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+~-]{0,63}\Z"  # noqa: S105 - a version, not a secret

#: Product, variant, arch and channel names.
Name = Annotated[str, msgspec.Meta(pattern=_NAME_PATTERN)]
#: Versions and build ids as written; upper case is allowed because build systems use it.
Token = Annotated[str, msgspec.Meta(pattern=_TOKEN_PATTERN)]
#: A SHA-256 digest as 64 lower-case hexadecimal digits.
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
#: A path below the public root of a repository: relative, forward slashes, no empty, `.` or `..` part.
PublicPath = Annotated[
    str,
    msgspec.Meta(pattern=r"^(?!.*(^|/)\.{1,2}(/|\Z))[A-Za-z0-9._+~-]+(/[A-Za-z0-9._+~-]+)*\Z", max_length=1024),
]
#: A path, or an argument of a program: no system takes a zero byte in either.
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\0]*\Z")]
#: A size in bytes, or an offset; no system has a larger one.
Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class UnusableNameError(InputError):
    """A product, variant, arch, channel, version or build id that cannot be used as a name."""

    def __init__(self, *, kind: str, value: str) -> None:
        self.kind = kind
        self.value = value
        super().__init__(
            f"{kind} {value!r} is not a usable name: use letters, digits and . _ + ~ - inside, "
            "at most 64 characters, beginning with a letter or digit."
        )


def check_name(kind: str, value: str) -> str:
    """Return `value` when it is a product, variant, arch or channel name; raise `UnusableNameError` when not."""
    if re.match(_NAME_PATTERN, value) is None:
        raise UnusableNameError(kind=kind, value=value)
    return value


def check_token(kind: str, value: str) -> str:
    """Return `value` when it is a version or build id; raise `UnusableNameError` when not."""
    if re.match(_TOKEN_PATTERN, value) is None:
        raise UnusableNameError(kind=kind, value=value)
    return value
