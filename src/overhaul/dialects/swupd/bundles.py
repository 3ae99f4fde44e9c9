"""Which bundles a system has, and which paths belong to each: groups.ini of the old server, or TOML.

    [bundles.editors]
    title = "Editors"
    includes = ["python"]           # os-core is included by all
    also-add = ["man"]              # suggested; needs format 29
    status = "Experimental"
    files = ["/usr/bin/vi", "/usr/share/vim/**"]

A pattern without wildcards takes the path and, for a directory, all below it. `*` and `?` stay within one name, `**`
crosses names. What no bundle takes belongs to os-core. Every bundle also gets the directories on the way to what it
lists, which the client needs to make them with the right owner.
"""

import configparser
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from overhaul.dialects.swupd.names import CORE_BUNDLE, BundleNameError, checked_bundle
from overhaul.errors import InputError

_MAX_DEFINITION_BYTES = 4 << 20
_MAX_BUNDLES = 10_000
_WORD = re.compile(r"[\w .,:;()/+-]{0,200}")
_GLOB = re.compile(r"\*\*|\*|\?")
_GLOB_PARTS = {"**": b".*", "*": b"[^/]*", "?": b"[^/]"}


class BundleDefinitionError(InputError):
    """Definitions of bundles that contradict themselves or cannot be read."""

    def __init__(self, *, place: str, reason: str) -> None:
        self.place = place
        self.reason = reason
        super().__init__(f"The bundles in {place} cannot be built: {reason}.")


@dataclass(frozen=True, kw_only=True)
class BundleDefinition:
    """One bundle."""

    name: str
    includes: tuple[str, ...] = ()
    also_add: tuple[str, ...] = ()
    status: str = ""
    #: Patterns of absolute paths; empty for what has a tree or a list of its own.
    files: tuple[str, ...] = ()

    @property
    def is_experimental(self) -> bool:
        """Whether clients shall call it an experiment."""
        return self.status.lower() == "experimental"

    @property
    def is_deprecated(self) -> bool:
        """Whether it is on its way out: it is emptied in one version and gone in the next."""
        return self.status.lower() == "deprecated"


#: What a system without definitions has: everything in one.
ONLY_CORE = (BundleDefinition(name=CORE_BUNDLE),)


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    title: str = ""
    description: str = ""
    includes: tuple[str, ...] = ()
    also_add: tuple[str, ...] = ()
    status: str = ""
    files: tuple[Annotated[str, msgspec.Meta(pattern="^/", max_length=4096)], ...] = ()


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bundles: dict[str, _Table] = {}


def load_bundles(path: Path) -> tuple[BundleDefinition, ...]:
    """Return the bundles that the file `path` (`*.ini` or TOML) defines, os-core among them, by name.

    Raises:
        BundleDefinitionError: It cannot be read, or contradicts itself.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_DEFINITION_BYTES + 1)
    except OSError as error:
        raise BundleDefinitionError(place=str(path), reason=str(error.strerror)) from error
    if len(data) > _MAX_DEFINITION_BYTES:
        raise BundleDefinitionError(place=str(path), reason=f"it has more than {_MAX_DEFINITION_BYTES} bytes")
    parse = parse_groups_ini if path.suffix == ".ini" else parse_bundles_toml
    return parse(data, place=str(path))


def parse_bundles_toml(data: bytes, *, place: str) -> tuple[BundleDefinition, ...]:
    """Return the bundles of a TOML document."""
    try:
        document = msgspec.convert(tomllib.loads(data.decode()), _Document)
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise BundleDefinitionError(place=place, reason=str(error).rstrip(".")) from error
    definitions = [
        BundleDefinition(
            name=name, includes=table.includes, also_add=table.also_add, status=table.status, files=table.files
        )
        for name, table in document.bundles.items()
    ]
    return check_bundles(definitions, place=place)


def parse_groups_ini(data: bytes, *, place: str) -> tuple[BundleDefinition, ...]:
    """Return the bundles of a groups.ini: a section for each, `group=` its name, `status=` a word."""
    parser = configparser.ConfigParser(interpolation=None, default_section="\0", strict=True)
    try:
        parser.read_string(data.decode(), source=place)
    except (configparser.Error, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise BundleDefinitionError(place=place, reason=reason) from error
    definitions = []
    for section in parser.sections():
        values = parser[section]
        unknown = set(values) - {"group", "status"}
        if unknown:
            reason = f"section {section!r} has the unknown key {min(unknown)!r}"
            raise BundleDefinitionError(place=place, reason=reason)
        definitions.append(BundleDefinition(name=values.get("group", section), status=values.get("status", "")))
    if CORE_BUNDLE not in {one.name for one in definitions}:
        raise BundleDefinitionError(place=place, reason=f"it does not define {CORE_BUNDLE}")
    return check_bundles(definitions, place=place)


def check_bundles(definitions: Iterable[BundleDefinition], *, place: str) -> tuple[BundleDefinition, ...]:
    """Return the definitions by name with os-core included by all others, when they fit together."""
    by_name: dict[str, BundleDefinition] = {}
    for one in definitions:
        try:
            checked_bundle(one.name)
        except BundleNameError as error:
            raise BundleDefinitionError(place=place, reason=str(error).rstrip(".")) from error
        if one.name in by_name:
            raise BundleDefinitionError(place=place, reason=f"{one.name} is defined twice")
        if not _WORD.fullmatch(one.status):
            raise BundleDefinitionError(place=place, reason=f"the status of {one.name} is no plain text")
        by_name[one.name] = one
    by_name.setdefault(CORE_BUNDLE, BundleDefinition(name=CORE_BUNDLE))
    if len(by_name) > _MAX_BUNDLES:
        raise BundleDefinitionError(place=place, reason=f"there are more than {_MAX_BUNDLES}")
    return complete_bundles(by_name, place=place)


def complete_bundles(by_name: Mapping[str, BundleDefinition], *, place: str) -> tuple[BundleDefinition, ...]:
    """Return the definitions by name, each but os-core including os-core, after every reference was looked up."""
    done = []
    for name in sorted(by_name):
        one = by_name[name]
        for other in (*one.includes, *one.also_add):
            if other not in by_name or other == name:
                raise BundleDefinitionError(place=place, reason=f"{name} names the bundle {other!r}, which is none")
        if name == CORE_BUNDLE:
            if one.includes:
                raise BundleDefinitionError(place=place, reason=f"{CORE_BUNDLE} cannot include other bundles")
            done.append(one)
            continue
        includes = tuple(sorted({*one.includes, CORE_BUNDLE}))
        done.append(
            BundleDefinition(
                name=name,
                includes=includes,
                also_add=tuple(sorted(set(one.also_add) - set(includes))),
                status=one.status,
                files=one.files,
            )
        )
    _refuse_circles(done, place=place)
    return tuple(done)


def _refuse_circles(definitions: Sequence[BundleDefinition], *, place: str) -> None:
    """Peel off what includes nothing that is left, until nothing is; bundles that remain include one another."""
    left = {one.name: set(one.includes) for one in definitions}
    while left:
        free = [name for name, includes in left.items() if not includes & left.keys()]
        if not free:
            reason = f"{', '.join(sorted(left)[:5])} include one another"
            raise BundleDefinitionError(place=place, reason=reason)
        for name in free:
            del left[name]


def all_includes(definitions: Sequence[BundleDefinition]) -> dict[str, frozenset[str]]:
    """Return for each bundle what it includes, directly or not."""
    direct = {one.name: one.includes for one in definitions}
    closed: dict[str, frozenset[str]] = {}
    waiting = list(direct)
    while waiting:
        name = waiting[-1]
        missing = [other for other in direct[name] if other not in closed]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        closed[name] = frozenset(direct[name]).union(*(closed[other] for other in direct[name]))
    return closed


@dataclass
class Assignment:
    """Which bundle each path of a tree belongs to, decided by patterns."""

    definitions: Sequence[BundleDefinition]
    _patterns: list[tuple[str, re.Pattern[bytes]]] = field(init=False)

    def __post_init__(self) -> None:
        self._patterns = [
            (one.name, re.compile(b"|".join(map(_translate, one.files)), re.DOTALL))
            for one in self.definitions
            if one.files
        ]

    def bundles_of(self, name: bytes) -> list[str]:
        """Return the bundles that take the absolute path `name`; os-core when nobody else does."""
        found = [bundle for bundle, pattern in self._patterns if pattern.fullmatch(name)]
        return found or [CORE_BUNDLE]


def _translate(pattern: str) -> bytes:
    parts: list[bytes] = []
    position = 0
    for found in _GLOB.finditer(pattern):
        parts += [re.escape(pattern[position : found.start()].encode()), _GLOB_PARTS[found[0]]]
        position = found.end()
    parts.append(re.escape(pattern[position:].rstrip("/").encode()))
    return b"(?:" + b"".join(parts) + (b"(?:/.*)?" if position == 0 else b"") + b")"
