"""What an ImageBuilder prints, read into values: `make info`, `make manifest`, and why packages exclude one another.

Pure. Both package managers are understood, opkg (to 24.10) and apk (from 25.12).
"""

import re
from dataclasses import dataclass, field

_REVISION = re.compile(r'^Current Revision: "(.*)"$', re.MULTILINE)
_DEFAULTS = re.compile(r"^Default Packages: (.*)$", re.MULTILINE)
_PROFILE = re.compile(r"^(\S+):$")
_PACKAGES = re.compile(r"^ {4}Packages: ?(.*)$")
_MANIFEST = re.compile(r"^(\S+) (?:- )?(\S+)$", re.ASCII)

_MISSING = (
    re.compile(r"Cannot install package (\S+?)\.?$", re.MULTILINE),
    re.compile(r"^\s*(\S+) \(no such package\)", re.MULTILINE),
)
_OPKG_CONFLICT = re.compile(r"^ \* check_conflicts_for: (?:The following packages conflict with (\S+?):|(.*))$", re.M)
_OPKG_CLASH = re.compile(r"check_data_file_clashes: Package (\S+) wants to install")
_OPKG_CLASH_WITH = re.compile(r"already provided by package\s+\* (\S+)")
_APK_CONFLICT = re.compile(r"^\s*(\S+):\s*\n\s+conflicts: (.*)$", re.MULTILINE)
_APK_OVERWRITE = re.compile(r"^ERROR: (\S+): trying to overwrite .* owned by (\S+?)\.?$", re.MULTILINE)
_APK_VERSION = re.compile(r"-[0-9][A-Za-z0-9._~]*(-r[0-9]+)?$")


@dataclass(frozen=True, kw_only=True)
class BuilderInfo:
    """What `make info` says."""

    #: Empty when it says none.
    revision: str
    default_packages: tuple[str, ...]
    #: Profile -> its packages; `-NAME` takes one of the defaults away.
    profiles: dict[str, tuple[str, ...]] = field(default_factory=dict)


def parse_info(text: str) -> BuilderInfo:
    """Return what `make info` printed."""
    revision, defaults = _REVISION.search(text), _DEFAULTS.search(text)
    profiles: dict[str, tuple[str, ...]] = {}
    profile = ""
    for line in text.partition("Available Profiles:")[2].splitlines():
        if found := _PROFILE.match(line):
            profile = found[1]
            profiles[profile] = ()
        elif (found := _PACKAGES.match(line)) and profile:
            profiles[profile] = tuple(found[1].split())
    return BuilderInfo(
        revision=revision[1] if revision else "",
        default_packages=tuple(defaults[1].split()) if defaults else (),
        profiles=profiles,
    )


def parse_manifest(text: str) -> dict[str, str]:
    """Return package -> version of what `make manifest` printed."""
    return {found[1]: found[2] for line in text.splitlines() if (found := _MANIFEST.match(line))}


def package_problems(stderr: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the packages that do not exist and those that exclude one another, by what a package manager said."""
    conflicts: set[str] = set()
    for found in _OPKG_CONFLICT.finditer(stderr):
        conflicts |= {found[1]} if found[1] else set(found[2].replace("*", " ").split())
    for pattern in (_OPKG_CLASH, _OPKG_CLASH_WITH):
        conflicts |= set(pattern.findall(stderr))
    for name, others in _APK_CONFLICT.findall(stderr):
        conflicts |= {_without_version(word.partition("[")[0]) for word in (name, *others.split())}
    for name, owner in _APK_OVERWRITE.findall(stderr):
        conflicts |= {_without_version(name), _without_version(owner)}
    missing = {_without_version(name) for pattern in _MISSING for name in pattern.findall(stderr)}
    return tuple(sorted(missing - conflicts)), tuple(sorted(conflicts))


def problem_text(missing: tuple[str, ...], conflicts: tuple[str, ...]) -> str:
    """Return the sentence that clients know for such a selection."""
    text = "Impossible package selection:" if missing or conflicts else "Impossible package selection"
    if missing:
        text += f" missing ({', '.join(missing)})"
    if conflicts:
        text += f" conflicts ({', '.join(conflicts)})"
    return text


def command_packages(info: BuilderInfo, profile: str, requested: tuple[str, ...], *, is_whole: bool) -> tuple[str, ...]:
    """Return the packages as `make` is told them.

    When `requested` is the whole list (`is_whole`), every default that is not in it is taken away first.
    """
    if not is_whole:
        return requested
    defaults = {*info.default_packages, *info.profiles.get(profile, ())}
    unwanted = sorted({f"-{name.removeprefix('-')}" for name in defaults - set(requested)})
    return (*unwanted, *requested)


def _without_version(name: str) -> str:
    return _APK_VERSION.sub("", name)
