"""How a package set changes on its way to another version: renamed, dropped, split or replaced packages. Pure.

Two kinds of rules meet in one place:

* *Replacements* belong to a version of a distribution and apply to whoever crosses it, as the seed era's
  transformation files say. Each looks at the packages as they were installed, never at what another one made of
  them, so that the order of files decides nothing.
* *Fixes* belong to the system that is asked for. They add what a device of it needs, remove what it no longer has
  and rename what got another name, in place and keeping the order the user gave.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec

from overhaul.errors import OperatorError

_DATA = Path(__file__).parent / "data"
#: What no client can choose: it is part of every system.
BUILT_IN = frozenset({"libc", "kernel", "libgcc", "libgcc1", "librt", "libpthread"})


class TransformationError(OperatorError):
    """A transformation of a distribution's configuration that means nothing."""

    def __init__(self, *, package: str, value: object) -> None:
        self.package = package
        self.value = value
        super().__init__(
            f"The transformation of package {package} is {value!r}; give nothing, a name, a list of names, or a table "
            "of names with true, false or a list of packages."
        )


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One of several packages that can take another's place."""

    name: str
    #: Whether it is taken where nothing else decides.
    is_default: bool = False
    #: It is taken when one of these is installed, too.
    beside: frozenset[str] = frozenset()


class Replacement(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one package."""

    #: All of these, unconditionally: none drops it, one renames it, several split it.
    become: tuple[str, ...] = ()
    #: Or one of these.
    choices: tuple[Choice, ...] = ()

    def of(self, installed: Collection[str]) -> tuple[str, ...]:
        """Return what takes the place, beside the packages `installed`."""
        for choice in self.choices:
            if choice.beside.intersection(installed):
                return (choice.name,)
        return self.become or tuple(choice.name for choice in self.choices if choice.is_default)


def parse_replacement(package: str, value: object) -> Replacement:
    """Return the rule that a transformation file gives for `package`.

    Raises:
        TransformationError: It is none.
    """
    match value:
        case None | False | "":
            return Replacement()
        case str():
            return Replacement(become=(value,))
        case list() if value and all(isinstance(name, str) for name in value):
            return Replacement(become=tuple(value))
        case dict() if all(isinstance(name, str) for name in value):
            return Replacement(choices=tuple(_choice(package, name, chosen) for name, chosen in value.items()))
        case _:
            raise TransformationError(package=package, value=value)


def _choice(package: str, name: str, value: object) -> Choice:
    if isinstance(value, bool):
        return Choice(name=name, is_default=value)
    if isinstance(value, list) and all(isinstance(other, str) for other in value):
        return Choice(name=name, beside=frozenset(value))
    raise TransformationError(package=package, value=value)


def replaced(
    installed: Iterable[str], crossed: Sequence[Mapping[str, Replacement]], *, known: Collection[str]
) -> frozenset[str]:
    """Return the packages to ask for, after the rules of every version that is `crossed`.

    What no rule names stays. What the destination does not know (`known`) vanishes.
    """
    before = frozenset(installed)
    after = set(before)
    for rules in crossed:
        for package in before.intersection(rules):
            after.discard(package)
            after.update(rules[package].of(before))
    return frozenset(after.intersection(known))


class Fix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What systems of some versions need of a package list; a rule of `data/package_fixes.json`."""

    #: Beginnings of version names; empty: every version.
    versions: tuple[str, ...] = ()
    #: The lowest version, compared as text so that snapshots count as higher; empty: no lowest.
    since: str = ""
    targets: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    #: Only where one of these is asked for.
    requested: tuple[str, ...] = ()
    add: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    #: Regular expression of a whole name, and what replaces it; empty text removes the package.
    rename: dict[str, str] = {}
    split: dict[str, tuple[str, ...]] = {}

    def applies(self, *, version: str, target: str, profile: str, packages: Collection[str]) -> bool:
        """Tell whether a request is one of those meant."""
        return (
            (not self.versions or version.startswith(self.versions))
            and version >= self.since
            and (not self.targets or target in self.targets)
            and (not self.profiles or profile in self.profiles)
            and (not self.requested or any(name in packages for name in self.requested))
        )

    def changed(self, packages: Sequence[str]) -> list[str]:
        """Return `packages` as they should be, in the same order."""
        after: list[str] = []
        for name in packages:
            if name in self.remove:
                continue
            if name in self.split:
                after.extend(part for part in self.split[name] if part not in after)
                continue
            new = self._renamed(name)
            if new:
                after.append(new)
        after.extend(name for name in self.add if name not in after)
        return after

    def _renamed(self, name: str) -> str:
        for pattern, new in self.rename.items():
            found = re.fullmatch(pattern, name, re.ASCII)
            if found is not None:
                return found.expand(new)
        return name


def fixed(packages: Sequence[str], *, version: str, target: str, profile: str) -> tuple[str, ...]:
    """Return `packages` with every fix that the system asked for needs; the order of the others stays."""
    current = list(packages)
    for fix in package_fixes():
        if fix.applies(version=version, target=target, profile=profile, packages=current):
            current = fix.changed(current)
    return tuple(current)


@cache
def package_fixes() -> tuple[Fix, ...]:
    """Return the fixes this Overhaul knows."""
    return msgspec.json.decode((_DATA / "package_fixes.json").read_bytes(), type=tuple[Fix, ...])
