"""Why a request gets no image, found before it is queued; each interface says it in its own words and statuses."""

from dataclasses import dataclass
from enum import StrEnum

from overhaul.errors import InputError


class Subject(StrEnum):
    """What in a request is the matter."""

    DISTRIBUTION = "distribution"
    VERSION = "version"
    TARGET = "target"
    TARGET_UNSUPPORTED = "unsupported target"
    DEVICE = "device"
    DEFAULTS = "defaults"
    DEFAULTS_SIZE = "defaults size"
    REPOSITORY = "repository"
    PACKAGES = "packages"
    FIELD = "field"


class RefusedRequestError(InputError):
    """A request that cannot lead to an image."""

    def __init__(self, *, subject: Subject, value: str, detail: str, missing: bool = False) -> None:
        self.subject = subject
        self.value = value
        self.detail = detail
        #: Whether the request lacks it altogether.
        self.missing = missing
        super().__init__(detail)


@dataclass(frozen=True, kw_only=True)
class PackageProblem:
    """A package that cannot be had, and what to do about it."""

    package: str
    reason: str
    #: What to ask for instead, where something is known.
    replacement: str | None = None


class ImpossiblePackagesError(RefusedRequestError):
    """A selection of packages that no build could satisfy."""

    def __init__(self, problems: tuple[PackageProblem, ...]) -> None:
        self.problems = problems
        super().__init__(
            subject=Subject.PACKAGES,
            value=", ".join(self.packages),
            detail=f"Impossible package selection: missing ({', '.join(self.packages)})",
        )

    @property
    def packages(self) -> tuple[str, ...]:
        """The names, sorted."""
        return tuple(sorted(problem.package for problem in self.problems))
