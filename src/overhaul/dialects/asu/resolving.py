"""From a request to a recipe, or to the reason why there can be none; with the catalogue alone, without upstream.

What the catalogue does not know (packages of a repository that the client brings, a target whose index could not be
fetched) is left to the build to find out.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import urlsplit

from overhaul.builds.recipe import InvalidRecipeError, Recipe
from overhaul.dialects.asu.catalogue import OPENWRT, Catalogue, System
from overhaul.dialects.asu.names import branch_of
from overhaul.dialects.asu.packages import BUILT_IN, fixed
from overhaul.dialects.asu.refusals import ImpossiblePackagesError, PackageProblem, RefusedRequestError, Subject
from overhaul.dialects.asu.settings import AsuSettings, package_changes
from overhaul.dialects.asu.today_request import BuildRequest
from overhaul.dialects.asu.upstream_documents import PackageIndex

#: Unknown packages for which something similar is looked for; comparing with ten thousand names takes a while.
_SUGGESTED = 3
_GENERIC = "generic"
DEBIAN = "debian"

_NO_TARGET = (
    "Unsupported target: {}. The requested target was either dropped, is still being built or is not supported by the "
    "selected version. Please check the forums or try again later."
)
_NO_PROFILE = (
    "Unsupported profile: {}. The requested profile was either dropped or never existed. Please check the forums for "
    "more information."
)


def recipe_of(request: BuildRequest, catalogue: Catalogue) -> Recipe:
    """Return what is to be built for a request of today's interface.

    Raises:
        RefusedRequestError: It cannot be built.
    """
    settings = catalogue.settings
    if request.defaults and not settings.allow_defaults:
        raise _refused(Subject.DEFAULTS, "", "Handling `defaults` not enabled on server")
    for url in request.repositories.values():
        if not is_allowed(url, settings.repository_allow_list):
            raise _refused(Subject.REPOSITORY, url, f"Repository not allowed: {url}")
    if request.distro == DEBIAN and settings.debian:
        return _debian_recipe(request, settings)
    if request.distro != OPENWRT:
        raise _refused(Subject.DISTRIBUTION, request.distro, f"Unsupported distro: {request.distro}")
    branch = branch_of(request.version, _enabled(settings))
    if branch is None:
        raise _refused(Subject.VERSION, request.version, f"Unsupported branch: {request.version}")
    system = catalogue.system(OPENWRT, request.version)
    if system is None:
        raise _refused(Subject.VERSION, request.version, f"Unsupported version: {request.version}")
    if request.target not in catalogue.offered_targets(system):
        raise _refused(Subject.TARGET, request.target, _NO_TARGET.format(request.target))
    profile = _profile(catalogue, system, request)
    packages = fixed(request.wanted, version=request.version, target=request.target, profile=profile)
    if not request.repositories:
        check_packages(packages, catalogue=catalogue, system=system, target=request.target, profile=profile)
    kept = set(packages)
    try:
        return Recipe(
            builder=OPENWRT,
            distribution=OPENWRT,
            version=request.version,
            revision=request.version_code,
            target=request.target,
            profile=profile,
            packages=packages,
            # A package that a fix took away cannot be in the manifest.
            package_versions=tuple(
                (name, version)
                for name, version in ((name.removeprefix("+"), v) for name, v in request.packages_versions.items())
                if name in kept and version
            ),
            diff_packages=request.diff_packages,
            defaults=request.defaults or "",
            filesystem=request.filesystem,
            rootfs_size_mb=request.rootfs_size_mb,
            repositories=tuple(request.repositories.items()),
            repositories_mode=request.repositories_mode,
            repository_keys=tuple(request.repository_keys),
        )
    except InvalidRecipeError as error:
        raise _refused(Subject.FIELD, error.value, str(error)) from error


def _debian_recipe(request: BuildRequest, settings: AsuSettings) -> Recipe:
    """Return what is to be built for a device with slots; its packages are resolved by the build, which has apt."""
    product = settings.debian.get(request.profile)
    if product is None:
        raise _refused(Subject.DEVICE, request.profile, _NO_PROFILE.format(request.profile))
    if request.version not in product.suites:
        raise _refused(Subject.VERSION, request.version, f"Unsupported version: {request.version}")
    arch = request.target.removeprefix(f"{DEBIAN}/")
    if arch not in product.architectures:
        raise _refused(Subject.TARGET, request.target, _NO_TARGET.format(request.target))
    if request.repositories or request.repository_keys:
        raise _refused(Subject.REPOSITORY, "", "Repositories of a client are not used for Debian images")
    try:
        return Recipe(
            builder=DEBIAN,
            distribution=DEBIAN,
            version=request.version,
            target=arch,
            profile=request.profile,
            packages=request.wanted,
            package_versions=tuple(request.packages_versions.items()),
            defaults=request.defaults or "",
            filesystem=request.filesystem,
            rootfs_size_mb=request.rootfs_size_mb,
        )
    except InvalidRecipeError as error:
        raise _refused(Subject.FIELD, error.value, str(error)) from error


def check_packages(packages: Iterable[str], *, catalogue: Catalogue, system: System, target: str, profile: str) -> None:
    """Refuse packages that do not exist for a device; a leading `-` takes one of the defaults away.

    Raises:
        ImpossiblePackagesError: Some do not.
    """
    index = catalogue.packages(system, target)
    if index is None:
        return
    given = _given(catalogue, system, target, profile)
    unknown = [
        name
        for name in dict.fromkeys(package.removeprefix("-") for package in packages)
        if name not in BUILT_IN and name not in given and not has_package(index, name)
    ]
    if unknown:
        replacements = suggested(unknown, catalogue=catalogue, system=system, index=index)
        where = f"it does not exist for {target} in {system.version}"
        raise ImpossiblePackagesError(
            tuple(
                PackageProblem(package=name, reason=where, replacement=replacements.get(name))
                for name in sorted(unknown)
            )
        )


def has_package(index: PackageIndex, name: str) -> bool:
    """Tell whether a package can be installed; libraries may be asked for without the number their name ends in."""
    if name in index.versions or name in index.provided:
        return True
    # Indexes of the first version carry names such as `libubox20230523`, which devices know as `libubox`. Other
    # packages end in numbers that mean something: `firewall4` is no `firewall`.
    return name.startswith("lib") and any(
        known.startswith(name) and known[len(name) :].lstrip("-").replace(".", "").replace("-", "").isdigit()
        for known in index.versions
    )


def suggested(unknown: Sequence[str], *, catalogue: Catalogue, system: System, index: PackageIndex) -> dict[str, str]:
    """Return what to ask for instead: what a package became, or else what is spelt much like it."""
    branch = catalogue.settings.branches.get(branch_of(system.version, catalogue.settings.branches) or "")
    became = {change.source: change.target for change in (package_changes(branch) if branch else ())}
    found: dict[str, str] = {}
    for name in unknown:
        known = became.get(name)
        if known is not None and has_package(index, known):
            found[name] = known
    for name in [name for name in unknown if name not in found][:_SUGGESTED]:
        close = difflib.get_close_matches(name, (known for known in index.versions if known[:1] == name[:1]), n=1)
        found.update({name: close[0]} if close else {})
    return found


def is_allowed(url: str, allowed: Iterable[str]) -> bool:
    """Tell whether `url` lies below one of the `allowed` addresses, compared part by part and not as text."""
    try:
        asked = urlsplit(url)
        asked_port = asked.port
    except ValueError:
        return False
    if asked.username is not None or asked.password is not None or "\\" in url or "%" in asked.path:
        return False
    parts = asked.path.split("/")
    if ".." in parts or "." in parts:
        return False
    for entry in allowed:
        permitted = urlsplit(entry)
        path = permitted.path.rstrip("/") + "/"
        if (
            asked.scheme == permitted.scheme
            and asked.hostname == permitted.hostname
            and asked_port == permitted.port
            and (asked.path.rstrip("/") + "/").startswith(path)
        ):
            return True
    return False


def _profile(catalogue: Catalogue, system: System, request: BuildRequest) -> str:
    profiles = catalogue.profiles(system, request.target)
    if profiles is None:
        # The target is listed and its devices are not known yet: the builder knows them.
        return request.board
    if list(profiles.profiles) == [_GENERIC]:
        return _GENERIC
    profile = catalogue.aliases(system, request.target).get(request.board)
    if profile is None:
        raise _refused(Subject.DEVICE, request.board, _NO_PROFILE.format(request.board))
    return profile


def _given(catalogue: Catalogue, system: System, target: str, profile: str) -> frozenset[str]:
    """Return the packages that a device has without asking."""
    profiles = catalogue.profiles(system, target)
    if profiles is None:
        return frozenset()
    device = profiles.profiles.get(profile)
    names = (*profiles.default_packages, *(device.device_packages if device else ()))
    return frozenset(name.removeprefix("-") for name in names)


def _enabled(settings: AsuSettings) -> list[str]:
    return [name for name, branch in settings.branches.items() if branch.enabled]


def _refused(subject: Subject, value: str, detail: str) -> RefusedRequestError:
    return RefusedRequestError(subject=subject, value=value, detail=detail)


def default_packages(catalogue: Catalogue, system: System, target: str, profile: str) -> tuple[str, ...]:
    """Return what an image of a device holds when nothing is asked for, sorted."""
    return tuple(sorted(name for name in _given(catalogue, system, target, profile)))


def upgrades(installed: Mapping[str, str], index: PackageIndex) -> dict[str, tuple[str, str]]:
    """Return package -> (new, current) version of what is installed in another version than the index has."""
    return {
        name: (index.versions[name], version)
        for name, version in sorted(installed.items())
        if name in index.versions and index.versions[name] != version
    }
