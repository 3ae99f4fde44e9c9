"""Versions and build ids as this system writes and orders them.

A version is `snapshot`, or numbers read leniently into Semantic Versioning: missing numbers are 0, leading zeros go,
other characters become dashes, and what follows a fourth dot is build metadata (`3.6.5.1` is `3.6.5+1`). The
normalised text is what stands in JSON and in paths. A build id is a calendar date and a counter, `20240115.1`.

Precedence is Semantic Versioning's, which does not look at metadata: `3.7.1+1` and `3.7.1+2` are unequal and neither
is lower. The servers these clients know therefore never lead from one to the other; `fourth_number` tells them apart
for those who want that mended.
"""

import datetime
import re
from functools import lru_cache
from typing import NamedTuple

import msgspec

from overhaul.errors import InputError

#: One dot-separated part of a pre-release: numbers before words.
_Identifier = tuple[int, int, str]
#: Major, minor, patch, whether it is a final release, and the pre-release.
Precedence = tuple[int, int, int, bool, tuple[_Identifier, ...]]

SNAPSHOT_TEXT = "snapshot"

_NUMBERS = re.compile(r"[0-9]+(?:\.[0-9]+){0,2}")
_STRANGE = re.compile(r"[^0-9A-Za-z+.-]")
_DIGITS = re.compile(r"[0-9]{1,18}")
_DATE_DIGITS = re.compile(r"[0-9]{4,8}")
#: No version of an operating system is longer; a bound on what a stranger can make a server compare.
_MAX_LENGTH = 200


class UnusableVersionError(InputError):
    """A text that is no version."""

    def __init__(self, text: str, reason: str = "it does not begin with a number") -> None:
        self.text = text
        self.reason = reason
        super().__init__(f"{text!r} is no version ({reason}); write numbers such as 3.7.1, or {SNAPSHOT_TEXT!r}.")


class UnusableBuildIdError(InputError):
    """A text that is no build id."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(f"{text!r} is no build id; write the date and a counter such as 20240115.1.")


class ImageVersion(msgspec.Struct, frozen=True):
    """A version; `text` is normalised, and equal texts are equal versions."""

    text: str
    #: None for a snapshot, which has no version.
    precedence: Precedence | None
    metadata: str = ""

    @property
    def is_snapshot(self) -> bool:
        """Whether this is a build without a version."""
        return self.precedence is None

    @property
    def is_stable(self) -> bool:
        """Whether it has a version without a pre-release."""
        return self.precedence is not None and self.precedence[3]

    @property
    def fourth_number(self) -> int:
        """The fourth number as it was written, or 0."""
        return int(self.metadata) if _DIGITS.fullmatch(self.metadata) else 0

    def __str__(self) -> str:
        return self.text


SNAPSHOT = ImageVersion(SNAPSHOT_TEXT, None)


class BuildId(NamedTuple):
    """A build id; tuples of it are in its order."""

    #: The date as the number YYYYMMDD.
    date: int
    counter: int

    def __str__(self) -> str:
        return f"{self.date:08d}.{self.counter}"


@lru_cache(maxsize=4096)
def parse_version(text: str) -> ImageVersion:
    """Return the version that `text` means.

    Raises:
        UnusableVersionError: It means none.
    """
    if text == SNAPSHOT_TEXT:
        return SNAPSHOT
    numbers = _NUMBERS.match(text)
    if numbers is None:
        raise UnusableVersionError(text)
    if len(text) > _MAX_LENGTH:
        raise UnusableVersionError(text[:40] + "…", f"it is longer than {_MAX_LENGTH} characters")
    parts = [int(part) for part in numbers.group().split(".")]
    major, minor, patch = [*parts, 0, 0][:3]
    prerelease, metadata = _split_rest(_STRANGE.sub("-", text[numbers.end() :]))
    if (prerelease and not _is_dotted(prerelease)) or (metadata and not _is_dotted(metadata)):
        raise UnusableVersionError(text, "an empty part stands between its dots")
    identifiers = tuple(_identifier(text, part) for part in prerelease.split(".")) if prerelease else ()
    normalised = f"{major}.{minor}.{patch}"
    normalised += f"-{prerelease}" if prerelease else ""
    normalised += f"+{metadata}" if metadata else ""
    return ImageVersion(normalised, (major, minor, patch, not prerelease, identifiers), metadata)


@lru_cache(maxsize=4096)
def parse_build_id(text: str) -> BuildId:
    """Return the build id that `text` means.

    Raises:
        UnusableBuildIdError: It means none.
    """
    date_text, dot, counter_text = text.partition(".")
    if not _DATE_DIGITS.fullmatch(date_text) or (dot and not _DIGITS.fullmatch(counter_text)):
        raise UnusableBuildIdError(text)
    try:
        if len(date_text) == 8:
            datetime.date(int(date_text[:4]), int(date_text[4:6]), int(date_text[6:]))
            return BuildId(int(date_text), int(counter_text) if dot else 0)
        # Seven digits and fewer are read as this format reads them everywhere: `2019214` is 14 February.
        date = datetime.datetime.strptime(date_text, "%Y%m%d")  # noqa: DTZ007 - a calendar day has no zone
    except ValueError as error:
        raise UnusableBuildIdError(text) from error
    return BuildId(date.year * 10000 + date.month * 100 + date.day, int(counter_text) if dot else 0)


def _split_rest(rest: str) -> tuple[str, str]:
    """Return the pre-release and the metadata that stand behind the first three numbers."""
    if rest.startswith((".", "+")):
        return "", rest[1:].replace("+", ".")
    prerelease, _plus, metadata = rest.removeprefix("-").partition("+")
    return prerelease, metadata.replace("+", ".")


def _is_dotted(text: str) -> bool:
    return all(text.split("."))


def _identifier(text: str, part: str) -> _Identifier:
    if not part.isdigit():
        return 1, 0, part
    if part != "0" and part.startswith("0"):
        raise UnusableVersionError(text, f"the number {part!r} of its pre-release begins with 0")
    return 0, int(part), ""
