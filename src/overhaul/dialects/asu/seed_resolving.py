"""From a seed-era request to a recipe, or to the reason why there can be none, in the order its servers looked."""

from dataclasses import dataclass

from overhaul.builds.recipe import InvalidRecipeError, Recipe
from overhaul.dialects.asu.catalogue import OPENWRT, Catalogue, System
from overhaul.dialects.asu.distributions import Distribution, Version
from overhaul.dialects.asu.names import underscored
from overhaul.dialects.asu.packages import BUILT_IN
from overhaul.dialects.asu.refusals import ImpossiblePackagesError, PackageProblem, RefusedRequestError, Subject
from overhaul.dialects.asu.resolving import check_packages
from overhaul.dialects.asu.seed_request import SeedRequest, unnameable


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a request is about, found in the catalogue."""

    distribution: Distribution
    version: Version
    system: System


def find_asked(request: SeedRequest, catalogue: Catalogue, *, needs_target: bool = True) -> Asked:
    """Return what `request` is about.

    Raises:
        RefusedRequestError: Distribution, version or target are missing or unknown.
    """
    distribution = find_distribution(request.distro, catalogue)
    version = find_version(request.version, distribution)
    system = catalogue.system(distribution.name, version.name)
    if system is None:
        raise _refused(Subject.VERSION, version.name, f"unknown version {version.name.lower()}")
    if needs_target:
        check_target(request.target, catalogue, system)
    return Asked(distribution=distribution, version=version, system=system)


def find_distribution(named: str | None, catalogue: Catalogue) -> Distribution:
    """Return the distribution that a device calls so, however it writes it."""
    if not named:
        raise missing_field("distro")
    found = catalogue.distributions.get(named.lower())
    if found is None:
        raise _refused(Subject.DISTRIBUTION, named, f"unknown distribution {named}")
    return found


def find_version(named: str | None, distribution: Distribution) -> Version:
    """Return the version of that name; none named is the latest."""
    wanted = (named or distribution.latest).lower()
    found = distribution.version(wanted)
    if found is None:
        raise _refused(Subject.VERSION, wanted, f"unknown version {wanted}")
    return found


def check_target(target: str | None, catalogue: Catalogue, system: System) -> None:
    """Refuse a target that is missing, unknown or not supported."""
    if not target:
        raise missing_field("target")
    if target not in catalogue.targets(system):
        raise _refused(Subject.TARGET, target, f"unknown target {target}")
    if target not in catalogue.offered_targets(system):
        raise _refused(Subject.TARGET_UNSUPPORTED, target, f"target currently not supported {target}")


def seed_recipe(request: SeedRequest, asked: Asked, catalogue: Catalogue) -> Recipe:
    """Return what is to be built.

    Raises:
        RefusedRequestError: It cannot be built.
    """
    target = request.target or ""
    defaults = request.defaults or ""
    if defaults and not catalogue.settings.allow_defaults:
        raise _refused(Subject.DEFAULTS, "", "this server takes no defaults")
    if len(defaults.encode(errors="surrogatepass")) > catalogue.settings.max_defaults_size:
        raise _refused(Subject.DEFAULTS_SIZE, "", "attached defaults exceed max size")
    packages = tuple(name for name in dict.fromkeys(request.wanted) if name.removeprefix("-") not in BUILT_IN)
    profile = find_profile(request, asked, catalogue)
    check_seed_packages(packages, asked=asked, catalogue=catalogue, target=target, profile=profile)
    version = asked.version
    parent = version.parent
    try:
        return Recipe(
            builder=OPENWRT,
            distribution=parent[0] if parent else asked.distribution.name,
            version=_built_version(parent[1] if parent else version.name),
            target=target,
            profile=profile,
            packages=packages,
            # A set of packages is meant as the whole of it; without one, the image is as the profile has it.
            diff_packages=bool(packages),
            defaults=defaults,
            repositories=tuple(
                (name, _filled(url, asked=asked, catalogue=catalogue, target=target))
                for name, url in version.repositories
            ),
            naming="manifest",
        )
    except InvalidRecipeError as error:
        raise _refused(Subject.FIELD, error.value, str(error)) from error


def check_seed_packages(
    packages: tuple[str, ...], *, asked: Asked, catalogue: Catalogue, target: str, profile: str
) -> None:
    """Refuse packages that do not exist.

    Raises:
        ImpossiblePackagesError: Some do not.
    """
    wrong = unnameable(packages)
    if wrong:
        raise ImpossiblePackagesError(
            tuple(PackageProblem(package=name, reason="no package can have this name") for name in wrong)
        )
    if not asked.version.repositories:
        check_packages(packages, catalogue=catalogue, system=asked.system, target=target, profile=profile)


def find_profile(request: SeedRequest, asked: Asked, catalogue: Catalogue) -> str:
    """Return the device: by its board, by a renamed board, by its model, or as a generic one."""
    if not request.board and not request.model:
        raise missing_field("board")
    target = request.target or ""
    renames = asked.distribution.board_renames
    board = request.board or ""
    board = renames.get(board, renames.get(request.profile, board))
    profiles = catalogue.profiles(asked.system, target)
    if profiles is None:
        return underscored(board)
    found = catalogue.aliases(asked.system, target).get(underscored(board))
    if found is not None:
        return found
    model = (request.model or "").lower()
    for name, profile in profiles.profiles.items():
        if model and profile.title.lower() == model:
            return name
    for generic in ("Generic", "generic"):
        if generic in profiles.profiles:
            return generic
    raise _refused(Subject.DEVICE, board, "unknown device, please check model and board params")


def _built_version(name: str) -> str:
    return "SNAPSHOT" if name.lower() == "snapshot" else name


def _filled(url: str, *, asked: Asked, catalogue: Catalogue, target: str) -> str:
    parent = asked.version.parent
    values = {
        "ib_version": parent[1] if parent else asked.version.name,
        "version": asked.version.name,
        "target": target,
        "pkg_arch": catalogue.targets(asked.system).get(target, ""),
    }
    for key, value in values.items():
        url = url.replace(f"{{{{ {key} }}}}", value)
    return url


def missing_field(field: str) -> RefusedRequestError:
    """Return the refusal of a request that lacks `field`."""
    return RefusedRequestError(subject=Subject.FIELD, value=field, detail=f"missing parameter {field}", missing=True)


def _refused(subject: Subject, value: str, detail: str) -> RefusedRequestError:
    return RefusedRequestError(subject=subject, value=value, detail=detail)
