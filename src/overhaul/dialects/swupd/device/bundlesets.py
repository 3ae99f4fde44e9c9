"""Which bundles belong together: what includes pull in, and who needs whom."""

from collections.abc import Callable, Iterable, Mapping

from overhaul.dialects.swupd.device.errors import RecursingBundlesError, UnknownBundleError
from overhaul.dialects.swupd.device.repository import Bundle, BundleRef, Release, Repository
from overhaul.dialects.swupd.names import CORE_BUNDLE

#: No release has more; a set that grows beyond it does not end.
_MANY = 100_000


def load_with_includes(
    repository: Repository,
    release: Release,
    names: Iterable[str],
    *,
    with_optional: bool = False,
    old: Mapping[str, BundleRef] | None = None,
    unknown: Callable[[str], None] | None = None,
) -> dict[str, Bundle]:
    """Return the bundles `names` and everything they include, by name.

    `with_optional` also takes what they suggest. A name that the release does not have goes to `unknown` when that
    is given; what a bundle includes must exist, what it suggests need not.

    Raises:
        UnknownBundleError: A name that is no bundle.
    """
    loaded: dict[str, Bundle] = {}
    waiting = [CORE_BUNDLE, *names]
    optional: set[str] = set()
    while waiting:
        refs: dict[str, BundleRef] = {}
        for name in waiting:
            if name in loaded or name in refs:
                continue
            ref = release.bundles.get(name)
            if ref is None:
                if name in optional:
                    continue
                if unknown is None:
                    raise UnknownBundleError(bundle=name, version=release.version)
                unknown(name)
                continue
            refs[name] = ref
        waiting = []
        for bundle in repository.bundles(refs.values(), old=old):
            loaded[bundle.ref.name] = bundle
            waiting.extend(bundle.manifest.includes)
            if with_optional:
                optional.update(bundle.manifest.also_add)
                waiting.extend(bundle.manifest.also_add)
        if len(loaded) > _MANY:
            raise RecursingBundlesError(bundle=next(iter(loaded)))
    return loaded


def closure(names: Iterable[str], includes: Mapping[str, Iterable[str]]) -> set[str]:
    """Return `names` and everything that they include, directly or not."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(includes.get(name, ()))
    return found


def dependents(name: str, includes: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the bundles that need `name`, directly or not."""
    return {other for other in includes if other != name and name in closure(includes[other], includes)}


def orphans(tracked: Iterable[str], includes: Mapping[str, Iterable[str]]) -> set[str]:
    """Return the installed bundles that nobody added by name and no such bundle needs."""
    return set(includes) - closure([CORE_BUNDLE, *tracked], includes)
