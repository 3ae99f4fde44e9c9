"""What names, versions and targets of the attended-sysupgrade interface may look like, and how they are ordered.

Everything that reaches a file name, an address or a command line of a build matches one of these patterns, as a
whole and in ASCII: a line feed at the end is as wrong as one in the middle. Pure.
"""

import re
from collections.abc import Iterable

#: Longer names exist nowhere; a limit keeps addresses short enough for clients that build them in 256 bytes.
MAX_NAME = 128

# Patterns without anchors: whoever uses one matches the whole text with it, never up to a line's end.
#: Names, versions and profiles of today's interface: word characters, dot, comma, hyphen; or nothing.
TOKEN = rf"[A-Za-z0-9_.,-]{{0,{MAX_NAME}}}"
#: A package; one may begin with a plus, which means nothing, and Debian's may hold some (`g++`).
PACKAGE = rf"[A-Za-z0-9_.,+-]{{0,{MAX_NAME}}}"
#: A package's version; Debian's may hold a colon.
PACKAGE_VERSION = rf"[A-Za-z0-9_.+,~:-]{{0,{MAX_NAME}}}"
#: A target and subtarget.
TARGET = r"[A-Za-z0-9_]{0,64}/[A-Za-z0-9_]{0,64}"
REPOSITORY_NAME = r"[A-Za-z0-9_.-]{1,64}"
REPOSITORY_URL = r"https?://[!-~]{1,1000}"

#: A package as an index names it, or as a seed-era client sends it; never an option, a path or a command.
_PACKAGE = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.,+~-]{{0,{MAX_NAME - 1}}}", re.ASCII)
_TARGET = re.compile(TARGET, re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+-]*", re.ASCII)

SNAPSHOT = "SNAPSHOT"


def is_package(name: str) -> bool:
    """Tell whether `name` can be a package's."""
    return _PACKAGE.fullmatch(name) is not None


def is_target(name: str) -> bool:
    """Tell whether `name` is a target and subtarget, neither of them empty."""
    return _TARGET.fullmatch(name) is not None and not name.startswith("/") and not name.endswith("/")


def is_token(name: str) -> bool:
    """Tell whether `name` can be a version, profile or distribution and is safe as one part of a path."""
    return len(name) <= MAX_NAME and _PLAIN.fullmatch(name) is not None and ".." not in name


def branch_of(version: str, branches: Iterable[str]) -> str | None:
    """Return the branch among `branches` that `version` belongs to.

    It is the branch of that very name, else that before `-SNAPSHOT`, else that before the last dot.
    """
    known = set(branches)
    for candidate in (version, version.removesuffix("-SNAPSHOT"), version.rpartition(".")[0]):
        if candidate in known:
            return candidate
    return None


def version_path(version: str, *, path: str) -> str:
    """Return where upstream keeps `version`; `path` is the branch's, with the place of the version in braces."""
    return path.replace("{version}", version)


def newest_first(versions: Iterable[str]) -> list[str]:
    """Return `versions` as upstream's overview orders them: a release, its candidates, its branch's snapshot."""
    return sorted(set(versions), key=lambda version: version.replace(".0-rc", "-rc"), reverse=True)


def underscored(profile: str) -> str:
    """Return a board's name as a profile: devices say commas, build systems underscores."""
    return profile.replace(",", "_")
