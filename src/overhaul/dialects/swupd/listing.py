"""What each bundle of a version consists of, before it is compared with the version before.

A path is listed once along a chain of includes: what an included bundle has, the including one does not repeat.
Bundles that do not include one another may both list a path, when it is the same object: a device with both would
otherwise drop the path silently.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from overhaul.dialects.swupd.bundles import BundleDefinition, all_includes
from overhaul.dialects.swupd.names import CORE_BUNDLE
from overhaul.errors import InputError


class ConflictingBundlesError(InputError):
    """Two bundles that a device could have together, with two contents for one path."""

    def __init__(self, *, path: str, bundles: tuple[str, str]) -> None:
        self.path = path
        self.bundles = bundles
        super().__init__(
            f"The bundles {bundles[0]} and {bundles[1]} have different objects at {path!r}; give both the same one, "
            "or let one include the other."
        )


class Listed(msgspec.Struct, frozen=True, gc=False):
    """One object of a version under one path."""

    #: As in a manifest: `F`, `D` or `L`.
    kind: str
    hash: str
    #: Bytes of a file or of a link's target.
    size: int


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One bundle of a version."""

    definition: BundleDefinition
    #: By absolute path.
    objects: Mapping[bytes, Listed]
    #: Its size where that of each object is not known: in what is published again.
    stated_size: int | None = None

    @property
    def content_size(self) -> int:
        """Bytes of everything that is no directory."""
        if self.stated_size is not None:
            return self.stated_size
        return sum(one.size for one in self.objects.values() if one.kind != "D")


@dataclass(frozen=True, kw_only=True)
class Subtracted:
    """The bundles of a version, no path twice along an include, and what was strange about them."""

    listings: tuple[Listing, ...]
    warnings: tuple[str, ...]


def subtract(listings: Sequence[Listing]) -> Subtracted:
    """Return the bundles without what their included bundles have.

    Raises:
        ConflictingBundlesError: Bundles without relation disagree about a path.
    """
    includes = all_includes([one.definition for one in listings])
    objects = {one.definition.name: one.objects for one in listings}
    warnings: list[str] = []
    done = []
    for one in listings:
        name = one.definition.name
        kept: dict[bytes, Listed] = dict(one.objects)
        for other in sorted(includes[name], key=lambda bundle: (bundle != CORE_BUNDLE, bundle)):
            for path in kept.keys() & objects[other].keys():
                if objects[other][path] != kept.pop(path):
                    shown = path.decode(errors="backslashreplace")
                    warnings.append(f"{shown} of {name} differs from that of {other}, which it includes and which wins")
        done.append(Listing(definition=one.definition, objects=kept, stated_size=one.stated_size))
    _refuse_conflicts(done)
    return Subtracted(listings=tuple(done), warnings=tuple(sorted(warnings)))


class MisplacedObjectError(InputError):
    """An object below something that is no directory: it could be installed nowhere."""

    def __init__(self, *, path: str, bundle: str) -> None:
        self.path = path
        self.bundle = bundle
        super().__init__(f"{bundle} has {path!r}, and in another bundle its directory is a link or file; make it one.")


def _refuse_conflicts(listings: Sequence[Listing]) -> None:
    seen: dict[bytes, tuple[Listed, str]] = {}
    for one in listings:
        for path, listed in one.objects.items():
            before, bundle = seen.setdefault(path, (listed, one.definition.name))
            if (before.kind, before.hash) != (listed.kind, listed.hash):
                raise ConflictingBundlesError(
                    path=path.decode(errors="backslashreplace"), bundles=(bundle, one.definition.name)
                )
    for path, (_listed, bundle) in seen.items():
        above = seen.get(path.rpartition(b"/")[0])
        if above is not None and above[0].kind != "D":
            raise MisplacedObjectError(path=path.decode(errors="backslashreplace"), bundle=bundle)
