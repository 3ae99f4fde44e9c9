"""The seed era's upgrade-check: is there a newer version, what becomes of the packages, and which are newer. Pure."""

from overhaul.dialects.asu.catalogue import Catalogue
from overhaul.dialects.asu.names import is_package
from overhaul.dialects.asu.packages import BUILT_IN, replaced
from overhaul.dialects.asu.prepared import Prepared, json_answer
from overhaul.dialects.asu.refusals import ImpossiblePackagesError, PackageProblem
from overhaul.dialects.asu.resolving import check_packages, upgrades
from overhaul.dialects.asu.seed_request import SeedRequest
from overhaul.dialects.asu.seed_resolving import (
    find_asked,
    find_distribution,
    find_version,
    missing_field,
)


def check_upgrade(request: SeedRequest, catalogue: Catalogue) -> Prepared:
    """Return the answer: 200 with what is new, or 204.

    Raises:
        RefusedRequestError: Distribution, version, target or packages are missing or unknown.
    """
    distribution = find_distribution(request.distro, catalogue)
    if not request.target:
        raise missing_field("target")
    if not request.version:
        return json_answer(200, {"version": distribution.latest})
    version = find_version(request.version, distribution)
    asked = find_asked(request, catalogue)
    target = request.target or ""
    offered: dict[str, object] = {}
    destination = asked
    if version.is_snapshot or version.name.lower() == "snapshot":
        profiles = catalogue.profiles(asked.system, target)
        if profiles is not None and profiles.version_code != (request.revision or ""):
            offered = {"revision": profiles.version_code, "version": request.version}
    elif distribution.latest and distribution.latest.lower() != version.name.lower():
        offered = {"version": distribution.latest}
        destination = find_asked(
            SeedRequest(distro=request.distro, version=distribution.latest, target=target), catalogue
        )
    if request.installed is None:
        return _answer(request, offered)
    names = frozenset(request.installed) - BUILT_IN
    _check_names(names)
    check_packages(sorted(names), catalogue=catalogue, system=asked.system, target=target, profile="")
    index = catalogue.packages(destination.system, target)
    crossed = distribution.crossed(installed=version.name.lower(), destination=destination.version.name.lower())
    known = names.union(*crossed) if index is None else frozenset(index.versions) | index.provided
    after = replaced(names, crossed, known=known)
    newer = (
        upgrades({name: request.installed[name] for name in names}, index)
        if index is not None and (offered or request.upgrade_packages)
        else {}
    )
    return _answer(request, {**offered, "packages": sorted(after if offered else names), "upgrades": newer})


def _answer(request: SeedRequest, document: dict[str, object]) -> Prepared:
    if "version" in document or document.get("upgrades"):
        return json_answer(200, document)
    # It has no body, so the name that a later request will have goes into a header.
    return Prepared(204, b"", headers={"X-Request-Hash": request.digest()[:12]})


def _check_names(names: frozenset[str]) -> None:
    wrong = [name for name in names if not is_package(name)]
    if wrong:
        raise ImpossiblePackagesError(
            tuple(PackageProblem(package=name, reason="no package can have this name") for name in wrong)
        )
